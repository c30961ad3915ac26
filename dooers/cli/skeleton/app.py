"""The worker: what people say comes in, what this yields is stored and shown to them.

dooers run         serves it, with a page to talk to it in the browser
dooers chat        talks to it in a second terminal
pytest             tests it, without a server
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from dooers import Help, Label, WorkerConfig, WorkerEvent, WorkerIncoming, WorkerMemory, WorkerSend, WorkerServer

worker = WorkerServer(
    WorkerConfig(
        database_type="sqlite",
        database_name=os.environ.get("WORKER_DATABASE_NAME", "worker.db"),
        assistant_name="Parrot",
    )
)


@worker.settings
@dataclass
class Settings:
    """The form that people see. A change is there with the next message, in every open window."""

    greeting: Annotated[str, Label("Greeting"), Help("How an answer begins.")] = "You said:"
    pace: Annotated[Literal["fast", "slow"], Label("Pace")] = "fast"


async def model(question: str, settings: Settings) -> AsyncIterator[str]:
    """Stands where your model would be: pieces of text, as they come."""
    for word in f"{settings.greeting} {question}".split(" "):
        yield f"{word} "
        await asyncio.sleep(0.2 if settings.pace == "slow" else 0.02)


def clock() -> dict[str, str]:
    """A tool."""
    return {"time": datetime.now(UTC).strftime("%H:%M"), "zone": "UTC"}


@worker.handler
async def agent(
    incoming: WorkerIncoming, send: WorkerSend, memory: WorkerMemory, settings: Settings
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    question = incoming.message
    if "time" in question.lower():
        yield send.tool_call("clock", {}, id="clock-1")
        result = clock()
        yield send.tool_result("clock", result, id="clock-1")
        question = f"{question} It is {result['time']} {result['zone']}."
    history = await memory.get_history(limit=20, format="openai")  # ready for a model; the question is its last entry
    yield send.stream(model(question, settings))
    if len(history) == 1:
        yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()
