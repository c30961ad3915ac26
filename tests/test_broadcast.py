"""Who hears of what: fan-out to the sessions of a process."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from itertools import count
from typing import Any

import pytest
from attrs import Factory, define, evolve
from samples import T0, THREAD

import dooers.protocol
from dooers.access import visible
from dooers.broadcast import Broadcast, Growth
from dooers.codec import loads
from dooers.models import Change, Run, Scope, TextPart, Thread, ThreadEvent, User
from dooers.protocol import Dialect

PLACE = Scope("worker-1", "org-1", "ws-1")
ELSEWHERE = {
    "worker": evolve(PLACE, worker_id="worker-2"),
    "organization": evolve(PLACE, organization_id="org-2"),
    "workspace": evolve(PLACE, workspace_id="ws-2"),
    "user": evolve(PLACE, user_id="bob"),
    "nobody": evolve(PLACE, user_id=""),
}


class Counting:
    """A clock whose ids are numbers in order."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def now(self) -> datetime:
        return T0

    def new_id(self) -> str:
        return f"frame-{next(self._numbers)}"


@define(eq=False)
class Session:
    """A member that keeps what it is sent."""

    scope: Scope = PLACE
    dialect: Dialect = "flat"
    texts: list[str] = Factory(list)
    grows: Growth = "done"
    pieces_of: list[str] = Factory(list)
    closed_with: list[int] = Factory(list)

    def sees(self, thread: Thread) -> bool:
        return visible(thread, self.scope)

    def put(self, text: str) -> None:
        self.texts.append(text)

    def put_delta(self, text: str, event_id: str) -> None:
        self.pieces_of.append(event_id)
        self.put(text)

    def close(self, code: int) -> None:
        self.closed_with.append(code)

    @property
    def frames(self) -> list[dict[str, Any]]:
        return [loads(text) for text in self.texts]

    @property
    def types(self) -> list[str]:
        return [frame["type"] for frame in self.frames]

    @property
    def seqs(self) -> list[int]:
        appends = [frame["payload"]["events"] for frame in self.frames if frame["type"] == "event.append"]
        return [event["seq"] for events in appends for event in events]


@pytest.fixture
def broadcast() -> Broadcast:
    return Broadcast(Counting())


def joined(broadcast: Broadcast, scope: Scope = PLACE, dialect: Dialect = "flat", grows: Growth = "done") -> Session:
    session = Session(scope, dialect, grows=grows)
    broadcast.join(session)
    return session


def an_event(seq: int) -> ThreadEvent:
    return ThreadEvent(
        id=f"event-{seq}",
        thread_id="thread-1",
        type="message",
        actor="user",
        created_at=T0,
        content=[TextPart(f"m{seq}")],
        seq=seq,
        turn_seq=seq,
    )


def appended(*seqs: int) -> Change:
    return Change(thread=THREAD, events=tuple(an_event(seq) for seq in seqs))


def upto(seq: int) -> Thread:
    """The thread as a snapshot has it that ends with this event."""
    return evolve(THREAD, last_seq=seq)


RUN = Run(id="run-1", thread_id="thread-1", started_at=T0)
RENAMED = Change(thread=evolve(THREAD, title="new"), patch={"title": "new"})
REMOVED = Change(thread=THREAD, removes=True)


# ---------------------------------------------------------------- who hears


def test_events_and_runs_go_to_subscribers_only(broadcast: Broadcast) -> None:
    subscriber, other = joined(broadcast), joined(broadcast)
    broadcast.subscribe(subscriber, "thread-1")
    broadcast.subscribe(other, "thread-2")
    broadcast.publish(evolve(appended(1), runs=(RUN,)))
    assert subscriber.types == ["run.upsert", "event.append"]
    assert other.texts == []


def test_a_thread_that_is_new_renamed_or_gone_is_told_to_the_whole_workspace(broadcast: Broadcast) -> None:
    subscriber, other = joined(broadcast), joined(broadcast)
    broadcast.subscribe(subscriber, "thread-1")
    broadcast.publish(evolve(appended(1), created=True))
    broadcast.publish(RENAMED)
    broadcast.publish(REMOVED)
    assert subscriber.types == ["thread.upsert", "event.append", "thread.upsert", "thread.deleted"]
    assert other.types == ["thread.upsert", "thread.upsert", "thread.deleted"]
    assert other.frames[1]["payload"]["thread"]["title"] == "new"


@pytest.mark.parametrize("where", ELSEWHERE)
def test_whoever_may_not_see_a_thread_hears_nothing_of_it_even_when_subscribed(
    broadcast: Broadcast, where: str
) -> None:
    stranger = joined(broadcast, ELSEWHERE[where])
    broadcast.subscribe(stranger, "thread-1")
    for change in (evolve(appended(1), created=True, runs=(RUN,)), RENAMED, REMOVED):
        broadcast.publish(change)
    assert stranger.texts == []


@pytest.mark.parametrize("where", ELSEWHERE)
def test_whoever_may_not_see_a_thread_hears_nothing_of_it_after_holding_either(
    broadcast: Broadcast, where: str
) -> None:
    released, unsubscribed = joined(broadcast, ELSEWHERE[where]), joined(broadcast, ELSEWHERE[where])
    broadcast.hold(released, "thread-1")
    broadcast.hold(unsubscribed, "thread-1")
    for change in (evolve(appended(1), created=True, runs=(RUN,)), RENAMED, REMOVED):
        broadcast.publish(change)
    broadcast.release(released, "thread-1", upto(0))
    broadcast.unsubscribe(unsubscribed, "thread-1")
    assert released.texts == unsubscribed.texts == []


def test_a_private_thread_is_told_to_all_sessions_of_its_owner(broadcast: Broadcast) -> None:
    mine = evolve(PLACE, user_id="ada")
    sessions = [joined(broadcast, mine), joined(broadcast, mine)]
    for session in sessions:
        broadcast.subscribe(session, "thread-1")
    broadcast.publish(evolve(appended(1), created=True))
    assert [session.types for session in sessions] == [["thread.upsert", "event.append"]] * 2


def test_an_empty_private_user_is_not_told_of_threads_of_nobody(broadcast: Broadcast) -> None:
    nobody = joined(broadcast, evolve(PLACE, user_id=""))
    broadcast.subscribe(nobody, "thread-1")
    broadcast.follow(nobody, "analytics", "worker-1")
    thread = evolve(THREAD, user_id="", owner=User())
    broadcast.publish(Change(thread=thread, events=(an_event(1),), created=True))
    broadcast.tell("analytics", "worker-1", "analytics.event", {}, thread)
    assert nobody.texts == []


def test_one_who_unsubscribed_hears_no_more(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    assert broadcast.subscribe(session, "thread-1")
    assert not broadcast.subscribe(session, "thread-1")
    assert broadcast.subscriptions(session) == 1
    broadcast.publish(appended(1))
    broadcast.unsubscribe(session, "thread-1")
    broadcast.unsubscribe(session, "thread-1")
    broadcast.publish(appended(2))
    assert session.seqs == [1]
    assert broadcast.subscriptions(session) == 0


def test_a_removed_thread_has_no_subscribers_any_more(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    broadcast.subscribe(session, "thread-1")
    broadcast.publish(REMOVED)
    assert broadcast.subscriptions(session) == 0
    broadcast.publish(appended(1))
    assert session.types == ["thread.deleted"]
    assert broadcast._threads == {}


# ---------------------------------------------------------------- frames


def test_each_frame_is_made_once_per_dialect_that_differs(
    broadcast: Broadcast, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()
    serialize = dooers.protocol.serialize

    def counting(kind: str, payload: dict[str, Any], frame_id: str) -> str:
        made[kind] += 1
        return serialize(kind, payload, frame_id)

    monkeypatch.setattr(dooers.protocol, "serialize", counting)
    dialects: tuple[Dialect, ...] = ("flat", "metadata", "user", "agents")
    sessions = [joined(broadcast, dialect=dialect) for dialect in dialects for _ in range(25)]
    for session in sessions:
        broadcast.subscribe(session, "thread-1")
    broadcast.publish(evolve(appended(1, 2), created=True, runs=(RUN,)))
    assert made["event.append"] == made["run.upsert"] == 1
    assert 1 < made["thread.upsert"] <= len(dialects)
    assert all(session.types == ["thread.upsert", "run.upsert", "event.append"] for session in sessions)
    assert len({session.texts[2] for session in sessions}) == 1


def test_the_metadata_dialect_gets_its_own_thread_and_the_others_the_applications(broadcast: Broadcast) -> None:
    flat, metadata = joined(broadcast), joined(broadcast, dialect="metadata")
    broadcast.publish(Change(thread=evolve(THREAD, metadata={"app": 1}), created=True))
    assert flat.frames[0]["payload"]["thread"]["metadata"] == {"app": 1}
    assert metadata.frames[0]["payload"]["thread"]["metadata"]["organization_id"] == "org-1"


# ---------------------------------------------------------------- hold and release


@pytest.mark.parametrize("newest", range(6))
def test_a_snapshot_and_what_was_held_back_leave_no_gap_and_repeat_nothing(broadcast: Broadcast, newest: int) -> None:
    session = joined(broadcast)
    broadcast.hold(session, "thread-1")
    for change in (appended(1), appended(2, 3), appended(4), appended(5)):
        broadcast.publish(change)
    assert session.texts == []
    broadcast.release(session, "thread-1", upto(newest))  # the snapshot was read somewhere in between
    broadcast.publish(appended(6))
    assert session.seqs == list(range(newest + 1, 7))


def test_others_do_not_wait_for_one_that_holds(broadcast: Broadcast) -> None:
    holding, live = joined(broadcast), joined(broadcast)
    broadcast.subscribe(live, "thread-1")
    broadcast.hold(holding, "thread-1")
    broadcast.publish(appended(1))
    assert (live.seqs, holding.seqs) == ([1], [])


def test_the_runs_of_held_changes_follow_the_snapshot_in_order(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    broadcast.hold(session, "thread-1")
    broadcast.publish(evolve(appended(1), runs=(RUN,)))
    broadcast.publish(Change(thread=THREAD, runs=(evolve(RUN, status="succeeded", ended_at=T0),)))
    broadcast.release(session, "thread-1", upto(1))
    assert session.types == ["run.upsert", "run.upsert"]
    assert [frame["payload"]["run"]["status"] for frame in session.frames] == ["running", "succeeded"]


def test_a_thread_renamed_or_deleted_while_its_snapshot_is_read_is_told_after_it(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    broadcast.hold(session, "thread-1")
    broadcast.publish(RENAMED)
    broadcast.publish(REMOVED)
    assert session.texts == []  # else the snapshot would bring the old title, and the thread, back
    broadcast.release(session, "thread-1", upto(0))
    assert session.types == ["thread.upsert", "thread.deleted"]
    assert broadcast.subscriptions(session) == 0
    assert broadcast._threads == {}


def test_one_whose_snapshot_failed_still_hears_what_everybody_hears(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    broadcast.hold(session, "thread-1")
    broadcast.publish(evolve(appended(1), runs=(RUN,)))
    broadcast.publish(REMOVED)
    broadcast.unsubscribe(session, "thread-1")
    assert session.types == ["thread.deleted"]


def test_other_threads_are_not_held_back(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    broadcast.hold(session, "thread-2")
    broadcast.publish(RENAMED)
    assert session.types == ["thread.upsert"]


def test_releasing_what_is_not_held_sends_nothing(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    broadcast.release(session, "thread-1", upto(0))
    broadcast.subscribe(session, "thread-1")
    broadcast.publish(appended(1))
    broadcast.release(session, "thread-1", upto(0))
    assert session.seqs == [1]


def test_subscribing_again_goes_through_a_snapshot_again(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    broadcast.subscribe(session, "thread-1")
    broadcast.hold(session, "thread-1")
    broadcast.publish(appended(1))
    assert session.seqs == []
    broadcast.release(session, "thread-1", upto(0))
    assert session.seqs == [1]
    assert broadcast.subscriptions(session) == 1


# ---------------------------------------------------------------- gaps, where other processes are heard late or not at all


def live_since(broadcast: Broadcast, seq: int) -> Session:
    """A session that has a thread up to an event, from its snapshot."""
    session = joined(broadcast)
    broadcast.hold(session, "thread-1")
    assert not broadcast.release(session, "thread-1", upto(seq))
    return session


def test_a_gap_is_known_from_the_numbers(broadcast: Broadcast) -> None:
    live_since(broadcast, 3)
    assert [broadcast.lacks(appended(seq)) for seq in (2, 3, 4, 5)] == [False, False, False, True]
    assert not broadcast.lacks(RENAMED)
    assert not broadcast.lacks(evolve(appended(9), thread=evolve(THREAD, id="thread-2")))
    assert broadcast.reached("thread-1") == 3
    broadcast.publish(appended(4, 5))
    assert broadcast.reached("thread-1") == 5
    assert (broadcast.watched(), broadcast.is_watched("thread-1"), broadcast.is_watched("x")) == (
        ["thread-1"],
        True,
        False,
    )


def test_one_who_began_without_a_snapshot_lacks_nothing_until_it_has_heard_something(broadcast: Broadcast) -> None:
    session = joined(broadcast)
    broadcast.subscribe(session, "thread-1")
    assert not broadcast.lacks(appended(9))
    assert broadcast.reached("thread-1") is None
    broadcast.publish(appended(9))
    assert broadcast.lacks(appended(11))


def test_one_who_waits_for_its_snapshot_counts_for_no_gap(broadcast: Broadcast) -> None:
    live_since(broadcast, 7)
    holding = live_since(broadcast, 3)
    broadcast.hold(holding, "thread-1")
    assert not broadcast.lacks(appended(8))
    assert broadcast.reached("thread-1") == 7


@pytest.mark.parametrize("order", [(4, 5, 6), (5, 4, 6), (6, 4, 5), (6, 5, 4), (5, 6), (6,)])
def test_nothing_that_came_out_of_order_while_a_snapshot_was_read_is_passed_over(
    broadcast: Broadcast, order: tuple[int, ...]
) -> None:
    session = joined(broadcast)
    broadcast.hold(session, "thread-1")
    for seq in order:
        broadcast.publish(evolve(appended(seq), runs=(evolve(RUN, id=f"run-{seq}"),)))
    lacking = broadcast.release(session, "thread-1", upto(3))
    got = session.seqs
    assert got == list(range(4, 4 + len(got)))
    assert lacking == (got != [4, 5, 6])
    assert session.types.count("run.upsert") == len(order)  # what has no number is told all the same
    after = broadcast.reached("thread-1")
    assert after == 3 + len(got)
    broadcast.fill(appended(*range(after + 1, 7)), after, 6)
    assert session.seqs == [4, 5, 6]


def test_what_was_read_goes_to_those_who_lack_it_and_nobody_gets_anything_twice(broadcast: Broadcast) -> None:
    three, five, six = (live_since(broadcast, seq) for seq in (3, 5, 6))
    one, none, holding = live_since(broadcast, 1), joined(broadcast), joined(broadcast)
    broadcast.subscribe(none, "thread-1")
    broadcast.hold(holding, "thread-1")
    broadcast.fill(appended(4, 5, 6), 3, 6)
    assert [session.seqs for session in (three, five, six)] == [[4, 5, 6], [6], []]
    assert one.seqs == none.seqs == holding.seqs == []  # the first lacks more than was read
    assert broadcast.reached("thread-1") == 1
    broadcast.fill(appended(2, 3, 4, 5, 6), 1, 6)
    assert (one.seqs, three.seqs) == ([2, 3, 4, 5, 6], [4, 5, 6])
    assert not broadcast.lacks(appended(7))


def test_events_that_were_deleted_leave_no_gap_when_all_others_were_read(broadcast: Broadcast) -> None:
    session = live_since(broadcast, 3)
    broadcast.fill(Change(thread=upto(6)), 3, 6)
    assert session.texts == []
    assert not broadcast.lacks(appended(7))


@pytest.mark.parametrize("where", ELSEWHERE)
def test_what_was_read_is_not_told_to_those_who_may_not_see_it(broadcast: Broadcast, where: str) -> None:
    stranger = joined(broadcast, ELSEWHERE[where])
    broadcast.hold(stranger, "thread-1")
    broadcast.release(stranger, "thread-1", upto(1))
    broadcast.fill(appended(2), 1, 2)
    assert stranger.texts == []


def test_those_who_cannot_be_told_what_they_missed_are_closed_and_told_no_more(broadcast: Broadcast) -> None:
    live, holding, other = live_since(broadcast, 3), joined(broadcast), joined(broadcast)
    broadcast.hold(holding, "thread-1")
    broadcast.subscribe(other, "thread-2")
    broadcast.drop("thread-1")
    assert (live.closed_with, holding.closed_with, other.closed_with) == ([1013], [], [])
    broadcast.publish(appended(9))
    assert live.texts == []


def test_the_thread_is_known_as_it_was_last_told_of(broadcast: Broadcast) -> None:
    assert broadcast.last_known("thread-1") is None
    broadcast.subscribe(joined(broadcast), "thread-1")
    assert broadcast.last_known("thread-1") is None
    broadcast.publish(RENAMED)
    assert broadcast.last_known("thread-1") == RENAMED.thread


# ---------------------------------------------------------------- leaving


def test_leaving_leaves_nothing_behind(broadcast: Broadcast) -> None:
    sessions = [joined(broadcast, evolve(PLACE, workspace_id=f"ws-{n % 3}")) for n in range(12)]
    for n, session in enumerate(sessions):
        broadcast.subscribe(session, f"thread-{n % 5}")
        broadcast.hold(session, "thread-1")
        broadcast.publish(appended(1))
        broadcast.follow(session, "settings", "worker-1")
        broadcast.follow(session, "analytics", "worker-1")
    for session in sessions:
        broadcast.leave(session)
        broadcast.leave(session)
    assert (broadcast._places, broadcast._threads, broadcast._subscribed, broadcast._topics) == ({}, {}, {}, {})
    before = [len(session.texts) for session in sessions]
    broadcast.publish(evolve(appended(2), created=True))
    broadcast.tell("settings", "worker-1", "settings.patch", {}, None)
    assert [len(session.texts) for session in sessions] == before


def test_a_session_that_never_joined_cannot_subscribe_and_leaves_nothing(broadcast: Broadcast) -> None:
    session = Session()
    with pytest.raises(KeyError):
        broadcast.subscribe(session, "thread-1")
    with pytest.raises(KeyError):
        broadcast.hold(session, "thread-1")
    broadcast.unsubscribe(session, "thread-1")
    broadcast.leave(session)
    assert broadcast._threads == {}


# ---------------------------------------------------------------- a message that is being written

SPROUT = evolve(an_event(0), actor="assistant", streaming=True, content=[])


def so_far(text: str = "He") -> ThreadEvent:
    return evolve(SPROUT, content=[TextPart(text)])


def test_pieces_go_only_to_subscribers_that_asked_for_pieces(broadcast: Broadcast) -> None:
    kinds: tuple[Growth, ...] = ("deltas", "growing", "done")
    deltas, growing, done = (joined(broadcast, grows=kind) for kind in kinds)
    joined(broadcast, grows="deltas")  # not subscribed
    for session in (deltas, growing, done):
        broadcast.subscribe(session, "thread-1")
    broadcast.tell_delta(THREAD, SPROUT, 0, "He")
    broadcast.tell_growing(THREAD, so_far)
    (piece,) = deltas.frames
    assert (piece["type"], piece["payload"]) == (
        "event.delta",
        {"thread_id": "thread-1", "event_id": SPROUT.id, "text": "He"},
    )
    (whole,) = growing.frames
    assert whole["type"] == "event.append"
    (event,) = whole["payload"]["events"]
    assert (event["id"], event["content"], event["streaming"], event["finalized"]) == (
        SPROUT.id,
        [{"type": "text", "text": "He"}],
        True,
        False,
    )
    assert "seq" not in event
    assert (deltas.pieces_of, growing.pieces_of, done.texts) == ([SPROUT.id], [""], [])
    assert sum(len(session.texts) for session in broadcast._subscribed if isinstance(session, Session)) == 2


def test_a_piece_names_the_run_it_belongs_to(broadcast: Broadcast) -> None:
    session = joined(broadcast, grows="deltas")
    broadcast.subscribe(session, "thread-1")
    broadcast.tell_delta(THREAD, evolve(SPROUT, run_id="run-1"), 0, "He")
    assert session.frames[0]["payload"]["run_id"] == "run-1"


def test_a_message_of_which_nothing_was_told_yet_is_no_frame(broadcast: Broadcast) -> None:
    session = joined(broadcast, grows="growing")
    broadcast.subscribe(session, "thread-1")
    broadcast.tell_growing(THREAD, lambda: None)
    assert session.texts == []


def test_a_growing_message_is_not_even_made_where_nobody_watches_it(broadcast: Broadcast) -> None:
    def never() -> ThreadEvent:
        raise AssertionError("made for nobody")

    broadcast.subscribe(joined(broadcast, grows="deltas"), "thread-1")
    broadcast.tell_growing(THREAD, never)


@pytest.mark.parametrize("grows", ["deltas", "growing"])
def test_who_waits_for_a_snapshot_gets_no_pieces_until_it_has_it(broadcast: Broadcast, grows: Growth) -> None:
    session = joined(broadcast, grows=grows)
    broadcast.hold(session, "thread-1")
    broadcast.tell_delta(THREAD, SPROUT, 0, "He")
    broadcast.tell_growing(THREAD, so_far)
    broadcast.release(session, "thread-1", upto(0))
    assert session.texts == []
    broadcast.tell_delta(THREAD, SPROUT, 2, "llo")
    broadcast.tell_growing(THREAD, so_far)
    assert len(session.texts) == 1


@pytest.mark.parametrize("where", ELSEWHERE)
def test_whoever_may_not_see_a_thread_gets_no_pieces_of_it(broadcast: Broadcast, where: str) -> None:
    for grows in ("deltas", "growing"):
        stranger = joined(broadcast, ELSEWHERE[where], grows=grows)
        broadcast.subscribe(stranger, "thread-1")
        broadcast.tell_delta(THREAD, SPROUT, 0, "He")
        broadcast.tell_growing(THREAD, so_far)
        assert stranger.texts == []


# ---------------------------------------------------------------- settings and analytics


def test_settings_and_analytics_go_to_followers_of_that_worker_only(broadcast: Broadcast) -> None:
    settings, analytics, other, none = (joined(broadcast) for _ in range(4))
    broadcast.follow(settings, "settings", "worker-1")
    broadcast.follow(analytics, "analytics", "worker-1")
    broadcast.follow(other, "settings", "worker-2")
    broadcast.tell("settings", "worker-1", "settings.patch", {"field_id": "a", "value": None}, None)
    assert settings.frames[0]["payload"] == {"field_id": "a", "value": None}
    assert analytics.texts == other.texts == none.texts == []
    broadcast.unfollow(settings, "settings", "worker-1")
    broadcast.unfollow(settings, "settings", "worker-1")
    broadcast.tell("settings", "worker-1", "settings.patch", {}, None)
    assert len(settings.texts) == 1


@pytest.mark.parametrize("where", ELSEWHERE)
def test_analytics_of_a_thread_go_only_to_those_who_may_see_it(broadcast: Broadcast, where: str) -> None:
    stranger, colleague = joined(broadcast, ELSEWHERE[where]), joined(broadcast)
    owner = joined(broadcast, evolve(PLACE, user_id="ada"))
    for session in (stranger, colleague, owner):
        broadcast.follow(session, "analytics", "worker-1")
    broadcast.tell("analytics", "worker-1", "analytics.event", {"event": "x"}, THREAD)
    assert stranger.texts == []
    assert colleague.types == owner.types == ["analytics.event"]
