"""May this identity see this, and do that? The one place that says so, for frames, for dispatch and for fan-out alike.

Two questions, always in this order. *Where*: a thread lies in somebody's scope or it does not exist for them. *What*: inside
their scope, the table `permissions` of the config and the `@worker.authorize` hook say which operations they have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, TypeAlias

from attrs import field, frozen

from dooers.exceptions import ForbiddenError, NotFoundError
from dooers.models import Identity, Operation, Scope, Thread

__all__ = ["Access", "Authorize", "Policy", "check_may_own", "check_visible", "origin_allowed", "scope_of", "visible"]

log = logging.getLogger("dooers")

# Asked with the thread where one is concerned, with None for what is no single thread's: lists, new threads, settings, analytics.
Authorize: TypeAlias = Callable[[Identity, Operation, Thread | None], bool]


# ---------------------------------------------------------------- where


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


def origin_allowed(scope: Mapping[str, Any], allowed: Collection[str] | None) -> bool:
    """Whether the page behind a WebSocket's ASGI scope may open it.

    A browser sends cookies along to any host, whichever page asks, and says so in `Origin` only. What sends none is no browser.
    """
    if allowed is None:
        return True
    origins = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == b"origin"]
    return all(origin in allowed for origin in origins)


# ---------------------------------------------------------------- what


def roles_of(identity: Identity) -> frozenset[str]:
    """Every role that somebody has, in whatever capacity."""
    roles = (identity.user_role, identity.system_role, identity.organization_role, identity.workspace_role)
    return frozenset(role for role in roles if role)


@frozen
class Policy:
    """Which operations somebody has inside their own scope: both the table and the hook must allow one.

    `permissions` names the roles that an operation is kept to; one that it does not name, everybody has.
    """

    permissions: Mapping[Operation, Collection[str]] = field(factory=dict)
    hook: Authorize | None = None

    def allows(self, identity: Identity, operation: Operation, thread: Thread | None = None) -> bool:
        """Whether somebody may do this. A hook that fails has not allowed anything."""
        roles = self.permissions.get(operation)
        if roles is not None and roles_of(identity).isdisjoint(roles):
            return False
        if self.hook is None:
            return True
        try:
            answer = self.hook(identity, operation, thread)
            if not isinstance(answer, bool):
                raise TypeError(f"expected True or False, got {type(answer).__name__}")
            return answer
        except Exception:
            log.exception("the authorize hook failed; %s is refused", operation)
            return False


@frozen
class Access:
    """What one connection may see and do."""

    identity: Identity
    scope: Scope
    policy: Policy

    @cached_property
    def sees_all(self) -> bool:
        """Whether every thread of the scope exists for them, without a look at it."""
        return self.policy.hook is None and self.policy.allows(self.identity, "thread.read")

    def sees(self, thread: Thread) -> bool:
        """Whether this thread exists for them."""
        return visible(thread, self.scope) and (
            self.sees_all or self.policy.allows(self.identity, "thread.read", thread)
        )

    def seen(self, thread: Thread | None) -> Thread:
        """The thread, or NotFoundError, also for one that they may not read."""
        if thread is None or not self.sees(thread):
            raise NotFoundError("there is no such thread")
        return thread

    def check(self, operation: Operation, thread: Thread | None = None) -> None:
        """Raise ForbiddenError for what their role does not allow. A thread must have been `seen` before."""
        if not self.policy.allows(self.identity, operation, thread):
            raise ForbiddenError(f"your role does not allow {operation}")
