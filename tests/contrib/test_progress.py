"""What an agent tells becomes messages and events in order, and whoever stops reading ends it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from dooers_contrib.progress import Done, Part, Said, progress, readable

from dooers import WorkerSend

send = WorkerSend()


class Telling:
    """Tells of parts, and knows whether somebody ended it."""

    def __init__(self, *parts: Part | Exception) -> None:
        self.parts = parts
        self.ended = False

    @property
    def running(self) -> bool:
        return not self.ended

    async def __call__(self) -> AsyncGenerator[Part, None]:
        try:
            for part in self.parts:
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.ended = True


async def pieces(source: AsyncIterator[str]) -> list[str]:
    return [piece async for piece in source]


async def story(telling: Telling) -> list[Any]:
    told: list[Any] = []
    async for event in progress(send, telling()):
        told.append(await pieces(event.data["source"]) if event.send_type == "stream" else event.data["name"])
    assert telling.ended
    return told


async def test_texts_and_what_is_between_them_come_in_order() -> None:
    parts: list[Part] = [Said(1, "a"), Said(1, "b"), Done(1), send.tool_call("look"), Done(2), Said(3, "c")]
    assert await story(Telling(*parts)) == [["a", "b"], "look", ["c"]]


async def test_what_happens_while_a_message_is_written_waits_for_its_end() -> None:
    call = send.tool_call("look")
    parts: list[Part] = [
        Said(1, "a"),
        Said(2, "x"),
        call,
        Said(1, "b"),
        Said(2, "y"),
        Done(2),
        Done(1),
        Said(3, "c"),
        Done(3),
    ]
    assert await story(Telling(*parts)) == [["a", "b"], ["x", "y"], "look", ["c"]]


async def test_a_message_that_began_while_another_was_written_goes_on_live() -> None:
    parts: list[Part] = [
        Said(1, "a"),
        Said(2, "x"),
        Done(1),
        Said(2, "y"),
        Said(3, "m"),
        Said(2, "z"),
        Done(2),
        Done(3),
    ]
    assert await story(Telling(*parts)) == [["a"], ["x", "y", "z"], ["m"]]


async def test_messages_that_never_end_end_with_the_run() -> None:
    assert await story(Telling(Said(1, "a"), Said(2, "x"), Said(1, "b"))) == [["a", "b"], ["x"]]
    assert await story(Telling()) == []


async def test_what_goes_wrong_comes_after_what_was_said() -> None:
    telling = Telling(Said(1, "a"), KeyError("no"))
    read = []
    with pytest.raises(KeyError):
        async for event in progress(send, telling()):
            async for piece in event.data["source"]:
                read.append(piece)
    assert (read, telling.ended) == (["a"], True)


async def test_a_text_that_is_closed_before_its_end_ends_the_run_and_one_that_is_whole_does_not() -> None:
    telling = Telling(Said(1, "a"), Done(1), Said(2, "b"), Said(2, "c"))
    events = progress(send, telling())
    source = (await anext(events)).data["source"]
    assert await pieces(source) == ["a"]
    await source.aclose()
    assert telling.running
    source = (await anext(events)).data["source"]
    await source.aclose()
    assert telling.ended
    assert [event async for event in events] == []


async def test_whoever_leaves_between_two_events_ends_the_run() -> None:
    telling = Telling(send.tool_call("look"), Said(1, "a"))
    events = progress(send, telling())
    await anext(events)
    await events.aclose()
    assert telling.ended


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ('{"a": 1}', {"a": 1}),
        (" [1, 2]", [1, 2]),
        ("27 degrees", "27 degrees"),
        ("27", "27"),
        ("[sic", "[sic"),
        ("", ""),
        ("[" * 100_000, "[" * 100_000),
        ([{"type": "text", "text": "hi"}], [{"type": "text", "text": "hi"}]),
    ],
)
def test_a_result_is_shown_as_the_object_that_it_is(told: Any, shown: Any) -> None:
    assert readable(told) == shown
