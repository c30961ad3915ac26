"""The four dialects of `connect`: what clients of this family say of themselves, and where in the payload each says it.

Which dialect a client speaks is told by the keys it uses, never by its version, which is wrong in the wild.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from attrs import field, frozen

from dooers.codec import structure
from dooers.exceptions import InvalidValueError, ProtocolError
from dooers.models import Identity, check_id

__all__ = ["Connect", "Dialect", "read_connect"]

Dialect: TypeAlias = Literal["flat", "metadata", "user", "agents"]


@frozen
class Connect:
    """`identity` is what the client claims; `dialect` how it said so."""

    worker_id: str
    identity: Identity
    dialect: Dialect
    auth_token: str | None = field(default=None, repr=False)
    capabilities: frozenset[str] = frozenset()


@frozen
class _Person:
    """Who somebody is, as far as one place of the payload says. None: it does not say. Empty: it says that it is empty."""

    organization_id: str | None = None
    workspace_id: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    user_email: str | None = None
    user_role: str | None = None
    system_role: str | None = None
    organization_role: str | None = None
    workspace_role: str | None = None
    identity_ids: list[str] | None = None


@frozen
class _Client:
    capabilities: list[str] | None = None


@frozen
class _RawConnect:
    worker_id: str | None = None
    agent_id: str | None = None
    organization_id: str | None = None
    workspace_id: str | None = None
    metadata: _Person | None = None
    user: _Person | None = None
    auth_token: str | None = None
    client: _Client | None = None


_PERSON = ("user_id", "user_name", "user_email", "user_role", "system_role", "organization_role", "workspace_role")


def read_connect(payload: Any) -> Connect:
    """Who a client says it is, in whichever dialect; ProtocolError with the path of the fault."""
    raw = structure(payload, _RawConnect, "payload")
    worker_id = raw.worker_id if raw.agent_id is None else raw.agent_id
    if worker_id is None:
        raise ProtocolError("is required (or agent_id)", path="payload.worker_id")
    metadata = raw.metadata if raw.metadata is not None else _Person()
    person = raw.user if raw.user is not None else raw.metadata
    if person is None:
        person = structure(payload, _Person, "payload")
    known: dict[str, Any] = {name: value for name in _PERSON if (value := getattr(person, name)) is not None}
    known.setdefault("user_id", "")
    try:
        check_id(worker_id, "worker_id")
        identity = Identity(
            organization_id=_first(raw.organization_id, metadata.organization_id),
            workspace_id=_first(raw.workspace_id, metadata.workspace_id),
            identity_ids=person.identity_ids or (),
            **known,
        )
    except InvalidValueError as error:
        raise ProtocolError(str(error).removeprefix("Identity."), path="payload") from None
    dialect: Dialect = (
        "agents"
        if raw.agent_id is not None
        else "user"
        if raw.user is not None
        else "metadata"
        if raw.metadata is not None
        else "flat"
    )
    capabilities = raw.client.capabilities if raw.client is not None else None
    return Connect(worker_id, identity, dialect, raw.auth_token, frozenset(capabilities or ()))


def _first(*values: str | None) -> str:
    return next((value for value in values if value is not None), "")
