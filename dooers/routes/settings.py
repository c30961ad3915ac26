"""Frames about the settings form."""

from __future__ import annotations

from dooers.codec import dumps
from dooers.exceptions import (
    TooLargeError,
)
from dooers.protocol import (
    ClientFrame,
    SettingsPatch,
    SettingsSubscribe,
    WorkerName,
    ack,
)
from dooers.routes.desk import Desk, need_schema, own_worker
from dooers.session import Session
from dooers.settings import public_schema

__all__ = ["settings_patch", "settings_public_schema", "settings_subscribe", "settings_unsubscribe"]


async def settings_subscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: SettingsSubscribe = frame.payload
    own_worker(session, payload.agent_id, payload.worker_id)
    session.access.check("settings.read")
    need_schema(desk)
    session.hold()  # a patch that is told while the snapshot is read must come after it
    try:
        desk.broadcast.follow(session, "settings", session.worker_id)
        session.send("settings.snapshot", await desk.settings(session.worker_id).snapshot())
    except BaseException:
        desk.broadcast.unfollow(session, "settings", session.worker_id)
        raise
    finally:
        session.release()
    session.send("ack", ack(frame.id))


async def settings_unsubscribe(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: WorkerName = frame.payload
    own_worker(session, payload.agent_id, payload.worker_id)
    desk.broadcast.unfollow(session, "settings", session.worker_id)
    session.send("ack", ack(frame.id))


async def settings_patch(desk: Desk, session: Session, frame: ClientFrame) -> None:
    payload: SettingsPatch = frame.payload
    session.access.check("settings.patch")
    need_schema(desk)
    if (size := len(dumps(payload.value).encode())) > desk.config.max_setting_bytes:
        raise TooLargeError(f"payload.value: at most {desk.config.max_setting_bytes} bytes, got {size}")
    await desk.settings(session.worker_id).patch(payload.field_id, payload.value)
    session.send("ack", ack(frame.id))


async def settings_public_schema(desk: Desk, session: Session, frame: ClientFrame) -> None:
    session.send("settings.public_schema.result", {"schema": public_schema(need_schema(desk))}, frame.id)
