"""LangGraph, with LangChain's models and the vendors' own libraries below them, asks a fake; the adapter makes a turn of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asking import WHO, Turn, ask, leave, stop
from dooers_contrib import langgraph
from dooers_contrib.answers import AnswerError
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from openai import AuthenticationError, DefaultAsyncHttpxClient, InternalServerError, RateLimitError
from pydantic import SecretStr
from wires import Reply, Vendor, a_vendor, anthropic, chat, refused, sse, tool_use

from dooers import WorkerConfig, WorkerEvent, WorkerSend, WorkerServer

# With a history, none of which may be told again.
HISTORY = [("user", "Hello."), ("assistant", "I am here."), ("user", "Well?")]
INPUT: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in HISTORY]}
CUTS = [7, 1 << 20]


@tool
async def weather(city: str) -> dict[str, Any]:
    """How the weather is."""
    return {"city": city, "high": 27}


@tool
def broken() -> str:
    """Does not work."""
    raise KeyError("secret")


def call(index: int, id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any], text: str = "") -> bytes:
    return chat(*([text] if text else []), calls=calls, finish="tool_calls")


CALLS = [
    call(0, "a", "weather", '{"city": "Lis'),
    call(1, "b", "weather", ""),
    {"index": 0, "function": {"arguments": 'bon"}'}},
    {"index": 1, "function": {"arguments": '{"city": "São Paulo"}'}},
]


class Asking:
    """Graphs over a model of the vendor's."""

    def __init__(self, vendor: Vendor, config: WorkerConfig) -> None:
        self.vendor = vendor
        self.config = config
        key = SecretStr("sk-test")
        # A client of its own: LangChain keeps those that it makes for the whole process.
        self.http = DefaultAsyncHttpxClient()
        self.model = ChatOpenAI(
            model="gpt-test", api_key=key, base_url=f"{vendor.url}/v1", max_retries=1, http_async_client=self.http
        )
        self.claude = ChatAnthropic(model_name="claude-test", api_key=key, base_url=vendor.url, timeout=30, stop=None)

    def agent(self, *tools: BaseTool, model: Any = None, **how: Any) -> Any:
        return create_agent(model or self.model, list(tools), **how)

    def turn_of(self, graph: Any, author: str | None = None, **how: Any) -> Callable[..., AsyncIterator[WorkerEvent]]:
        how = how or {"stream_mode": "messages"}

        async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
            async for event in langgraph.answer(send, graph.astream(INPUT, **how), author):
                yield event

        return handler

    async def ask(self, graph: Any, *replies: bytes | Reply, **how: Any) -> Turn:
        self.vendor.replies += [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
        turn = await ask(self.config, self.turn_of(graph, **how))
        assert self.vendor.replies == []
        return turn


@pytest.fixture
async def asking(worker_config: WorkerConfig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asking]:
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "LANGCHAIN_TRACING"):
        monkeypatch.delenv(name, raising=False)  # nothing goes out to LangSmith
    async with a_vendor() as vendor:
        asking = Asking(vendor, worker_config)
        yield asking
        await asking.http.aclose()
        await asking.claude._async_client.close()


@pytest.mark.parametrize("cut", CUTS)
async def test_texts_calls_and_results_come_in_the_order_in_which_they_happen(asking: Asking, cut: int) -> None:
    replies = [Reply(calling(*CALLS, text="I look."), cut=cut), Reply(chat("Warm ", "in ", "both."), cut=cut)]
    turn = await asking.ask(asking.agent(weather), *replies)
    calls, results = [("call", "a"), ("call", "b")], [("result", "a"), ("result", "b")]
    assert turn.story[:3] == ["I look.", *calls]
    assert sorted(turn.story[3:5]) == results  # as each is there: the tools run side by side
    assert (turn.story[5:], turn.pieces, turn.status) == (
        ["Warm in both."],
        ["I look.", "Warm ", "in ", "both."],
        "succeeded",
    )
    assert [data["args"] for kind, data in turn.tools if kind == "tool.call"] == [
        {"city": "Lisbon"},
        {"city": "São Paulo"},
    ]
    found = {data["id"]: (data["name"], data["result"]) for kind, data in turn.tools if kind == "tool.result"}
    assert found["b"] == ("weather", {"city": "São Paulo", "high": 27})
    assert turn.authors == ["Assistant", "Assistant"]  # the name that the worker gives


async def test_anthropics_blocks_are_read_as_well(asking: Asking) -> None:
    thought = {"type": "thinking", "thinking": "", "deltas": [{"type": "thinking_delta", "thinking": "Hm."}]}
    first = anthropic(thought, "I look.", tool_use("a", "weather", '{"ci', 'ty": "Lisbon"}'), stop="tool_use")
    graph = asking.agent(weather, model=asking.claude)
    turn = await asking.ask(graph, Reply(first, cut=7), anthropic("Warm there."))
    assert turn.story == ["I look.", ("call", "a"), ("result", "a"), "Warm there."]
    assert turn.tools[0][1]["args"] == {"city": "Lisbon"}
    assert turn.pieces == ["I", " look.", "Warm", " there."]


async def test_a_result_is_told_when_it_is_there_whatever_another_tool_does(asking: Asking) -> None:
    told = asyncio.Event()

    @tool
    async def slow() -> str:
        """Waits until the other result has been seen."""
        await told.wait()
        return "at last"

    asking.vendor.replies = [Reply(calling(call(0, "s", "slow", "{}"), call(1, "w", "weather", '{"city": "Lisbon"}')))]
    asking.vendor.replies += [Reply(chat("Done."))]
    graph = asking.agent(weather, slow)

    async def handler(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async for event in langgraph.answer(send, graph.astream(INPUT, stream_mode="messages")):
            yield event
            if event.send_type == "tool_result":
                told.set()

    turn = await ask(asking.config, handler)
    assert turn.story == [("call", "s"), ("call", "w"), ("result", "w"), ("result", "s"), "Done."]


@pytest.mark.parametrize(
    "how",
    [
        {"stream_mode": "messages"},
        {"stream_mode": "messages", "subgraphs": True},
        {"stream_mode": ["updates", "messages"]},
        {"stream_mode": ["messages", "values", "custom"], "subgraphs": True},
        {"stream_mode": ["messages", "updates"], "version": "v2"},
    ],
)
async def test_every_form_of_the_stream_is_understood(asking: Asking, how: dict[str, Any]) -> None:
    first = calling(call(0, "a", "weather", '{"city": "Lisbon"}'))
    turn = await asking.ask(asking.agent(weather), first, chat("Warm."), **how)
    assert turn.story == [("call", "a"), ("result", "a"), "Warm."]


async def test_a_stream_without_messages_says_what_it_needs(asking: Asking) -> None:
    graph = asking.agent(model=FakeMessagesListChatModel(responses=[AIMessage("Hello.")]))
    turn = await asking.ask(graph, stream_mode="values")
    assert (turn.texts, turn.status) == ([], "failed")
    assert isinstance(turn.error, AnswerError)
    assert 'stream_mode="messages"' in str(turn.error)


async def test_an_agent_that_has_a_name_is_the_author(asking: Asking) -> None:
    assert (await asking.ask(asking.agent(name="Weather desk"), chat("Hello."))).authors == ["Weather desk"]
    turn = await asking.ask(asking.agent(name="Weather desk"), chat("Hello."), author="Ana", stream_mode="messages")
    assert turn.authors == ["Ana"]


async def test_an_agent_within_a_tool_is_heard_with_subgraphs_and_not_without(asking: Asking) -> None:
    inner = asking.agent(weather, name="Forecaster")

    @tool
    async def forecast(city: str) -> str:
        """Asks another agent."""
        found = await inner.ainvoke({"messages": [{"role": "user", "content": city}]})
        return str(found["messages"][-1].text)

    replies = [
        calling(call(0, "f", "forecast", '{"city": "Lisbon"}')),
        calling(call(0, "w", "weather", '{"city": "Lisbon"}')),
        chat("Warm."),
        chat("They say warm."),
    ]
    graph = asking.agent(forecast, name="Desk")
    turn = await asking.ask(graph, *replies, stream_mode="messages", subgraphs=True)
    assert turn.story == [
        ("call", "f"),
        ("call", "w"),
        ("result", "w"),
        "Warm.",
        ("result", "f"),
        "They say warm.",
    ]
    assert turn.authors == ["Forecaster", "Desk"]
    turn = await asking.ask(graph, *replies, stream_mode="messages")
    assert turn.story == [("call", "f"), ("result", "f"), "They say warm."]


async def test_a_graph_within_a_graph_tells_nothing_twice(asking: Asking) -> None:
    inner = asking.agent(weather, name="Forecaster")
    graph = StateGraph(MessagesState)
    graph.add_node("inner", inner)
    graph.add_edge(START, "inner")
    graph.add_edge("inner", END)
    replies = [calling(call(0, "w", "weather", '{"city": "Lisbon"}')), chat("Warm.")]
    turn = await asking.ask(graph.compile(), *replies, stream_mode="messages", subgraphs=True)
    assert turn.story == [("call", "w"), ("result", "w"), "Warm."]


async def test_agents_that_talk_at_the_same_time_are_heard_one_after_the_other(asking: Asking) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    graph = StateGraph(MessagesState)

    def node(name: str, mine: asyncio.Event, others: asyncio.Event) -> Any:
        async def speak(state: MessagesState) -> dict[str, Any]:
            async for chunk in asking.model.astream(f"You are {name}."):
                if chunk.text:  # the other has said something too before this one goes on
                    mine.set()
                    await others.wait()
            return {}

        return speak

    graph.add_node("one", node("one", first, second))
    graph.add_node("two", node("two", second, first))
    for name in ("one", "two"):
        graph.add_edge(START, name)
        graph.add_edge(name, END)
    turn = await asking.ask(graph.compile(), chat("To ", "be ", "or."), chat("To ", "be ", "or."))
    assert turn.texts == ["To be or.", "To be or."]
    assert turn.status == "succeeded"


async def test_a_model_that_breaks_off_does_not_keep_the_one_that_stands_in_for_it_from_being_heard_live(
    asking: Asking,
) -> None:
    overloaded = sse([{"error": {"message": "Overloaded.", "code": 429}}])
    broken_off = chat("It was", finish=None).replace(b"data: [DONE]\n\n", overloaded)
    whole, heard = chat("Here ", "it is."), asyncio.Event()
    asking.vendor.replies = [Reply(broken_off), Reply(whole, first=whole.index(b"Here ") + 80, until=heard)]
    graph = asking.agent(middleware=[ModelFallbackMiddleware(asking.model)])
    worker = WorkerServer(asking.config)

    @worker.handler
    async def agent(send: WorkerSend) -> AsyncIterator[WorkerEvent]:
        async for event in langgraph.answer(send, graph.astream(INPUT, stream_mode="messages")):
            yield event

    async with worker.lifespan(), asyncio.timeout(30):
        stream = await worker.dispatch(message="Well?", **WHO)
        texts = []
        async for event in stream.events(deltas=True):
            if event.data["text"] == "Here ":
                heard.set()
            if event.send_type == "text":
                texts.append(event.data["text"])
    assert texts == ["It was", "Here it is."]


async def test_models_that_are_asked_at_once_in_one_step_are_not_cut_to_pieces(asking: Asking) -> None:
    turns = [asyncio.Event() for _ in range(2)]

    async def speak(state: MessagesState) -> dict[str, Any]:
        async def one(mine: asyncio.Event, others: asyncio.Event) -> None:
            async for chunk in asking.model.astream("Speak."):
                if chunk.text:
                    mine.set()
                    await others.wait()
                    others.clear()
                    mine.set()

        await asyncio.gather(one(*turns), one(*reversed(turns)))
        return {}

    graph = StateGraph(MessagesState)
    graph.add_node("both", speak)
    graph.add_edge(START, "both")
    words = [f"{number} " for number in range(9)]
    turn = await asking.ask(graph.compile(), chat(*words), chat(*words))
    assert len(turn.texts) <= 3
    assert sorted("".join(turn.texts)) == sorted("".join(words) * 2)


async def test_a_model_that_does_not_stream_is_told_at_once(asking: Asking) -> None:
    call = {"name": "weather", "args": {"city": "Lisbon"}, "id": "a"}
    bad = {"name": "weather", "args": '{"ci', "id": "b", "error": None, "type": "invalid_tool_call"}

    class Whole(FakeMessagesListChatModel):
        def bind_tools(self, *tools: Any, **how: Any) -> Any:
            return self

    said = [AIMessage("I look.", tool_calls=[call], invalid_tool_calls=[bad]), AIMessage("Warm.")]
    turn = await asking.ask(asking.agent(weather, model=Whole(responses=list(said))))
    assert turn.story[:3] == ["I look.", ("call", "a"), ("call", "b")]
    assert turn.tools[1][1]["args"] == {}
    assert "Warm." in turn.story


async def test_an_agent_that_says_nothing_leaves_no_message(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(), chat())
    assert (turn.stored, turn.status) == ([], "succeeded")


async def test_a_call_that_does_not_fit_has_its_error_as_the_result(asking: Asking) -> None:
    first = calling(call(0, "a", "weather", '{"town": "Lisbon"}'))
    turn = await asking.ask(asking.agent(weather), first, chat("Sorry."))
    assert turn.story == [("call", "a"), ("result", "a"), "Sorry."]
    assert list(turn.tools[1][1]["result"]) == ["error"]


async def test_what_a_tool_raises_ends_the_turn(asking: Asking) -> None:
    turn = await asking.ask(asking.agent(broken), calling(call(0, "a", "broken", "{}"), text="I look."))
    assert (turn.story[:2], turn.status) == (["I look.", ("call", "a")], "failed")
    assert isinstance(turn.error, KeyError)
    assert "secret" not in str([event.content for event in turn.stored])


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


async def test_a_connection_that_breaks_fails_the_turn_and_keeps_what_was_said(asking: Asking) -> None:
    half = chat("It was a dark", finish=None)[: -len("data: [DONE]\n\n")]
    first = calling(call(0, "a", "weather", '{"city": "Lisbon"}'), text="I look.")
    turn = await asking.ask(asking.agent(weather), first, Reply(half, breaks=True))
    assert turn.story[:4] == ["I look.", ("call", "a"), ("result", "a"), "It was a dark"]
    assert (turn.cut_off[:2], turn.status) == ([False, True], "failed")
    assert turn.error is not None


@pytest.mark.parametrize("spoken", [True, False])
async def test_a_turn_that_is_stopped_lets_go_of_the_model(asking: Asking, spoken: bool) -> None:
    body = chat("It was ", "a dark")
    first = body.index(b"a dark") if spoken else 0
    asking.vendor.replies = [Reply(body, first=first, until=asyncio.Event())]
    texts = await stop(asking.config, asking.turn_of(asking.agent()), None if spoken else asking.vendor.called)
    assert texts == (["It was "] if spoken else [])
    async with asyncio.timeout(30):
        await asking.vendor.left.wait()


@pytest.mark.parametrize("how", ["stopped", "left"])
async def test_a_turn_that_ends_while_a_tool_runs_ends_the_tool(asking: Asking, how: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @tool
    async def endless() -> str:
        """Never comes back."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    calls = [call(0, "a", "endless", "{}"), call(1, "b", "weather", '{"city": "Lisbon"}')]
    asking.vendor.replies = [Reply(calling(*calls))]
    handler = asking.turn_of(asking.agent(weather, endless))
    if how == "stopped":
        await stop(asking.config, handler, begun)
    else:  # the adapter stands at the yield of the other tool's result
        await leave(asking.config, handler, "tool_result")
    async with asyncio.timeout(30):
        await ended.wait()
