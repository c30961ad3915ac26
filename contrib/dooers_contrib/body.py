"""The body of a request, within bounds: for whatever takes HTTP from outside (`channel`, `door`)."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

__all__ = ["Refused", "body_of", "json_of"]


class Refused(Exception):
    """This request is not taken, with the status that says so, and why."""

    def __init__(self, status: int, why: str = "") -> None:
        super().__init__(why)
        self.status = status


async def body_of(request: Request, limit: int) -> bytes:
    """The raw body, of at most `limit` bytes: nobody may have been asked yet who they are."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise Refused(413, f"at most {limit} bytes")
    except ClientDisconnect:
        raise Refused(400, "the body ended too soon") from None
    return bytes(body)


def json_of(body: bytes) -> dict[str, Any]:
    """A body as a JSON object. Refused else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "expected JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "expected a JSON object")
    return found
