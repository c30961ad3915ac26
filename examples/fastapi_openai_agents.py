"""Agents of the OpenAI Agents SDK behind a chat: what they say, the tools that they call, and who hands over to whom.

pip install 'dooers-workers-server[cli,openai-agents]' fastapi
export OPENAI_API_KEY=...
uvicorn examples.fastapi_openai_agents:app
dooers chat                      (ask for the weather in Lisbon, or for your money back)
"""

from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Runner, function_tool, set_tracing_disabled
from dooers_contrib import openai_agents
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

MODEL = "gpt-4o-mini"
set_tracing_disabled(True)  # the SDK sends every conversation to OpenAI's traces unless it is told not to

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_openai_agents.db", assistant_name="My Assistant")
)
app = FastAPI(lifespan=worker_server.lifespan)


@function_tool
async def get_weather(city: str) -> dict[str, Any]:
    """How the weather is in a city, now."""
    return {
        "city": city,
        "sky": "clear",
        "celsius": 20 + len(city) % 10,
    }  # stands where a weather service would be asked


refunds = Agent[None](
    name="Refunds",
    model=MODEL,
    handoff_description="Knows about refunds.",
    instructions="You help people who want their money back.",
)
assistant = Agent[None](
    name="My Assistant",
    model=MODEL,
    instructions="You are a helpful assistant. For the weather, use your tool.",
    tools=[get_weather],
    handoffs=[refunds],
)


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    history = openai_agents.history(await memory.get_history(limit=20, format="openai"))
    result = Runner.run_streamed(assistant, history, max_turns=8)
    async for event in openai_agents.answer(send, result):
        yield event

    usage = result.context_wrapper.usage
    figures = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    await analytics.track("agents.answered", {"agent": result.last_agent.name, **figures})
    if incoming.context.thread_title is None:
        yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)
