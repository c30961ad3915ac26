"""What handlers need is provided: once a worker (an HTTP client), once a turn (a transaction, the customer), and replaced in a test.

pip install 'dooers-workers-server[cli]'
dooers run examples.dependencies:worker       (then open http://127.0.0.1:8000; say "note buy milk", "notes", or an amount in euros)
python -m examples.dependencies               (no network: the exchange rates are replaced)
"""

import asyncio
import os
from collections.abc import AsyncIterator

import aiosqlite
import httpx

from dooers import Identity, WorkerConfig, WorkerIncoming, WorkerServer
from dooers.testing import WorkerClient

DATABASE = "dependencies_notes.db"
RATES_URL = os.environ.get("RATES_URL", "https://api.frankfurter.dev/v1")

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="dependencies.db"))


@worker.provide(scope="worker")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """One for all turns, made when the first one asks for it, closed with the worker."""
    async with httpx.AsyncClient(base_url=RATES_URL, timeout=10) as client:
        yield client


@worker.provide("rates")
class Rates:
    """Provided as a class: it is made of what its parameters name, once, as all of that is the worker's."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def dollars(self, euros: float) -> float:
        answer = await self._http.get("/latest", params={"base": "EUR", "symbols": "USD"})
        return euros * float(answer.raise_for_status().json()["rates"]["USD"])


@worker.provide
async def transaction() -> AsyncIterator[aiosqlite.Connection]:
    """One for each turn. A handler that fails is raised here, at the `yield`: then nothing of its turn is kept."""
    async with aiosqlite.connect(DATABASE) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS notes (customer TEXT, note TEXT)")
        yield connection
        await connection.commit()


@worker.provide("notes")
class Notes:
    """Made once a turn, as what it is made of belongs to the turn: the transaction, and who asks."""

    def __init__(self, transaction: aiosqlite.Connection, identity: Identity) -> None:
        self._transaction, self._customer = transaction, identity.user_id

    async def add(self, note: str) -> None:
        await self._transaction.execute("INSERT INTO notes VALUES (?, ?)", (self._customer, note))

    async def all(self) -> list[str]:
        found = await self._transaction.execute_fetchall("SELECT note FROM notes WHERE customer = ?", (self._customer,))
        return [str(note) for (note,) in found]


@worker.handler
async def agent(incoming: WorkerIncoming, rates: Rates, notes: Notes) -> str:
    word, _, rest = incoming.message.partition(" ")
    if word == "note":
        await notes.add(rest)
        if not rest:
            raise ValueError("a note without a text")  # and it is not there
        return "Noted."
    if word == "notes":
        return ", ".join(await notes.all()) or "Nothing."
    return f"{await rates.dollars(float(word)):.2f} dollars"


class FixedRates:
    """Stands for `Rates`, in tests."""

    async def dollars(self, euros: float) -> float:
        return euros * 1.25


async def main() -> None:
    with worker.override(rates=FixedRates()):
        async with WorkerClient(worker, user_id="ana") as client:
            for text in ("note buy milk", "notes", "4"):
                print((await client.say(text)).text)


if __name__ == "__main__":
    asyncio.run(main())
