"""Slack: an endpoint for the Events API, which brings messages into a worker and sends its answers.

    app.add_route("/slack", slack(worker, bot_token=..., signing_secret=...), methods=["POST"])

`slack_sdk` is not needed for it: its web client wants aiohttp beside httpx, for one request, and its check of signatures is one HMAC,
which raises for a header that is not ASCII. The tests sign with `slack_sdk`, so that the two agree.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
from attrs import field, frozen
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from dooers import WorkerEvent, WorkerServer
from dooers_contrib.body import Refused, body_of, json_of
from dooers_contrib.channel import (
    MAX_BODY,
    SORRY,
    Channel,
    Endpoint,
    Lookup,
    Lost,
    Outgoing,
    Taken,
    pieces,
    same,
    secret,
    text_at,
)

__all__ = ["slack"]

API = "https://slack.com/api"
TEXT_LIMIT = 4000
WINDOW = 300.0  # seconds that a signature is good for, as Slack wants it
SUBTYPES = frozenset(
    {"", "file_share", "thread_broadcast"}
)  # what people write; the others tell of edits, joins and such
PASSING = frozenset(
    {"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout"}
)


def slack(
    worker: WorkerServer,
    *,
    bot_token: str,
    signing_secret: str,
    handler: Callable[..., Any] | str | None = None,
    worker_id: str | None = None,
    organization_id: str = "slack",
    workspace_id: str = "slack",
    lookup: Lookup | None = None,
    sorry: str | None = SORRY,
    attempts: int = 6,
    pause: float = 1.0,
    timeout: float = 10.0,
    api_url: str = API,
    clock: Callable[[], float] = time.time,
) -> Endpoint:
    """An endpoint for POST. A Slack thread is a thread here, and so is a direct conversation; with `private_threads` one for each person.

    `lookup` is given a Slack user id, and `sorry` is as in `whatsapp`. Which messages come is what the app is subscribed to: a message
    that comes both as `message` and as `app_mention` is taken once.
    """
    web = _Web(api_url.rstrip("/"), secret("slack(bot_token)", bot_token))
    key = secret("slack(signing_secret)", signing_secret).encode()
    channel = Channel(
        "slack", worker, web.send, handler, worker_id, organization_id, workspace_id, lookup, sorry, attempts, pause,
        timeout,
    )  # fmt: skip

    async def answer(request: Request) -> Response:
        body = await body_of(request, MAX_BODY)
        _check(request, key, body, clock())
        payload = json_of(body)
        if text_at(payload, "type") == "url_verification":
            return PlainTextResponse(text_at(payload, "challenge")[:200], headers={"x-content-type-options": "nosniff"})
        return await channel.take(_messages(payload, worker.config.private_threads))

    return channel.endpoint(answer)


def _check(request: Request, key: bytes, body: bytes, now: float) -> None:
    """Refused unless Slack signed this, and lately: what is older may be somebody's recording."""
    stamp = request.headers.get("x-slack-request-timestamp", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16) or abs(now - int(stamp)) > WINDOW:
        raise Refused(401)
    signature = "v0=" + hmac.digest(key, f"v0:{stamp}:".encode() + body, "sha256").hex()
    if not same(request.headers.get("x-slack-signature"), signature):
        raise Refused(401)


async def _messages(payload: dict[str, Any], private: bool) -> AsyncGenerator[Taken, None]:
    event = payload.get("event")
    if text_at(payload, "type") != "event_callback" or text_at(event, "type") not in ("message", "app_mention"):
        return
    team, where, sender = text_at(payload, "team_id"), text_at(event, "channel"), text_at(event, "user")
    stamp, thread = text_at(event, "ts"), text_at(event, "thread_ts")
    # Bots, this one first of all: an answer to one's own answer would never end.
    ours = text_at(event, "bot_id")
    text = text_at(event, "text")
    if ours or text_at(event, "subtype") not in SUBTYPES or not (where and sender and stamp and text.strip()):
        return
    direct = text_at(event, "channel_type") == "im"
    thread = thread or ("" if direct else stamp)
    whose = "" if direct or not private else sender
    yield Taken(
        # Not the event's id: one message may come as two events. Redeliveries have the same `ts`.
        key=f"{team}/{where}/{stamp}",
        sender=sender,
        place=f"{team}/{where}/{thread}/{whose}",
        to=(where, thread),
        text=_plain(text),
        data={"slack": {"team": team, "channel": where, "ts": stamp, "event_id": text_at(payload, "event_id")}},
    )


def _plain(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@frozen
class _Web:
    """The requests of the Web API that are made here."""

    url: str
    token: str = field(repr=False)

    async def send(self, out: Outgoing, to: tuple[str, str], event: WorkerEvent) -> None:
        """Send what a handler said, if it is for people. Images and documents go as links."""
        data, title = event.data, ""
        if event.send_type == "text":
            for piece in pieces(data["text"], TEXT_LIMIT):
                # Escaped, so that no model writes `<!channel>` to everybody.
                piece = piece.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
                # Nor is what it writes fetched at once: it can be talked into writing a secret into a URL.
                await self._post(out, to, piece, unfurl_links=False, unfurl_media=False)
        elif event.send_type in ("image", "document"):
            url: str = data["url"]
            title = (data.get("alt") if event.send_type == "image" else data["filename"]) or ""
            if url[:5].lower() == "data:":
                raise Lost("a data URL is no link; give Slack an https one")
            url = url.replace("|", "%7C").replace("<", "%3C").replace(">", "%3E").replace("&", "&amp;")
            for mark, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "/"), ("\n", " ")):
                title = title.replace(mark, instead)
            await self._post(out, to, f"<{url}|{title}>" if title else f"<{url}>")

    async def _post(self, out: Outgoing, to: tuple[str, str], text: str, **more: bool) -> None:
        where, thread = to
        message = {"channel": where, "text": text, **more, **({"thread_ts": thread} if thread else {})}
        headers = {"authorization": f"Bearer {self.token}"}
        told = await out.call(f"{self.url}/chat.postMessage", _passing, headers=headers, json=message)
        if told.get("ok") is not True:
            raise Lost(text_at(told, "error") or "an answer that is none of Slack's")


def _passing(response: httpx.Response, told: Any) -> bool:
    """Whether Slack refuses now, and not for good: it says 200 for that, too."""
    return text_at(told, "error") in PASSING
