"""How a client catches up with a thread: a snapshot, what a large gap has beyond it, and what is being written just now.

Going live afterwards, without a gap and without a repeat, is the business of `routing.thread_subscribe` and `broadcast.py`.
"""

from __future__ import annotations

from dooers.exceptions import NotFoundError
from dooers.models import EventQuery, Snapshot, Thread, ThreadEvent
from dooers.protocol import ThreadSubscribe, appended, event_out, run_out, thread_out
from dooers.runner import Runner
from dooers.session import Session
from dooers.stores import GAP, Store

__all__ = ["send_snapshot"]

# Runs that one snapshot may be asked about.
NAMED = 10


async def send_snapshot(store: Store, runner: Runner, session: Session, asked: ThreadSubscribe) -> Thread:
    """Send a thread as of one instant, a large gap in further frames; the thread as of that instant."""
    # Before the snapshot: of one that has ended by now, the snapshot has everything; the end of any other is told after it.
    ended = [run for one in (asked.runs or ())[:NAMED] if (run := await store.run(one)) and run.status != "running"]
    snapshot = await store.snapshot(
        asked.thread_id, after_event_id=asked.after_event_id, at_least_page=session.dialect == "user"
    )
    if snapshot is None:
        raise NotFoundError("there is no such thread")
    thread = session.access.seen(snapshot.thread)
    whole = not snapshot.events or snapshot.events[-1].seq >= thread.last_seq
    growing = _growing(runner, session, thread.id, {event.id for event in snapshot.events}) if whole else []
    session.send(
        "thread.snapshot",
        {
            "thread": thread_out(thread, session.dialect),
            "events": [event_out(event) for event in [*snapshot.events, *growing]],
            "runs": [run_out(run) for run in [*snapshot.runs, *ended] if run.thread_id == thread.id],
            "has_more": snapshot.has_more,
        },
    )
    if not whole:
        await _send_rest(store, runner, session, snapshot)
    return thread


async def _send_rest(store: Store, runner: Runner, session: Session, snapshot: Snapshot) -> None:
    """What a large gap has beyond its snapshot, in further frames; last, what is being written just now."""
    thread, sent = snapshot.thread, snapshot.events[-1].seq
    done = {event.id for event in snapshot.events}
    while sent < thread.last_seq:
        query = EventQuery(
            thread_id=thread.id, after_seq=sent, before_seq=thread.last_seq + 1, limit=GAP, oldest_first=True
        )
        events = await store.events(query)
        if not events:
            break
        session.send("event.append", appended(thread.id, events))
        sent = events[-1].seq
        done.update(event.id for event in events)
    growing = _growing(runner, session, thread.id, done)
    if growing:
        session.send("event.append", appended(thread.id, growing))


def _growing(runner: Runner, session: Session, thread_id: str, done: set[str]) -> list[ThreadEvent]:
    """The messages that are being written, with their text so far. Nothing may be awaited between this and going live.

    One that another process writes may be `done`, and sent, before that process is heard to say so.
    """
    if session.grows == "done":
        return []  # promised one event.append of a message: a client that knows no growing text would keep the first it gets
    session.go_without(done & {event.id for event in runner.growing(thread_id)})
    growing = [event for event in runner.growing(thread_id) if event.id not in done]
    session.go_on_with(event.id for event in growing)
    return growing
