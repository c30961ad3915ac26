"""`connect` and `ping`: who a connection is, decided once."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from dooers.access import Access, scope_of
from dooers.broadcast import TRY_AGAIN
from dooers.exceptions import (
    AlreadyConnectedError,
    DooersError,
    ForbiddenError,
    RateLimitedError,
    UnauthenticatedError,
)
from dooers.models import Identity
from dooers.protocol import (
    VERSION,
    ClientFrame,
    Connect,
    ack,
    refusal,
)
from dooers.quota import Quota
from dooers.routes.desk import Desk
from dooers.session import NOT_YOU, WHO_ARE_YOU, AuthRequest, Session

__all__ = ["CAPABILITIES", "connect", "ping"]

log = logging.getLogger("dooers")

CAPABILITIES = ["deltas", "run.cancel", "thread.update", "thread.search"]


async def connect(desk: Desk, session: Session, frame: ClientFrame) -> None:
    """Decide who this is, once."""
    payload: Connect = frame.payload
    if session.identity is not None:
        raise AlreadyConnectedError("this socket has an identity already; open another one")
    try:
        identity = await _identity(desk, session, payload)
        quota = _quota(desk, session, identity)
    except DooersError as error:
        session.send("ack", refusal(frame.id, error))
        session.close(_REFUSALS.get(type(error), NOT_YOU))
        return
    scope = scope_of(identity, payload.worker_id, private=desk.config.private_threads)
    # Only what is known is kept: the list is the client's, and may be long.
    wanted = payload.capabilities.intersection(CAPABILITIES)
    session.connected(Access(identity, scope, desk.policy), quota, payload.dialect, wanted)
    server = {"name": "dooers-workers-server", "version": VERSION, "capabilities": CAPABILITIES}
    session.send("ack", ack(frame.id, server=server))


_REFUSALS: dict[type, int] = {UnauthenticatedError: WHO_ARE_YOU, RateLimitedError: TRY_AGAIN}


def _quota(desk: Desk, session: Session, identity: Identity) -> Quota:
    """What this connection counts with. Refused where it would be one too many."""
    if desk.authenticate is None or identity.user_id == "":
        return session.quota
    quota = desk.quotas.of(identity, asyncio.get_running_loop().time())
    if len(quota.connections) >= desk.config.max_connections_per_identity:
        raise RateLimitedError(f"at most {desk.config.max_connections_per_identity} connections at once", 5.0)
    return quota


async def _identity(desk: Desk, session: Session, payload: Connect) -> Identity:
    if desk.authenticate is None:
        return payload.identity
    request = AuthRequest.of(session.socket.scope, payload.worker_id, payload.identity, payload.auth_token)
    identity: Any
    try:
        identity = desk.authenticate(request)
        if inspect.isawaitable(identity):
            identity = await identity
    except (UnauthenticatedError, ForbiddenError):
        raise
    except Exception:
        log.exception("the authenticate hook failed; the connection is refused")
        identity = None
    if isinstance(identity, Identity):
        if identity.expires_at is not None and identity.expires_at <= desk.clock.now():
            raise UnauthenticatedError("what proves your identity has expired")
        return identity
    if identity is not None:
        log.error("the authenticate hook returned %r, which is neither an Identity nor None; refused", type(identity))
    raise UnauthenticatedError("this connection is not allowed")


async def ping(desk: Desk, session: Session, frame: ClientFrame) -> None:
    session.send("pong", {})
