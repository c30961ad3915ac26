"""An agent and its tests, in one file. In a project of yours the first half is agent.py, and the second test_agent.py.

pip install dooers-workers-server pytest
pytest -o anyio_mode=auto examples/testing.py
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dooers import WorkerConfig, WorkerEvent, WorkerMemory, WorkerSend, WorkerServer
from dooers.testing import FakeModel, Gate, WorkerClient, assert_events, assert_succeeded, tool_call, tool_result

# ---------------------------------------------------------------- agent.py

worker_server = WorkerServer(WorkerConfig(database_type="sqlite", database_name="testing.db"))


@worker_server.provide
def model() -> Any:
    raise NotImplementedError("here you would make a client of your model")


@worker_server.handler
async def agent(send: WorkerSend, memory: WorkerMemory, model: Any) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    answer = await model(await memory.get_history(limit=20))
    for tool in answer.tools:
        yield send.tool_call(tool.name, tool.args, id=tool.id)
        yield send.tool_result(tool.name, {"celsius": 21}, id=tool.id)
        answer = await model("21 degrees")
    yield send.text(answer)
    yield send.run_end()


# ---------------------------------------------------------------- conftest.py


@pytest.fixture
def worker() -> WorkerServer:
    """The worker that the tests are about. `isolated_worker` keeps it in memory: no test touches testing.db."""
    return worker_server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(isolated_worker: WorkerServer, worker_client: WorkerClient) -> WorkerClient:
    return worker_client


# ---------------------------------------------------------------- test_agent.py


async def test_it_remembers_what_was_said(worker: WorkerServer, client: WorkerClient) -> None:
    model = FakeModel("Hello Ana.", "You are Ana.")
    with worker.override(model=model):
        first = await client.say("I am Ana.")
        second = await client.say("Who am I?", first.thread_id)
    assert_succeeded(first, second)
    assert second.text == "You are Ana."
    [history] = model.last.args
    assert [message["content"] for message in history] == ["I am Ana.", "Hello Ana.", "Who am I?"]


async def test_it_asks_for_the_weather(worker: WorkerServer, client: WorkerClient) -> None:
    with worker.override(model=FakeModel(FakeModel.tool("weather", city="Lisbon"), "It is warm.")):
        reply = await client.say("How is Lisbon?")
    assert_events(reply, [tool_call("weather", city="Lisbon"), tool_result("weather", {"celsius": 21}), "It is warm."])


async def test_a_model_that_fails_is_told_to_people_and_not_shown(worker: WorkerServer, client: WorkerClient) -> None:
    with worker.override(model=FakeModel(RuntimeError("secret"))):
        reply = await client.say("Hi.")
    assert reply.status == "failed"
    assert "secret" not in str(reply.frames)


async def test_the_second_question_waits_for_the_first(worker: WorkerServer, client: WorkerClient) -> None:
    gate = Gate()
    with worker.override(model=FakeModel([gate, "One."], "Two.")):
        async with worker.lifespan():
            who: dict[str, Any] = {"organization_id": "org", "workspace_id": "main", "user_id": "ana", "thread_id": "t"}
            first = await worker.dispatch(**who, message="First?")
            first.detach()
            second = await worker.dispatch(**who, message="Second?")
            second.detach()
            await gate.reached()
            assert (first.status, second.status) == ("running", "waiting")
            gate.open()
            assert [event.data["text"] for event in await second.collect() if event.send_type == "text"] == ["Two."]
