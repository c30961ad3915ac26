"""What a turn has left in the store: whoever brings its message again learns by it what became of the turn, or that there was none."""

from __future__ import annotations

from dooers.models import EventQuery, ThreadEvent
from dooers.openturn import TurnStatus
from dooers.stores import Store, answered

__all__ = ["trace_of"]


async def trace_of(store: Store, event: ThreadEvent) -> TurnStatus | None:
    """How the turn of a message stands, as far as the store knows; None where there is no trace of one.

    Every turn that ends leaves one. So without a trace the turn is still to come, or its process died before it had begun to answer.
    """
    with answered():
        run = await store.run(event.id)  # a turn's first run has the id of its message
        if run is not None:
            return run.status
        query = EventQuery(thread_id=event.thread_id, turn=event.turn_seq, limit=2, oldest_first=True)
        return "succeeded" if len(await store.events(query)) > 1 else None
