"""May this identity see or touch this thread? The one place that says so, for frames, for dispatch and for fan-out alike.

Not a place for what somebody may do *inside* a thread: today whoever sees a thread may do everything in it.
"""

from __future__ import annotations

from dooers.exceptions import ForbiddenError, NotFoundError
from dooers.models import Identity, Scope, Thread

__all__ = ["check_may_own", "check_visible", "scope_of", "visible"]


def scope_of(identity: Identity, worker_id: str, *, private: bool) -> Scope:
    """The part of the world this identity lives in; with private threads, only its own user's."""
    return Scope(
        worker_id=worker_id,
        organization_id=identity.organization_id,
        workspace_id=identity.workspace_id,
        user_id=identity.user_id if private else None,
    )


def visible(thread: Thread, scope: Scope) -> bool:
    """Whether a thread lies in a scope. What may be read is exactly what may be delivered: fan-out asks this too.

    An empty user id is nobody: where threads are private, it sees none, not even other nobodies'.
    """
    return (
        thread.worker_id == scope.worker_id
        and thread.organization_id == scope.organization_id
        and thread.workspace_id == scope.workspace_id
        and (scope.user_id is None or (scope.user_id == thread.user_id and scope.user_id != ""))
    )


def check_visible(thread: Thread | None, scope: Scope) -> Thread:
    """The thread, or NotFoundError: a thread of somebody else looks exactly like one that does not exist."""
    if thread is None or not visible(thread, scope):
        raise NotFoundError("there is no such thread")
    return thread


def check_may_own(scope: Scope) -> None:
    """Raise ForbiddenError where a new thread would belong to nobody."""
    if scope.user_id == "":
        raise ForbiddenError("private_threads is on: a thread needs a user_id to belong to")
