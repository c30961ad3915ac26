"""One handler behind three doors: a chat over a WebSocket, a REST endpoint that waits for the answer, and one that does not.

pip install 'dooers-workers-server[cli]' fastapi
uvicorn examples.fastapi_multiple_endpoints:app
dooers chat ws://127.0.0.1:8000/ws --organization org-1 --workspace ws-1
curl -H 'content-type: application/json' -d '{"text": "hi", "user_id": "alice"}' http://127.0.0.1:8000/api/ask
"""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, WebSocket
from pydantic import BaseModel

from dooers import (
    DispatchError,
    DispatchStream,
    HandlerError,
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
    WorkerConfig(database_type="sqlite", database_name="fastapi_multiple_endpoints.db", assistant_name="Echo")
)
app = FastAPI(lifespan=worker_server.lifespan)


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    if incoming.message == "fail":
        raise ValueError("as you wish")
    said = await memory.get_history(limit=100, filters={"actor": "user"})
    yield send.text(f"Message {len(said)}: {incoming.message}")
    yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)


class Message(BaseModel):
    text: str
    user_id: str
    thread_id: str | None = None  # None opens a new thread
    key: str | None = None  # the same key again is the same message again


async def dispatched(message: Message) -> DispatchStream:
    try:
        return await worker_server.dispatch(
            handler=agent_handler,
            organization_id="org-1",
            workspace_id="ws-1",
            user_id=message.user_id,
            message=message.text,
            thread_id=message.thread_id,
            idempotency_key=message.key,
        )
    except DispatchError as error:
        raise HTTPException(503, str(error)) from error


@app.post("/api/ask")
async def ask(message: Message) -> dict[str, Any]:
    stream = await dispatched(message)
    try:
        events = await stream.collect()
    except HandlerError as error:
        raise HTTPException(502, "the handler failed") from error
    return {
        "thread_id": stream.thread_id,
        "texts": [event.data["text"] for event in events if event.send_type == "text"],
    }


@app.post("/api/tell", status_code=202)
async def tell(message: Message) -> dict[str, Any]:
    stream = await dispatched(message)
    stream.detach()  # stored already, and answered in the background
    return {"thread_id": stream.thread_id, "is_repeat": stream.is_repeat}


@app.get("/api/threads/{thread_id}")
async def read(thread_id: str) -> list[str]:
    repository = await worker_server.repository()
    return [event.text for event in await repository.list_events({"thread_id": thread_id}, {"direction": "asc"})]
