"""The smallest worker: it says back what you say, and keeps the conversation in a file.

dooers run examples.quickstart:worker
dooers chat                             (in a second terminal)
"""

from collections.abc import AsyncIterator

from dooers import WorkerConfig, WorkerEvent, WorkerIncoming, WorkerMemory, WorkerSend, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="quickstart.db", assistant_name="Echo"))


@worker.handler
async def echo(incoming: WorkerIncoming, send: WorkerSend, memory: WorkerMemory) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    history = await memory.get_history(limit=20, format="openai")  # ready for a model
    yield send.text(f"You said: {incoming.message}")
    if len(history) == 1:
        yield send.update_thread(title=incoming.message[:60])
    yield send.run_end()
