"""The smallest worker: it says back what you say, word by word, and keeps the conversation in a file.

pip install 'dooers-workers-server[cli]'
dooers run examples.quickstart:worker
dooers chat                             (in a second terminal)
"""

import asyncio
from collections.abc import AsyncIterator

from dooers import WorkerConfig, WorkerEvent, WorkerIncoming, WorkerMemory, WorkerSend, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="quickstart.db", assistant_name="Echo"))


async def slowly(text: str) -> AsyncIterator[str]:
    """Stands where a model would be."""
    for word in text.split(" "):
        yield f"{word} "
        await asyncio.sleep(0.05)


@worker.handler
async def echo(incoming: WorkerIncoming, send: WorkerSend, memory: WorkerMemory) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    history = await memory.get_history(limit=20, format="openai")  # ready for a model
    yield send.stream(slowly(f"You said: {incoming.message}"))
    if len(history) == 1:
        yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()
