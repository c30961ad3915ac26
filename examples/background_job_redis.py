"""Work in the background, in Redis: jobs that a web endpoint puts into a queue, and one that comes every morning (cron).

The same as `background_job.py`, with streaq. Conversations lie in a SQLite file, so all are on one machine; news go through Redis.

pip install 'dooers-workers-server[cli,redis]' streaq
export REDIS_URL=redis://localhost:6379/0
streaq run examples.background_job_redis:jobs
uvicorn examples.background_job_redis:app          (then open http://127.0.0.1:8000/worker/ to see the conversations)
curl -d '{"id": "q-1", "user_id": "ana", "text": "hello"}' http://127.0.0.1:8000/questions
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from dooers_contrib.jobs import NotYetError, answer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from streaq import StreaqRetry
from streaq import Worker as Jobs

from dooers import WorkerConfig, WorkerEvent, WorkerIncoming, WorkerSend, WorkerServer

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
TIMEOUT = 120
AGAIN = 5

worker = WorkerServer(
    WorkerConfig(
        database_type="sqlite", database_name="background_job.db", broker_url=REDIS_URL, assistant_name="Reporter"
    )
)

# ---------------------------------------------------------------- the agent, as any other

Model = Callable[[str], Awaitable[str]]


@worker.provide
def model() -> Model:
    async def think(question: str) -> str:
        """Stands where a model would be asked."""
        await asyncio.sleep(0.1)
        return f"Here is what I found on {question!r}."

    return think


@worker.handler(timeout=TIMEOUT)
async def agent(incoming: WorkerIncoming, send: WorkerSend, model: Model) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()  # so that a turn which dies half-way is known to have begun, and not to have ended
    yield send.text(await model(incoming.message))
    yield send.run_end()


# ---------------------------------------------------------------- the queue, and cron

jobs = Jobs(
    redis_url=REDIS_URL,
    lifespan=worker.lifespan,
    # Longer than a turn may take: what is at work when the process is asked to end is finished, never cancelled.
    grace_period=TIMEOUT + 10,
    # Not streaq's default, pickle: with it, whoever may write to this Redis may run code here.
    serializer=lambda value: json.dumps(value, default=repr),
    deserializer=json.loads,
)


@jobs.middleware
def again(job: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(job)
    async def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return await job(*args, **kwargs)
        except NotYetError as error:
            raise StreaqRetry(str(error), delay=AGAIN) from error

    return run


@jobs.task(max_tries=50)
async def question(key: str, user_id: str, text: str) -> None:
    await answer(worker, key, organization_id="local", workspace_id="local", user_id=user_id, message=text)


@jobs.cron("0 7 * * *", max_tries=50)
async def every_morning() -> None:
    """One job a day, however many processes there are."""
    who: dict[str, Any] = {
        "organization_id": "local",
        "workspace_id": "local",
        "user_id": "ana",
        "thread_id": "mornings-of-ana",
    }
    await answer(worker, f"morning/{datetime.now(UTC):%Y-%m-%d}", **who, message="What is new today?")


# ---------------------------------------------------------------- the web


async def ask(request: Request) -> JSONResponse:
    asked = await request.json()
    await question.enqueue(key=asked["id"], user_id=asked["user_id"], text=asked["text"])
    return JSONResponse({"queued": asked["id"]}, 202)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with worker.lifespan(app), jobs:
        yield


app = Starlette(
    routes=[Route("/questions", ask, methods=["POST"]), Mount("/worker", worker.asgi_app(playground=True))],
    lifespan=lifespan,
)
