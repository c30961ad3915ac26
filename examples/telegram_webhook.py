"""People talk to a worker over Telegram: an answer is one message there, and grows as it is written at the other door, /ws.

pip install 'dooers-workers-server[cli]'
export TELEGRAM_BOT_TOKEN=... TELEGRAM_SECRET_TOKEN=...      (from @BotFather; one that you make up)
uvicorn examples.telegram_webhook:app
curl "https://api.telegram.org/bot$TELEGRAM_BOT_TOKEN/setWebhook" -d url=https://your-host/telegram -d secret_token="$TELEGRAM_SECRET_TOKEN"
"""

import asyncio
import os
from collections.abc import AsyncIterator

from dooers_contrib.telegram import API, telegram
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from dooers import WorkerConfig, WorkerEvent, WorkerIncoming, WorkerSend, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="telegram_webhook.db"))


async def slowly(text: str) -> AsyncIterator[str]:
    """Stands where a model would be."""
    for word in text.split(" "):
        yield f"{word} "
        await asyncio.sleep(0.01)


@worker.handler
async def answer(incoming: WorkerIncoming, send: WorkerSend) -> AsyncIterator[WorkerEvent]:
    if incoming.message.startswith("/start"):
        yield send.text(f"Hello {incoming.context.user_name}! Write to me, or send me a file.")
        return
    for part in incoming.content:
        if part.type == "document":
            yield send.text(f"{part.filename}: {part.size_bytes} bytes, thank you.")
    if incoming.message:
        yield send.stream(slowly(f"You said: {incoming.message}"))


on_telegram = telegram(
    worker,
    bot_token=os.environ["TELEGRAM_BOT_TOKEN"],
    secret_token=os.environ["TELEGRAM_SECRET_TOKEN"],
    api_url=os.environ.get("TELEGRAM_API_URL", API),
)
app = Starlette(
    routes=[Route("/telegram", on_telegram, methods=["POST"]), Mount("/", worker.asgi_app())], lifespan=worker.lifespan
)
