"""A ReAct agent of LangGraph behind a chat: people see what it says and which tools it calls, each in the moment it happens.

pip install 'dooers-workers-server[cli,langgraph]' langchain langchain-openai fastapi
export OPENAI_API_KEY=...
uvicorn examples.fastapi_langgraph:app
dooers chat                      (ask for the weather in Lisbon, and the time)
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from dooers_contrib import langgraph
from fastapi import FastAPI, WebSocket
from langchain.agents import create_agent
from langchain_core.messages import convert_to_messages
from langchain_core.tools import tool
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

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_langgraph.db", assistant_name="My Assistant")
)
app = FastAPI(lifespan=worker_server.lifespan)


@tool
async def get_weather(city: str) -> dict[str, Any]:
    """How the weather is in a city, now."""
    return {
        "city": city,
        "sky": "clear",
        "celsius": 20 + len(city) % 10,
    }  # stands where a weather service would be asked


@tool
async def get_time(zone: str) -> str:
    """What time it is in a time zone, such as Europe/Lisbon."""
    return datetime.now(ZoneInfo(zone)).strftime("%H:%M")


graph = create_agent(
    ChatOpenAI(model="gpt-4o-mini"),
    [get_weather, get_time],
    system_prompt="You are a helpful assistant. For the weather and the time, use your tools.",
)


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    messages: list[Any] = [*convert_to_messages(await memory.get_history(limit=20, format="openai"))]
    steps = graph.astream(
        {"messages": messages},
        config={"recursion_limit": 20},  # steps before an agent that never comes to an end is stopped
        stream_mode="messages",
    )
    async for event in langgraph.answer(send, steps):
        yield event

    if incoming.context.thread_title is None:
        yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)
