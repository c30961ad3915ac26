"""For jobs of a queue: dispatch that is answered once, however often its job is brought. Not a queue; `docs/background.md` has two.

A queue that loses no job brings some of them twice: when a process died over one, when nobody knows whether it was done. The
`idempotency_key` makes these one turn. What it leaves open is what becomes of a turn that *failed*, as a repeat of it runs nothing.
"""

from __future__ import annotations

from typing import Any

from dooers import DispatchError, DispatchStream, HandlerError, WorkerServer

__all__ = ["GaveUpError", "NotYetError", "answer"]

# What may be otherwise in a moment: the database, a worker that closes, a thread with a full queue.
TEMPORARY = {"SERVER_ERROR", "CLOSING", "THREAD_BUSY"}


class NotYetError(Exception):
    """It is not answered yet: have the queue bring the job again, some seconds later."""


class GaveUpError(Exception):
    """It is not answered and will not be: the handler has failed as often as it may, or the answer was stopped."""


async def answer(worker: WorkerServer, key: str, *, tries: int = 3, **message: Any) -> DispatchStream:
    """Dispatch a message, which is the same message again by its `key`; returns when it is answered, or somebody has stopped the answer.

    `message` is what `dispatch` takes. A turn that failed is not begun again: the message is dispatched once more, into the same
    thread, `tries` times in all. Raises NotYetError where a later delivery may help, GaveUpError where none will any more,
    DispatchError where none would have.
    """
    for attempt in range(1, tries + 1):
        try:
            stream = await worker.dispatch(idempotency_key=f"{key}/{attempt}", **message)
            if not stream.is_repeat:
                await stream.collect()
        except DispatchError as error:
            if error.code not in TEMPORARY:
                raise
            raise NotYetError(f"{key}: {error}") from error
        except HandlerError as error:
            if attempt < tries:
                raise NotYetError(f"{key}: {error}") from error
            raise GaveUpError(f"{key}: failed {tries} times") from error
        if stream.status == "succeeded" or (stream.status == "canceled" and not stream.is_repeat):
            return stream
        if stream.status == "canceled":
            # Nobody knows any more who stopped it. To begin again what a person stopped is worse than to have somebody look.
            raise GaveUpError(f"{key}: was stopped, by somebody or with its process, and is not begun again")
        if stream.status != "failed":
            raise NotYetError(f"{key}: somebody is at it, or died over it a moment ago")
        message["thread_id"] = stream.thread_id
    raise GaveUpError(f"{key}: failed {tries} times")
