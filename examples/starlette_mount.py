"""A worker mounted in a Starlette application, beside its own pages, and asked by one of them.

pip install 'dooers-workers-server[cli]'
uvicorn examples.starlette_mount:app          (then open http://127.0.0.1:8000/assistant/)
dooers chat ws://127.0.0.1:8000/assistant/ws
curl 'http://127.0.0.1:8000/ask?q=hello'
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from dooers import WorkerConfig, WorkerIncoming, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="starlette_mount.db"))


@worker.handler
async def agent(incoming: WorkerIncoming) -> str:
    return f"You said: {incoming.message}"


async def ask(request: Request) -> PlainTextResponse:
    question = request.query_params["q"]
    stream = await worker.dispatch(organization_id="local", workspace_id="local", user_id="web", message=question)
    [answer] = await stream.collect()
    return PlainTextResponse(answer.data["text"])


app = Starlette(
    routes=[Route("/ask", ask), Mount("/assistant", worker.asgi_app(playground=True))],
    lifespan=worker.lifespan,  # a mounted application's own is never called
)
