"""A worker mounted in a Litestar application, beside its own routes, and asked by one of them.

pip install 'dooers-workers-server[cli]' litestar
uvicorn examples.litestar_mount:app           (then open http://127.0.0.1:8000/assistant/)
dooers chat ws://127.0.0.1:8000/assistant/ws
curl 'http://127.0.0.1:8000/ask?q=hello'
"""

from litestar import Litestar, MediaType, asgi, get
from litestar.params import FromQuery
from litestar.types import Receive, Scope, Send

from dooers import WorkerConfig, WorkerIncoming, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="litestar_mount.db"))
chat = worker.asgi_app(playground=True)


@worker.handler
async def agent(incoming: WorkerIncoming) -> str:
    return f"You said: {incoming.message}"


@get("/ask", media_type=MediaType.TEXT)
async def ask(q: FromQuery[str]) -> str:
    stream = await worker.dispatch(organization_id="local", workspace_id="local", user_id="web", message=q)
    [answer] = await stream.collect()
    return str(answer.data["text"])


@asgi("/assistant", is_mount=True, copy_scope=True)
async def assistant(scope: Scope, receive: Receive, send: Send) -> None:
    # Litestar hands on what follows the mount, with a slash at its end: "/ws/". As ASGI has it, the path stays as it was asked for.
    asked = {"path": scope["raw_path"].decode(), "root_path": f"{scope.get('root_path', '')}/assistant"}
    await chat({**scope, **asked}, receive, send)  # type: ignore[arg-type]  # ASGI's types, each in their own words


app = Litestar([ask, assistant], lifespan=[worker.lifespan])
