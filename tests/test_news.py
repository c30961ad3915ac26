"""News between processes: every kind comes back as it was written, and what is no news is a ValueError."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import T0, THREAD

from dooers.codec import dumps, loads
from dooers.models import Change, DocumentPart, ImagePart, Run, TextPart, Thread, ThreadEvent, User
from dooers.news import News, is_of, looks, read, write, written

# What may be in a model by the time it is stored: no NUL, no half of a character.
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=30)
MAYBE = st.none() | TEXTS
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-11))])
TIMES = st.datetimes(T0.replace(tzinfo=None, year=1971), T0.replace(tzinfo=None, year=2900), timezones=ZONES)
WHOLE = st.integers(-(2**63), 2**63 - 1)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=3)
USERS = st.builds(User, TEXTS, TEXTS, TEXTS, TEXTS, st.lists(TEXTS, max_size=2).map(tuple), TEXTS, TEXTS, TEXTS)
SIZES = st.none() | st.integers(0, 10**6)
PARTS = (
    st.builds(TextPart, TEXTS)
    | st.builds(ImagePart, TEXTS, mime_type=MAYBE, width=SIZES, height=SIZES, alt=MAYBE)
    | st.builds(DocumentPart, TEXTS, TEXTS, TEXTS, size_bytes=SIZES)
)
THREADS = st.builds(
    Thread,
    id=TEXTS,
    worker_id=TEXTS,
    organization_id=TEXTS,
    workspace_id=TEXTS,
    user_id=TEXTS,
    owner=USERS,
    title=MAYBE,
    metadata=st.none() | OBJECTS,
    created_at=TIMES,
    updated_at=TIMES,
    last_event_at=TIMES,
    last_seq=st.integers(0, 10**9),
)
EVENTS = st.builds(
    ThreadEvent,
    id=TEXTS,
    thread_id=TEXTS,
    type=st.sampled_from(["message", "tool.call", "tool.result", "tool.transaction"]),
    actor=st.sampled_from(["user", "assistant", "system", "tool"]),
    created_at=TIMES,
    author=MAYBE,
    user=st.none() | USERS,
    content=st.lists(PARTS, max_size=3),
    data=st.none() | OBJECTS,
    run_id=MAYBE,
    client_event_id=MAYBE,
    notice=st.booleans(),
    streaming=st.booleans(),
    seq=st.integers(0, 10**9),
    turn_seq=st.integers(0, 10**9),
)
RUNS = st.builds(
    Run,
    id=TEXTS,
    thread_id=TEXTS,
    agent_id=MAYBE,
    status=st.sampled_from(["running", "succeeded", "failed", "canceled"]),
    started_at=TIMES,
    ended_at=st.none() | TIMES,
    error=MAYBE,
    process_id=MAYBE,
)
CHANGES = st.builds(
    Change,
    thread=THREADS,
    created=st.booleans(),
    patch=st.just({}) | st.just({"title": "new", "updated_at": T0}),
    removes=st.booleans(),
    events=st.lists(EVENTS, max_size=3).map(tuple),
    runs=st.lists(RUNS, max_size=2).map(tuple),
)


@settings(deadline=None)
@given(change=CHANGES, sender=TEXTS)
def test_a_change_comes_back_as_what_people_are_told_of_it(change: Change, sender: str) -> None:
    news = News.of(change, sender)
    (again,) = read(write(news))
    assert again == news
    told = again.change
    assert (told.thread, told.events, told.runs) == (change.thread, change.events, change.runs)
    assert (told.created, bool(told.patch), told.removes) == (change.created, bool(change.patch), change.removes)


@settings(deadline=None)
@given(thread=THREADS, event=EVENTS, at=st.integers(0, 10**9), text=TEXTS)
def test_a_piece_of_a_message_comes_back(thread: Thread, event: ThreadEvent, at: int, text: str) -> None:
    news = News(kind="delta", sender="p", thread=thread, event=event, at=at, text=text)
    assert read(write(news)) == [news]


@settings(deadline=None)
@given(topic=TEXTS, worker_id=TEXTS, payload=OBJECTS, thread=st.none() | THREADS)
def test_a_frame_to_a_topic_comes_back(
    topic: str, worker_id: str, payload: dict[str, Any], thread: Thread | None
) -> None:
    news = News(
        kind="topic",
        sender="p",
        topic=topic,
        worker_id=worker_id,
        frame_type="settings.patch",
        payload=payload,
        thread=thread,
    )
    assert read(write(news)) == [news]


@settings(deadline=None)
@given(thread_id=MAYBE, run_id=MAYBE, before=st.none() | st.integers(0, 10**9))
def test_a_stop_and_a_look_come_back(thread_id: str | None, run_id: str | None, before: int | None) -> None:
    stop = News(kind="cancel", sender="p", thread_id=thread_id, run_id=run_id, before=before)
    look = News(kind="look", sender="p", thread_id=thread_id)
    assert [*read(write(stop)), *read(write(look).encode())] == [stop, look]


@pytest.mark.parametrize("kind", ["image", "text", "document"])
def test_a_part_without_any_optional_field_keeps_its_kind(kind: str) -> None:
    part: Any = {"image": ImagePart("u"), "text": TextPart(""), "document": DocumentPart("u", "", "")}[kind]
    event = ThreadEvent(id="e", thread_id="t", type="message", actor="user", created_at=T0, content=[part])
    (again,) = read(write(News(kind="delta", sender="p", event_id=event.id, thread=THREAD, event=event)))
    assert again.event == event


# ---------------------------------------------------------------- what is no news

NEWS = News.of(
    Change(
        thread=evolve(THREAD, metadata={"a": [1, None]}),
        created=True,
        events=(
            ThreadEvent(
                id="e",
                thread_id="thread-1",
                type="message",
                actor="user",
                created_at=T0,
                user=User("ada"),
                content=[TextPart("hi"), ImagePart("u", width=1)],
                seq=1,
                turn_seq=1,
            ),
        ),
        runs=(Run(id="r", thread_id="thread-1", started_at=T0),),
    ),
    "p",
)


@settings(deadline=None)
@given(JSON.map(dumps) | st.text() | st.binary())
def test_what_is_no_news_is_a_value_error_and_nothing_else(garbage: str | bytes) -> None:
    with pytest.raises(ValueError):
        read(garbage)


@settings(deadline=None)
@given(st.data())
def test_news_of_which_a_part_was_replaced_are_news_or_a_value_error(data: st.DataObject) -> None:
    whole = loads(write(NEWS))
    holder, key = data.draw(st.sampled_from(list(_places(whole))))
    holder[key] = data.draw(JSON)
    with suppress(ValueError):
        assert all(isinstance(news, News) for news in read(dumps(whole)))


@settings(deadline=None)
@given(st.integers(0, len(write(NEWS)) - 1))
def test_news_that_were_cut_off_are_a_value_error(length: int) -> None:
    with pytest.raises(ValueError):
        read(write(NEWS)[:length])


def test_a_change_without_its_thread_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="without its thread"):
        _ = read('{"kind":"change","sender":"p"}')[0].change


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


# ---------------------------------------------------------------- what only the database can complete


ROW = {
    "id": THREAD.id,
    "worker_id": "w",
    "organization_id": "o",
    "workspace_id": "s",
    "user_id": "u",
    "owner": {"user_id": "u"},
    "title": None,
    "metadata": {"a": [1]},
    "created_at": "2026-01-01T12:00:00+02:00",
    "updated_at": "2026-01-01T12:00:00.1+02:00",
    "last_event_at": "2026-01-01T12:00:00.12+02:00",
    "last_seq": 7,
}


def an_event(event_id: str, **more: Any) -> ThreadEvent:
    return ThreadEvent(id=event_id, thread_id=THREAD.id, type="message", actor="user", created_at=T0, **more)


def told(row: dict[str, Any], *changes: Change) -> list[Change]:
    return [news.change for news in read(f"{dumps(row)}\n{written(changes, 'p')}")]


def test_events_are_counted_on_from_the_row_that_was_there_before_them() -> None:
    first, second, third = told(
        ROW,
        Change(thread=THREAD, events=(an_event("a"), an_event("b", turn_seq=5))),
        Change(thread=THREAD, patch={"title": "new", "metadata": None, "updated_at": T0}),
        Change(thread=THREAD, events=(an_event("c"),)),
    )
    assert [(event.id, event.seq, event.turn_seq) for event in first.events] == [("a", 8, 8), ("b", 9, 5)]
    assert [(event.id, event.seq, event.turn_seq) for event in third.events] == [("c", 10, 10)]
    assert (first.thread.title, first.thread.metadata, first.thread.last_seq) == (None, {"a": [1]}, 9)
    assert (second.thread.title, second.thread.metadata, second.thread.updated_at) == ("new", None, T0)
    assert (third.thread.title, third.thread.last_seq, third.created) == ("new", 10, False)
    assert first.thread.created_at == datetime(2026, 1, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("created", [True, False])
def test_events_of_a_thread_that_may_be_new_are_counted_back_from_its_row_after_them(created: bool) -> None:
    (change,) = told({**ROW, "created": created}, Change(thread=THREAD, opens=True, events=(an_event("a"),)))
    assert [event.seq for event in change.events] == [7]
    assert (change.created, change.thread.last_seq, change.thread.metadata) == (created, 7, {"a": [1]})


def test_what_is_too_large_is_something_to_look_at_with_what_goes_without_reading() -> None:
    large = Change(thread=THREAD, events=(an_event("a", content=[TextPart("x" * 9000)], data={"y": "z" * 9000}),))
    text = looks([large], "p", 7900)
    (news,) = read(text)
    assert (news.kind, news.thread_id, [event.content for event in news.events]) == ("look", THREAD.id, [[]])
    assert len(text) < 2000


def test_of_a_thread_that_may_have_changed_itself_nothing_is_told_but_that() -> None:
    for change in (
        Change(thread=THREAD, opens=True, events=(an_event("a"),)),
        Change(thread=THREAD, patch={"metadata": {"x": "y" * 9000}}),
        Change(thread=THREAD, events=tuple(an_event(f"event-{n}") for n in range(200))),
    ):
        (news,) = read(looks([change], "p", 7900))
        assert news == News(kind="look", sender="p", thread_id=THREAD.id)


def test_a_deleted_thread_cannot_be_looked_at_so_its_end_is_told_whatever_its_size() -> None:
    thread = evolve(THREAD, metadata={"x": "y" * 9000})
    text = looks([Change(thread=thread, removes=True)], "p", 7900)
    (news,) = read(text)
    assert (news.change.removes, news.change.thread) == (True, evolve(thread, metadata=None))
    assert len(text) < 2000


def test_who_said_a_text_of_the_store_is_found_out_without_reading_it() -> None:
    row = dumps({**ROW, "metadata": {"sender": "p"}})
    change = Change(thread=THREAD, events=(an_event("a", data={"sender": "q", "kind": "change"}),))
    for text in (f"{row}\n{written([change, change], 'p')}", looks([change], "p", 7900)):
        assert is_of(text, "p")
        assert not is_of(text, "q")
        assert {news.sender for news in read(text)} == {"p"}
