"""A model by way of LangChain behind a chat: the answer is seen while it is written, and kept. Any vendor that LangChain knows.

pip install 'dooers-workers-server[cli,langchain]' langchain-openai fastapi
export OPENAI_API_KEY=...
uvicorn examples.fastapi_langchain:app
dooers chat
"""

from collections.abc import AsyncIterator

from dooers_contrib import langchain
from fastapi import FastAPI, WebSocket
from langchain_core.messages import SystemMessage, convert_to_messages
from langchain_openai import ChatOpenAI

from dooers import (
    WorkerAnalytics,
    WorkerConfig,
    WorkerEvent,
    WorkerIncoming,
    WorkerMemory,
    WorkerSend,
    WorkerServer,
    WorkerSettings,
)

SYSTEM = SystemMessage("You are a helpful assistant.")

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_langchain.db", assistant_name="My Assistant")
)
app = FastAPI(lifespan=worker_server.lifespan)
model = ChatOpenAI(model="gpt-4o-mini", stream_usage=True)


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    history = convert_to_messages(await memory.get_history(limit=20, format="openai"))
    answer = langchain.answer(send, model.astream([SYSTEM, *history]))
    async for event in answer:
        yield event

    await analytics.track("model.answered", {"finish_reason": answer.finish_reason, **answer.usage})
    if incoming.context.thread_title is None:
        yield send.update_thread(title=incoming.message[:60])
    if answer.complete:
        yield send.run_end()
    else:  # cut off, filtered, or empty
        yield send.run_end("failed", f"The model stopped early: {answer.finish_reason}.")


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)
