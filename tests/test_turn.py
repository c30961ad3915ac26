"""A turn as a value: a list of yielded events in, a list of Changes out, with a clock that stands still and ids that count."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

import pytest
from attrs import define, evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from dooers import Secret
from dooers.access import scope_of
from dooers.exceptions import InvalidValueError
from dooers.models import Change, DocumentPart, Identity, ImagePart, Run, TextPart, Thread, ThreadEvent
from dooers.send import SendType, WorkerEvent, WorkerSend
from dooers.turn import STEPS, Outcome, Turn, as_event, closing, grown, opening, repeat_key, sprout, step

START = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
ANN = Identity(organization_id="o", workspace_id="s", user_id="ann", user_name="Ann")
SCOPE = scope_of(ANN, "w", private=False)
send = WorkerSend()


@define
class FixedClock:
    """A time that only moves when told, and ids that count."""

    at: datetime = START
    made: int = 0

    def now(self) -> datetime:
        return self.at

    def new_id(self) -> str:
        self.made += 1
        return f"id{self.made}"

    def pass_by(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def thread() -> Thread:
    return opening(ANN, SCOPE, [TextPart("hi")], FixedClock(), thread_id="t", create=True).thread


def turn(run: Run | None = None) -> Turn:
    return Turn(thread=thread(), event_id="m7", seq=7, assistant_name="Assistant", run=run)


def play(events: Sequence[WorkerEvent], begun: Turn | None = None) -> tuple[Turn, list[Change | None]]:
    """The turn after these events, and the Change of each."""
    clock, now, changes = FixedClock(), begun or turn(), []
    for event in events:
        now, change = step(now, event, clock)
        changes.append(change)
        clock.pass_by(1)
    return now, changes


def only_event(*events: WorkerEvent) -> ThreadEvent:
    _, changes = play(events)
    change = changes[-1]
    assert change is not None
    (event,) = change.events
    return event


# ---------------------------------------------------------------- a message that is streamed


@pytest.mark.parametrize(("author", "shown"), [(None, "Assistant"), ("Bot", "Bot"), ("", "")])
def test_a_streamed_message_begins_as_a_message_without_a_word_or_a_number(author: str | None, shown: str) -> None:
    event = sprout(turn(), author, FixedClock())
    assert (event.id, event.thread_id, event.type, event.actor, event.author) == (
        "id1",
        "t",
        "message",
        "assistant",
        shown,
    )
    assert (event.content, event.data, event.streaming, event.seq, event.turn_seq) == ([], None, True, 0, 7)
    assert (event.run_id, event.created_at, event.notice) == (None, START, False)


def test_a_streamed_message_belongs_to_the_run_in_which_it_began() -> None:
    run = Run(id="r", thread_id="t", started_at=START)
    assert sprout(turn(run), None, FixedClock()).run_id == "r"


@pytest.mark.parametrize(("incomplete", "data"), [(False, None), (True, {"incomplete": True})])
def test_a_streamed_message_is_stored_as_one_whole_that_says_when_it_was_cut_off(
    incomplete: bool, data: dict[str, Any] | None
) -> None:
    begun = sprout(turn(), None, FixedClock())
    change = grown(turn(), begun, "Hello", incomplete=incomplete)
    assert (change.thread, change.runs, change.patch) == (thread(), (), {})
    assert change.events == (evolve(begun, content=[TextPart("Hello")], streaming=False, data=data),)


# ---------------------------------------------------------------- opening


def test_a_message_without_a_thread_opens_one() -> None:
    clock = FixedClock()
    change = opening(ANN, SCOPE, [TextPart("hi")], clock, thread_id=None, create=False, title="Title")
    assert change.opens
    assert change.guard == SCOPE
    made = change.thread
    assert (made.id, made.worker_id, made.organization_id, made.workspace_id, made.user_id) == (
        "id1",
        "w",
        "o",
        "s",
        "ann",
    )
    assert (made.owner, made.title, made.metadata, made.last_seq) == (ANN.user, "Title", None, 0)
    assert made.created_at == made.updated_at == made.last_event_at == START
    (event,) = change.events
    assert (event.id, event.thread_id, event.type, event.actor) == ("id2", "id1", "message", "user")
    assert (event.user, event.content, event.created_at) == (ANN.user, [TextPart("hi")], START)
    assert (event.author, event.run_id, event.seq, event.turn_seq, event.notice) == (None, None, 0, 0, False)
    assert (change.runs, change.patch, change.removes, change.repeat_key) == ((), {}, False, None)


@pytest.mark.parametrize("create", [True, False])
def test_a_given_thread_is_opened_only_where_that_is_allowed(create: bool) -> None:
    change = opening(ANN, SCOPE, [], FixedClock(), thread_id="t", create=create)
    assert (change.thread.id, change.events[0].thread_id, change.opens) == ("t", "t", create)


def test_an_empty_thread_id_is_an_id_and_not_none() -> None:
    change = opening(ANN, SCOPE, [], FixedClock(), thread_id="", create=False)
    assert (change.thread.id, change.opens) == ("", False)


def test_a_message_carries_its_data_and_its_keys() -> None:
    change = opening(
        ANN, SCOPE, [], FixedClock(), thread_id=None, create=False, data={"a": 1}, client_event_id="", repeat_key="k"
    )
    assert (change.events[0].data, change.events[0].client_event_id, change.repeat_key) == ({"a": 1}, "", "k")


def test_a_repeat_key_is_the_same_for_the_same_message_only() -> None:
    bob = evolve(ANN, user_id="bob")
    keys = [
        repeat_key("client", "w", ANN, "1"),
        repeat_key("dispatch", "w", ANN, "1"),
        repeat_key("client", "w2", ANN, "1"),
        repeat_key("client", "w", bob, "1"),
        repeat_key("client", "w", ANN, "2"),
        repeat_key("client", "w", ANN, ""),
        repeat_key("client", "w", evolve(ANN, organization_id="os", workspace_id=""), "1"),
        repeat_key("client", "w", evolve(ANN, workspace_id="x"), "1"),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == repeat_key("client", "w", evolve(ANN, user_name="Ann B", user_role="admin"), "1")


def test_a_repeat_key_can_be_made_of_any_text() -> None:
    assert len(repeat_key("client", "w", ANN, "half \ud83d")) == 64


# ---------------------------------------------------------------- each kind of event


def test_there_is_a_step_for_every_kind_of_event_but_a_stream_and_its_pieces() -> None:
    assert set(STEPS) == set(get_args(SendType)) - {"stream", "delta"}


@pytest.mark.parametrize(
    ("event", "part"),
    [
        (send.text("hi"), TextPart("hi")),
        (send.text(""), TextPart("")),
        (send.image("https://x/u", "image/png", "alt"), ImagePart("https://x/u", "image/png", alt="alt")),
        (send.image("https://x/u"), ImagePart("https://x/u")),
        (send.document("https://x/u", "f", "m"), DocumentPart("https://x/u", "f", "m")),
    ],
)
def test_a_message_becomes_one_entry_by_the_assistant(event: WorkerEvent, part: Any) -> None:
    entry = only_event(event)
    assert (entry.type, entry.actor, entry.author, entry.content) == ("message", "assistant", "Assistant", [part])
    assert (entry.thread_id, entry.run_id, entry.turn_seq, entry.user, entry.data) == ("t", None, 7, None, None)
    assert not entry.notice


@pytest.mark.parametrize(
    "make",
    [
        lambda author: send.text("x", author=author),
        lambda author: send.image("https://x/u", author=author),
        lambda author: send.document("https://x/u", "f", "m", author),
    ],
)
def test_an_author_replaces_the_assistants_name_also_when_it_is_empty(make: Any) -> None:
    assert only_event(make("Bot")).author == "Bot"
    assert only_event(make("")).author == ""
    assert only_event(make(None)).author == "Assistant"


@pytest.mark.parametrize(
    ("event", "kind", "data"),
    [
        (
            send.tool_call("t", {"a": 1}, "Tool", "x"),
            "tool.call",
            {"id": "x", "name": "t", "display_name": "Tool", "args": {"a": 1}},
        ),
        (send.tool_call("t", id=""), "tool.call", {"id": "", "name": "t", "args": {}}),
        (send.tool_result("t", None, id="x"), "tool.result", {"id": "x", "name": "t", "result": None}),
        (send.tool_result("t", 0, {}, id="x"), "tool.result", {"id": "x", "name": "t", "args": {}, "result": 0}),
        (send.tool_transaction("t", id="x"), "tool.transaction", {"id": "x", "name": "t", "args": {}, "result": None}),
    ],
)
def test_a_tool_event_keeps_what_was_given_and_no_nulls_but_a_result(
    event: WorkerEvent, kind: str, data: dict[str, Any]
) -> None:
    entry = only_event(event)
    assert (entry.type, entry.actor, entry.author, entry.content, entry.data) == (kind, "assistant", None, [], data)


@pytest.mark.parametrize("event", [send.tool_call("t"), send.tool_result("t", 1), send.tool_transaction("t")])
def test_a_tool_event_without_an_id_gets_one(event: WorkerEvent) -> None:
    entry = only_event(event)
    assert entry.data is not None
    assert entry.data["id"].startswith("id")
    assert entry.data["id"] != entry.id
    assert event.data["id"] is None


def test_a_step_does_not_change_the_event_it_is_given() -> None:
    event = send.tool_call("t", {"a": 1})
    before = dict(event.data)
    play([event, event])
    assert event.data == before


@pytest.mark.parametrize(
    ("event", "patch"),
    [
        (send.update_thread(title="T"), {"title": "T", "updated_at": START}),
        (send.update_thread(title=None), {"title": None, "updated_at": START}),
        (send.update_thread(title="T", metadata={"a": 1}), {"title": "T", "metadata": {"a": 1}, "updated_at": START}),
    ],
)
def test_a_thread_is_patched_by_the_columns_given(event: WorkerEvent, patch: dict[str, Any]) -> None:
    _, (change,) = play([event])
    assert change is not None
    assert (change.patch, change.events, change.runs, change.opens) == (patch, (), (), False)


def test_an_update_of_nothing_alters_nothing() -> None:
    begun = turn()
    assert play([send.update_thread()], begun) == (begun, [None])


def test_a_run_is_opened_its_entries_carry_it_and_it_is_closed() -> None:
    after, (started, said, ended, later) = play(
        [send.run_start("agent"), send.text("x"), send.run_end("failed", "why"), send.text("y")]
    )
    assert started is not None
    assert said is not None
    assert ended is not None
    assert later is not None
    (run,) = started.runs
    assert (run.thread_id, run.agent_id, run.status, run.started_at, run.ended_at) == (
        "t",
        "agent",
        "running",
        START,
        None,
    )
    assert said.events[0].run_id == run.id
    assert ended.runs == (evolve(run, status="failed", ended_at=START + timedelta(seconds=2), error="why"),)
    assert later.events[0].run_id is None
    assert after.run is None


def test_a_second_run_start_ends_the_first_run_in_the_same_change() -> None:
    after, (first, second) = play([send.run_start("a"), send.run_start("b")])
    assert first is not None
    assert second is not None
    ended, begun = second.runs
    assert ended == evolve(first.runs[0], status="succeeded", ended_at=START + timedelta(seconds=1))
    assert (begun.agent_id, begun.status) == ("b", "running")
    assert after.run == begun


def test_the_end_of_no_run_alters_nothing() -> None:
    begun = turn()
    assert play([send.run_end(), send.run_end("failed", "x")], begun) == (begun, [None, None])


def test_the_end_keeps_the_start_and_the_agent() -> None:
    _, changes = play([send.run_start("agent"), send.text("x"), send.run_end()])
    ended = changes[-1]
    assert ended is not None
    assert (ended.runs[0].started_at, ended.runs[0].agent_id) == (START, "agent")


# ---------------------------------------------------------------- closing

OPEN = Run(id="r", thread_id="t", agent_id="a", started_at=START)


def test_a_clean_end_without_a_run_alters_nothing() -> None:
    assert closing(turn(), "succeeded", FixedClock()) is None


def test_a_turn_cancelled_before_it_has_a_run_gets_one_that_is_canceled() -> None:
    change = closing(turn(), "canceled", FixedClock())
    assert change is not None
    assert [run.status for run in change.runs] == ["canceled"]
    assert change.events == ()


def test_a_turn_that_left_no_other_trace_gets_a_run_so_that_a_repeat_of_its_message_finds_one() -> None:
    change = closing(turn(), "succeeded", FixedClock(), traced=False)
    assert change is not None
    assert [(run.id, run.status) for run in change.runs] == [("m7", "succeeded")]
    assert closing(evolve(turn(), ran=True), "succeeded", FixedClock(), traced=False) is None


def test_the_first_run_of_a_turn_has_the_id_of_its_message_and_no_other_has() -> None:
    after, (first, *_) = play([send.run_start(), send.run_end(), send.run_start()])
    assert first is not None
    assert first.runs[0].id == "m7"
    assert after.run is not None
    assert after.run.id != "m7"


def test_a_turn_cancelled_after_its_run_alters_nothing() -> None:
    assert closing(evolve(turn(), ran=True), "canceled", FixedClock()) is None


@pytest.mark.parametrize("outcome", ["succeeded", "canceled", "failed"])
def test_an_open_run_ends_as_the_turn_did(outcome: Outcome) -> None:
    clock = FixedClock(START + timedelta(minutes=1))
    change = closing(turn(OPEN), outcome, clock)
    assert change == Change(thread=thread(), during=OPEN.id, runs=(evolve(OPEN, status=outcome, ended_at=clock.at),))


def test_a_failed_turn_tells_people_in_its_run_and_in_a_notice() -> None:
    clock = FixedClock(START + timedelta(minutes=1))
    change = closing(turn(OPEN), "failed", clock, notice="Something went wrong")
    assert change is not None
    assert change.runs == (evolve(OPEN, status="failed", ended_at=clock.at, error="Something went wrong"),)
    (told,) = change.events
    assert (told.type, told.actor, told.author, told.user) == ("message", "system", None, None)
    assert (told.content, told.data) == ([TextPart("Something went wrong")], {"error": True})
    assert (told.notice, told.run_id, told.turn_seq, told.created_at) == (True, "r", 7, clock.at)


def test_a_turn_that_fails_without_a_run_gets_one_that_failed() -> None:
    change = closing(turn(), "failed", FixedClock(), notice="oops")
    assert change is not None
    (run,) = change.runs
    assert (run.status, run.error, run.started_at, run.ended_at, run.agent_id) == ("failed", "oops", START, START, None)
    assert change.events[0].run_id == run.id
    assert change.events[0].id != run.id


# ---------------------------------------------------------------- what a handler yields


def test_an_event_is_itself_and_a_text_is_send_text() -> None:
    event = send.run_start()
    assert as_event(event, send.text) is event
    assert as_event("hi", send.text) == send.text("hi")
    assert as_event("", send.text) == send.text("")


@pytest.mark.parametrize("value", [None, 5, b"hi", ["hi"], {"text": "hi"}, send, send.text, WorkerEvent, [10**5000]])
def test_anything_else_is_refused_with_what_it_was(value: object) -> None:
    with pytest.raises(InvalidValueError, match=f"it yielded {type(value).__name__} "):
        as_event(value, send.text)


def test_a_yielded_secret_is_not_quoted() -> None:
    with pytest.raises(InvalidValueError) as raised:
        as_event(Secret("sk-1"), send.text)
    assert "sk-1" not in str(raised.value)


# ---------------------------------------------------------------- whatever a handler does

SENDS = st.sampled_from(
    [
        send.text("x"),
        send.image("https://x/u"),
        send.document("https://x/u", "f", "m"),
        send.tool_call("t"),
        send.tool_result("t", 1),
        send.tool_transaction("t"),
        send.update_thread(),
        send.update_thread(title="T"),
        send.run_start(),
        send.run_start("a"),
        send.run_end(),
        send.run_end("failed", "why"),
        send.run_end("canceled"),
    ]
)


@given(st.lists(SENDS, max_size=20), st.sampled_from(["succeeded", "failed", "canceled"]))
@settings(max_examples=200, deadline=None)
def test_no_run_stays_open_whatever_was_sent_and_however_it_ends(
    sends: list[WorkerEvent], outcome: Literal["succeeded", "failed", "canceled"]
) -> None:
    after, changes = play(sends)
    clock = FixedClock(START + timedelta(hours=1), made=1000)
    changes.append(closing(after, outcome, clock, notice="oops" if outcome == "failed" else None))
    runs: dict[str, Run] = {}
    ids: list[str] = []
    for change in changes:
        if change is None:
            continue
        assert change.thread.id == "t"
        for run in change.runs:
            known = runs.get(run.id)
            # A run that ended stays ended, and keeps what it began with.
            assert known is None or known.status == "running"
            assert known is None or (known.started_at, known.agent_id) == (run.started_at, run.agent_id)
            assert (run.ended_at is None) == (run.status == "running")
            runs[run.id] = run
        assert sum(run.status == "running" for run in runs.values()) <= 1
        for event in change.events:
            ids.append(event.id)
            assert event.turn_seq == 7
            assert event.run_id is None or event.run_id in runs
    assert all(run.status != "running" for run in runs.values())
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(runs)
    if outcome == "failed":
        assert [run.status for run in runs.values()][-1] == "failed"
