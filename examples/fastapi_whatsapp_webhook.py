"""People talk to a worker over WhatsApp, and the worker knows which customer writes.

pip install 'dooers-workers-server[cli]' fastapi
export WHATSAPP_ACCESS_TOKEN=... WHATSAPP_APP_SECRET=... WHATSAPP_VERIFY_TOKEN=...      (from the app at developers.facebook.com)
uvicorn examples.fastapi_whatsapp_webhook:app

Meta calls https://your-host/whatsapp. The second door of the same handler is /ws, for your own people.
"""

import os
from collections.abc import AsyncIterator

from dooers_contrib.whatsapp import API, whatsapp
from fastapi import FastAPI, WebSocket

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

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_whatsapp_webhook.db", assistant_name="Support")
)
app = FastAPI(lifespan=worker_server.lifespan)

# By phone number, as WhatsApp writes it. Usually a function that asks a database: `async def find(number): ...`
customers = {
    "4915112345678": {"user_name": "Ana Lima", "user_role": "customer", "plan": "gold"},
}


async def support_agent(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    customer = (incoming.data or {}).get("customer")  # what the lookup found
    if customer is None:
        yield send.text(f"Hello! We do not know {incoming.context.user_id} yet. What is your name?")
    else:
        yield send.text(f"Hello {customer['user_name']} ({customer['plan']})! You said: {incoming.message}")
    yield send.update_thread(title=f"WhatsApp: {incoming.context.user_name or incoming.context.user_id}")
    yield send.run_end()


app.add_api_route(
    "/whatsapp",
    whatsapp(
        worker_server,
        handler=support_agent,
        access_token=os.environ["WHATSAPP_ACCESS_TOKEN"],
        app_secret=os.environ["WHATSAPP_APP_SECRET"],
        verify_token=os.environ["WHATSAPP_VERIFY_TOKEN"],
        organization_id="org-1",
        workspace_id="ws-1",
        lookup=customers.get,
        api_url=os.environ.get("WHATSAPP_API_URL", API),
    ),
    methods=["GET", "POST"],
)


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, support_agent)
