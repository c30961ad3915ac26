"""A thread and an instant that several tests speak of. Not a test."""

from __future__ import annotations

from datetime import UTC, datetime

from dooers.models import Thread, User

T0 = datetime(2026, 1, 1, tzinfo=UTC)
THREAD = Thread(
    id="thread-1",
    worker_id="worker-1",
    organization_id="org-1",
    workspace_id="ws-1",
    user_id="ada",
    owner=User("ada"),
    created_at=T0,
    updated_at=T0,
    last_event_at=T0,
)
