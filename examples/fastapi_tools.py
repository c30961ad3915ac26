"""A model that uses tools: people see what it calls and what came of it; the results go back to it until it has its answer.

pip install 'dooers-workers-server[cli,openai]' fastapi
export OPENAI_API_KEY=...
uvicorn examples.fastapi_tools:app
dooers chat                      (ask for the weather in Lisbon)
"""

from collections.abc import AsyncIterator
from typing import Any

from dooers_contrib import openai
from fastapi import FastAPI, WebSocket
from openai import AsyncOpenAI

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
SYSTEM = {"role": "system", "content": "You are a helpful assistant. For the weather, use your tools."}
ROUNDS = 8  # of tools and answers, before a model that never comes to an end is stopped

worker_server = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="fastapi_tools.db", assistant_name="My Assistant")
)
app = FastAPI(lifespan=worker_server.lifespan)
client = AsyncOpenAI()


async def get_weather(city: str) -> dict[str, Any]:
    """Stands where a weather service would be asked."""
    return {"city": city, "sky": "clear", "celsius": 20 + len(city) % 10}


TOOLS = {"get_weather": get_weather}
DESCRIPTIONS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "How the weather is in a city, now.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


async def agent_handler(
    incoming: WorkerIncoming,
    send: WorkerSend,
    memory: WorkerMemory,
    analytics: WorkerAnalytics,
    settings: WorkerSettings,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    messages: list[Any] = [SYSTEM, *await memory.get_history(limit=20, format="openai")]
    for _ in range(ROUNDS):
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, tools=DESCRIPTIONS, stream=True, stream_options={"include_usage": True}
        )
        answer = openai.answer(send, stream)
        async for event in answer:  # the text as it is written, then the tools that are called
            yield event
        await analytics.track("model.answered", {"model": MODEL, **answer.usage})
        if not (answer.complete and answer.tool_calls):
            break
        async for event in answer.run(TOOLS):  # each result
            yield event
        messages += answer.messages  # what the model called, and what came of it

    if incoming.context.thread_title is None:
        yield send.update_thread(title=incoming.message[:60])
    if answer.complete and not answer.tool_calls:
        yield send.run_end()
    else:  # cut off, filtered, empty, or still calling
        yield send.run_end("failed", f"The model has no answer: {answer.finish_reason}.")


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    await worker_server.handle(websocket, agent_handler)
