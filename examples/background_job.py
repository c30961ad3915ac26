"""Work in the background, in PostgreSQL: jobs that a web endpoint puts into a queue, and one that comes every morning (cron).

Whatever dies, each job is answered once: `docs/background.md` says how. Conversations and jobs lie in the same database.

pip install 'dooers-workers-server[cli]' procrastinate 'psycopg[binary]'
export WORKER_DATABASE_NAME=...          (and _HOST, _USER, _PASSWORD where they are not localhost's)
python -m procrastinate --app=examples.background_job.jobs schema --apply          (once)
python -m procrastinate --app=examples.background_job.jobs worker --concurrency=10
uvicorn examples.background_job:app          (then open http://127.0.0.1:8000/worker/ to see the conversations)
curl -d '{"id": "q-1", "user_id": "ana", "text": "hello"}' http://127.0.0.1:8000/questions
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from dooers_contrib.jobs import NotYetError, answer
from procrastinate import App, PsycopgConnector, RetryStrategy
from psycopg.conninfo import make_conninfo
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from dooers import WorkerConfig, WorkerEvent, WorkerIncoming, WorkerSend, WorkerServer

config = WorkerConfig(database_type="postgres", assistant_name="Reporter")
worker = WorkerServer(config)

# ---------------------------------------------------------------- the agent, as any other

Model = Callable[[str], Awaitable[str]]


@worker.provide
def model() -> Model:
    async def think(question: str) -> str:
        """Stands where a model would be asked."""
        await asyncio.sleep(0.1)
        return f"Here is what I found on {question!r}."

    return think


@worker.handler(timeout=120)
async def agent(incoming: WorkerIncoming, send: WorkerSend, model: Model) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()  # so that a turn which dies half-way is known to have begun, and not to have ended
    yield send.text(await model(incoming.message))
    yield send.run_end()


# ---------------------------------------------------------------- the queue, and cron

connection = make_conninfo(
    host=config.database_host,
    port=config.database_port,
    user=config.database_user,
    password=config.database_password or None,
    dbname=config.database_name,
)
jobs = App(connector=PsycopgConnector(conninfo=connection))
again = RetryStrategy(max_attempts=50, wait=5, retry_exceptions=[NotYetError])


@jobs.task(retry=again)
async def question(key: str, user_id: str, text: str) -> None:
    await answer(worker, key, organization_id="local", workspace_id="local", user_id=user_id, message=text)


@jobs.periodic(cron="0 7 * * *")
@jobs.task(retry=again)
async def every_morning(timestamp: int) -> None:
    """One job a day, however many processes there are."""
    who: dict[str, Any] = {
        "organization_id": "local",
        "workspace_id": "local",
        "user_id": "ana",
        "thread_id": "mornings-of-ana",
    }
    await answer(worker, f"morning/{timestamp}", **who, message="What is new today?")


@jobs.periodic(cron="* * * * *")
@jobs.task(queueing_lock="rescue")
async def rescue(timestamp: int) -> None:
    """Jobs of processes that have died are given to others."""
    for job in await jobs.job_manager.get_stalled_jobs():
        await jobs.job_manager.retry_job(job)


# ---------------------------------------------------------------- the web


async def ask(request: Request) -> JSONResponse:
    asked = await request.json()
    await question.defer_async(key=asked["id"], user_id=asked["user_id"], text=asked["text"])
    return JSONResponse({"queued": asked["id"]}, 202)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with worker.lifespan(app), jobs.open_async():
        yield


app = Starlette(
    routes=[Route("/questions", ask, methods=["POST"]), Mount("/worker", worker.asgi_app(playground=True))],
    lifespan=lifespan,
)
