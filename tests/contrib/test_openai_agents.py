"""The OpenAI Agents SDK, with OpenAI's own library below it, asks a fake; the adapter makes a turn of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    UserError,
    WebSearchTool,
    function_tool,
)
from asking import Turn, ask, leave, stop
from dooers_contrib import openai_agents
from openai import AsyncOpenAI, AuthenticationError, InternalServerError, RateLimitError
from wires import Reply, Vendor, a_vendor, chat, refused, response

from dooers import WorkerConfig, WorkerEvent, WorkerSend

RUN = RunConfig(tracing_disabled=True)  # nothing goes out to OpenAI's traces
CUTS = [7, 1 << 20]


@function_tool
async def weather(city: str) -> dict[str, Any]:
    """How the weather is."""
    return {"city": city, "high": 27}


@function_tool
def broken() -> str:
    """Does not work."""
    raise KeyError("secret")


@function_tool(failure_error_function=None)
def fatal() -> str:
    """Does not work at all."""
    raise KeyError("secret")


@function_tool
def thing() -> Any:
    """Gives what has no JSON form."""
    return complex(1, 2)


def said(text: str, id: str = "msg_1") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": id, "role": "assistant", "status": "completed", "content": [part]}


def called(id: str, name: str, arguments: str = "{}") -> dict[str, Any]:
    call = {"type": "function_call", "id": f"fc_{id}", "status": "completed"}
    return {**call, "call_id": id, "name": name, "arguments": arguments}


class Asking:
    """Agents over a model of the vendor's; `by_chat` is the model by chat completions."""

    def __init__(self, vendor: Vendor, config: WorkerConfig) -> None:
        self.vendor = vendor
        self.config = config
        self.client = AsyncOpenAI(api_key="sk-test", base_url=f"{vendor.url}/v1", max_retries=1)
        self.model = OpenAIResponsesModel("gpt-test", self.client)
        self.by_chat = OpenAIChatCompletionsModel("gpt-test", self.client)
        self.result: Any = None

    def agent(self, *tools: Any, name: str = "Desk", **how: Any) -> Agent[Any]:
        return Agent(name=name, **{"model": self.model, **how}, tools=list(tools))

    def turn_of(
        self, agent: Agent[Any], author: str | None = None, **how: Any
    ) -> Callable[..., AsyncIterator[WorkerEvent]]:
        async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
            self.result = Runner.run_streamed(agent, "Well?", run_config=RUN, **how)
            async for event in openai_agents.answer(send, self.result, author):
                yield event

        return handler

    async def ask(self, agent: Agent[Any], *replies: bytes | Reply, **how: Any) -> Turn:
        self.vendor.replies += [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
        turn = await ask(self.config, self.turn_of(agent, **how))
        assert self.vendor.replies == []
        return turn


@pytest.fixture
async def asking(worker_config: WorkerConfig) -> AsyncIterator[Asking]:
    async with a_vendor() as vendor:
        asking = Asking(vendor, worker_config)
        async with asking.client:
            yield asking


BY_RESPONSES = [
    response(
        {"type": "reasoning", "id": "rs_1", "summary": []},
        said("I look."),
        called("a", "weather", '{"city": "Lisbon"}'),
        called("b", "weather", '{"city": "São Paulo"}'),
    ),
    response(said("Warm in both.")),
]
CALLS = [
    {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lis'}},
    {"index": 0, "function": {"arguments": 'bon"}'}},
    {"index": 1, "id": "b", "type": "function", "function": {"name": "weather", "arguments": '{"city": "São Paulo"}'}},
]
BY_CHAT = [chat("I ", "look.", calls=CALLS, finish="tool_calls"), chat("Warm ", "in ", "both.")]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["responses", "chat"])
async def test_texts_calls_and_results_come_in_the_order_in_which_they_happen(
    asking: Asking, kind: str, cut: int
) -> None:
    replies = [Reply(body, cut=cut) for body in (BY_RESPONSES if kind == "responses" else BY_CHAT)]
    model = asking.model if kind == "responses" else asking.by_chat
    turn = await asking.ask(asking.agent(weather, model=model), *replies)
    calls, results = [("call", "a"), ("call", "b")], [("result", "a"), ("result", "b")]
    assert turn.story == ["I look.", *calls, *results, "Warm in both."]
    assert (turn.pieces, turn.status) == (
        ["I", " look.", "Warm", " in", " both."] if kind == "responses" else ["I ", "look.", "Warm ", "in ", "both."],
        "succeeded",
    )
    assert [data.get("args") for _, data in turn.tools[:2]] == [{"city": "Lisbon"}, {"city": "São Paulo"}]
    assert [(data["name"], data["result"]["city"]) for _, data in turn.tools[2:]] == [
        ("weather", "Lisbon"),
        ("weather", "São Paulo"),
    ]
    assert turn.authors == ["Desk", "Desk"]
    assert asking.result.final_output == "Warm in both."


async def test_a_call_is_told_before_its_tool_has_run(asking: Asking) -> None:
    told = asyncio.Event()

    @function_tool
    async def slow() -> str:
        """Waits until its call has been seen."""
        await told.wait()
        return "at last"

    async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async for event in asking.turn_of(asking.agent(slow))(send):
            yield event
            if event.send_type == "tool_call":
                told.set()

    asking.vendor.replies = [Reply(response(called("s", "slow"))), Reply(response(said("Done.")))]
    assert (await ask(asking.config, handler)).story == [("call", "s"), ("result", "s"), "Done."]


async def test_whoever_is_handed_over_to_is_the_author_from_then_on(asking: Asking) -> None:
    agent = asking.agent(name="Desk", handoffs=[asking.agent(name="Spanish")])
    replies = [response(said("One moment."), called("h", "transfer_to_spanish")), response(said("Hola."))]
    turn = await asking.ask(agent, *replies)
    assert turn.story == ["One moment.", ("call", "h"), ("result", "h"), "Hola."]
    assert turn.authors == ["Desk", "Spanish"]
    assert turn.tools[1][1]["name"] == "transfer_to_spanish"
    assert turn.tools[1][1]["result"] == {"assistant": "Spanish"}
    turn = await asking.ask(agent, *replies, author="Ana")
    assert turn.authors == ["Ana", "Ana"]


async def test_an_agent_as_a_tool_is_one_call(asking: Asking) -> None:
    async def unheard(event: Any) -> None:
        """With this the inner agent asks its model for a stream, too."""

    inner = asking.agent(weather, name="Forecaster")
    agent = asking.agent(inner.as_tool("forecast", "Asks another agent.", run_config=RUN, on_stream=unheard))
    replies = [
        response(called("f", "forecast", '{"input": "Lisbon"}')),
        response(called("w", "weather", '{"city": "Lisbon"}')),
        response(said("Warm.")),
        response(said("They say warm.")),
    ]
    turn = await asking.ask(agent, *[Reply(reply) for reply in replies])
    assert turn.story == [("call", "f"), ("result", "f"), "They say warm."]
    assert turn.tools[1][1]["result"] == "Warm."


async def test_a_tool_of_openais_own_is_told_where_it_was_used(asking: Asking) -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    search["action"] = {"type": "search", "query": "Lisbon"}  # type: ignore[assignment]
    reply = response(said("I search."), search, said("Found it.", "msg_2"))
    turn = await asking.ask(asking.agent(WebSearchTool()), reply)
    assert turn.texts == ["I search.", "Found it."]
    assert [event.type for event in turn.stored] == ["message", "tool.transaction", "message"]
    assert turn.tools[0][1]["name"] == "web_search"
    assert turn.tools[0][1]["args"]["action"]["query"] == "Lisbon"
    assert turn.tools[0][1]["result"] == "completed"


async def test_an_answer_without_text_leaves_no_message(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(), response({**said(""), "content": []}))
    assert (turn.stored, turn.status) == ([], "succeeded")


async def test_a_refusal_is_text(asking: Asking) -> None:
    refusal = {**said(""), "content": [{"type": "refusal", "refusal": "No, I cannot."}]}
    turn = await asking.ask(asking.agent(), response(refusal))
    assert turn.texts == ["No, I cannot."]


async def test_a_tool_that_raises_is_told_to_the_model_unless_it_is_meant_to_end_the_run(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(broken), response(called("a", "broken")), response(said("Sorry.")))
    assert turn.story == [("call", "a"), ("result", "a"), "Sorry."]
    turn = await asking.ask(asking.agent(fatal), response(said("I try."), called("a", "fatal")))
    assert (turn.story[:2], turn.status) == (["I try.", ("call", "a")], "failed")
    assert isinstance(turn.error, UserError)
    assert "secret" not in str([event.content for event in turn.stored])


async def test_a_result_that_has_no_json_form_is_shown_as_the_model_is_told_of_it(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(thing), response(called("a", "thing")), response(said("Well.")))
    assert turn.tools[1][1]["result"] == "(1+2j)"


async def test_arguments_that_are_no_object_are_not_guessed(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(weather), response(called("a", "weather", '{"ci')), response(said("Sorry.")))
    assert turn.tools[0][1] == {"id": "a", "name": "weather", "args": {}}
    assert turn.story[-1] == "Sorry."


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("status", "error", "tries"),
    [(401, AuthenticationError, 1), (429, RateLimitError, 2), (500, InternalServerError, 2)],
)
async def test_a_request_that_is_refused_fails_the_turn(
    asking: Asking, status: int, error: type[Exception], tries: int
) -> None:
    reply = refused(status, {"error": {"message": "The key sk-test is wrong.", "type": "invalid", "code": "no"}})
    turn = await asking.ask(asking.agent(), *[reply] * tries)
    assert (turn.status, turn.pieces) == ("failed", [])
    assert isinstance(turn.error, error)
    assert "sk-test" not in str([event.content for event in turn.stored])


async def test_an_answer_that_fails_in_the_middle_fails_the_turn_and_keeps_what_was_said(asking: Asking) -> None:
    error = {"code": "server_error", "message": "The server had an error."}
    turn = await asking.ask(asking.agent(), response(said("It was a dark"), status="failed", error=error))
    assert (turn.texts[0], turn.status, type(turn.error)) == ("It was a dark", "failed", ModelBehaviorError)
    turn = await asking.ask(asking.agent(), response(said("It was a dark"), end=False))
    assert (turn.texts[0], turn.status, type(turn.error)) == ("It was a dark", "failed", ModelBehaviorError)
    half = chat("It was a dark", finish=None)[: -len("data: [DONE]\n\n")]
    turn = await asking.ask(asking.agent(model=asking.by_chat), Reply(half, breaks=True))
    assert (turn.texts[0], turn.cut_off[0], turn.status) == ("It was a dark", True, "failed")
    assert turn.error is not None


async def test_what_was_said_before_a_run_failed_is_read_by_the_slowest_reader(asking: Asking) -> None:
    asking.vendor.replies = [Reply(response(said("It was a dark"), called("a", "fatal")))]
    result = Runner.run_streamed(asking.agent(fatal), "Well?", run_config=RUN)
    read: list[Any] = []
    with pytest.raises(UserError):
        async for event in openai_agents.answer(WorkerSend(), result):
            if event.send_type != "stream":
                read.append(event.send_type)
                continue
            async for piece in event.data["source"]:
                read.append(piece)
                assert result.run_loop_task is not None
                await asyncio.wait({result.run_loop_task})
    assert read == ["It", " was", " a", " dark", "tool_call"]


async def test_a_run_that_goes_round_and_round_and_a_guardrail_fail_the_turn(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(weather), response(called("a", "weather", '{"city": "Lisbon"}')), max_turns=1)
    assert (turn.status, type(turn.error)) == ("failed", MaxTurnsExceeded)

    async def never(*_: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    guarded = asking.agent(input_guardrails=[InputGuardrail(never, run_in_parallel=False)])
    turn = await asking.ask(guarded)
    assert (turn.status, type(turn.error)) == ("failed", InputGuardrailTripwireTriggered)


@pytest.mark.parametrize("spoken", [True, False])
async def test_a_turn_that_is_stopped_lets_go_of_the_model(asking: Asking, spoken: bool) -> None:
    body = response(said("It was dark"))
    asking.vendor.replies = [Reply(body, first=body.index(b'" dark"') if spoken else 0, until=asyncio.Event())]
    begun = None if spoken else asking.vendor.called
    texts = await stop(asking.config, asking.turn_of(asking.agent()), begun)
    assert [text[:2] for text in texts] == (["It"] if spoken else [])
    async with asyncio.timeout(30):
        await asking.vendor.left.wait()
    assert asking.result.run_loop_task.done()


@pytest.mark.parametrize("how", ["stopped", "left"])
async def test_a_turn_that_ends_while_a_tool_runs_ends_the_tool(asking: Asking, how: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @function_tool
    async def endless() -> str:
        """Never comes back."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async for event in asking.turn_of(asking.agent(endless))(send):
            yield event
            if how == "left":  # the handler stands at a yield of its own, the adapter at that of the call
                await begun.wait()
                yield send.text("It runs.")

    asking.vendor.replies = [Reply(response(called("a", "endless")))]
    if how == "stopped":
        await stop(asking.config, handler, begun)
    else:
        await leave(asking.config, handler, "text")
    async with asyncio.timeout(30):
        await ended.wait()


def test_the_history_becomes_the_sdks_input() -> None:
    parts = [
        {"type": "text", "text": "Look."},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
    ]
    assert openai_agents.history([{"role": "user", "content": parts}, {"role": "assistant", "content": "Nice."}]) == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look."},
                {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="},
            ],
        },
        {"role": "assistant", "content": "Nice."},
    ]
