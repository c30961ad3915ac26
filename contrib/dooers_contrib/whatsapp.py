"""WhatsApp: an endpoint for the webhook of Meta's Cloud API, which brings messages into a worker and sends its answers.

    app.add_route("/whatsapp", whatsapp(worker, access_token=..., app_secret=..., verify_token=...), methods=["GET", "POST"])

Meta has no library for Python that is kept; what it takes is an HMAC and two kinds of request, and `httpx` does the HTTP. Meta
brings again what is not answered with 200 within seconds, for days; how this and the rest is dealt with is in `channel`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
from attrs import field, frozen
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from dooers import ContentPart, TextPart, WorkerEvent, WorkerServer
from dooers_contrib.attachments import attachment, bytes_of, download
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
    dicts,
    pieces,
    same,
    secret,
    text_at,
)

__all__ = ["whatsapp"]

API = "https://graph.facebook.com/v24.0"
TEXT_LIMIT = 4096
CAPTION_LIMIT = 1024
# Codes of errors that pass: too much at once, for the app, the number or this one person, and trouble of Meta's own.
PASSING = frozenset({1, 2, 4, 80007, 130429, 131000, 131016, 131056})
MEDIA = ("image", "sticker", "document", "audio", "video")
# Ids become parts of a path.
_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")


def whatsapp(
    worker: WorkerServer,
    *,
    access_token: str,
    app_secret: str,
    verify_token: str,
    handler: Callable[..., Any] | str | None = None,
    worker_id: str | None = None,
    organization_id: str = "whatsapp",
    workspace_id: str = "whatsapp",
    lookup: Lookup | None = None,
    sorry: str | None = SORRY,
    max_media_bytes: int | None = None,
    attempts: int = 6,
    pause: float = 1.0,
    timeout: float = 10.0,
    media_timeout: float = 8.0,
    api_url: str = API,
) -> Endpoint:
    """An endpoint for GET and POST. Each phone number has one thread for each number of yours that it writes to.

    `lookup` is given a sender's phone number and returns what you know of them, as a mapping or None: `user_name`, `user_email`,
    `user_role`, `organization_id` and `workspace_id` in it are the identity, and all of it is kept with the message, as
    `data["customer"]`. `sorry` is what people are told when the handler failed, None for nothing.
    """
    limit = worker.config.max_data_url_bytes * 3 // 4 - 1024 if max_media_bytes is None else max_media_bytes
    graph = _Graph(api_url.rstrip("/"), secret("whatsapp(access_token)", access_token), max(limit, 0), media_timeout)
    signed = secret("whatsapp(app_secret)", app_secret).encode()
    known = secret("whatsapp(verify_token)", verify_token)
    channel = Channel(
        "whatsapp", worker, graph.send, handler, worker_id, organization_id, workspace_id, lookup, sorry, attempts,
        pause, timeout,
    )  # fmt: skip

    async def answer(request: Request) -> Response:
        if request.method == "GET":
            return _verified(request, known)
        body = await body_of(request, MAX_BODY)
        if not same(request.headers.get("x-hub-signature-256"), "sha256=" + hmac.digest(signed, body, "sha256").hex()):
            raise Refused(401)
        return await channel.take(_messages(json_of(body), graph, channel))

    return channel.endpoint(answer)


def _verified(request: Request, known: str) -> Response:
    """The answer to Meta's question whether this URL is ours."""
    asked = request.query_params
    challenge = asked.get("hub.challenge", "")
    if asked.get("hub.mode") != "subscribe" or not same(asked.get("hub.verify_token"), known) or len(challenge) > 200:
        raise Refused(403)
    # As plain text that no browser takes for a page.
    return PlainTextResponse(challenge, headers={"x-content-type-options": "nosniff"})


# ---------------------------------------------------------------- what comes in


async def _messages(payload: dict[str, Any], graph: _Graph, channel: Channel) -> AsyncGenerator[Taken, None]:
    for change in (change for entry in dicts(payload, "entry") for change in dicts(entry, "changes")):
        value = change.get("value")
        number = text_at(value, "metadata", "phone_number_id")
        if not _ID.fullmatch(number):
            continue  # statuses alone do not matter here either: nobody waits for them
        names = {text_at(one, "wa_id"): text_at(one, "profile", "name") for one in dicts(value, "contacts")}
        for message in dicts(value, "messages"):
            sender, message_id = text_at(message, "from"), text_at(message, "id")
            if not sender or not message_id:
                continue
            content = await _content(message, graph, channel)
            if not content:
                continue
            yield Taken(
                key=message_id,
                sender=sender,
                place=f"{number}/{sender}",
                to=(number, sender),
                content=content,
                name=names.get(sender, ""),
                data={"whatsapp": _told(message, number)},
            )


def _told(message: dict[str, Any], number: str) -> dict[str, str]:
    """What else is worth knowing of a message: ids to tell buttons apart, and what it replies to."""
    kind = text_at(message, "type")
    chosen = message.get("interactive")
    chosen = chosen.get(text_at(chosen, "type")) if isinstance(chosen, dict) else None
    told = {
        "message_id": text_at(message, "id"),
        "phone_number_id": number,
        "type": kind,
        "reply_id": text_at(chosen, "id") or text_at(message, "button", "payload"),
        "form": text_at(chosen, "response_json"),
        "context_id": text_at(message, "context", "id"),
    }
    return {name: value for name, value in told.items() if value}


async def _content(message: dict[str, Any], graph: _Graph, channel: Channel) -> list[ContentPart]:
    """What somebody said; nothing for what is no message to answer, such as a reaction."""
    kind = text_at(message, "type")
    if kind in MEDIA:
        caption = text_at(message, kind, "caption")
        async with channel.client() as client:
            fetch = graph.fetch(client, text_at(message, kind, "id"))
            part = await attachment(kind, text_at(message, kind, "filename"), graph.media_timeout, fetch)
        return [TextPart(caption), part] if caption else [part]
    if kind == "location":
        where = message.get("location")
        # Numbers that JSON has as fractions, unlike ids.
        found = [where.get(name) for name in ("latitude", "longitude")] if isinstance(where, dict) else []
        text = ", ".join(str(one) for one in found if isinstance(one, int | float))
        name = text_at(where, "name")
        return [TextPart(f"Location: {name} ({text})" if name else f"Location: {text}")] if text else []
    text = (
        text_at(message, "text", "body")
        or text_at(message, "interactive", "button_reply", "title")
        or text_at(message, "interactive", "list_reply", "title")
        or text_at(message, "interactive", "nfm_reply", "body")
        or text_at(message, "button", "text")
    )
    return [TextPart(text)] if text.strip() else []


# ---------------------------------------------------------------- the Cloud API


@frozen
class _Graph:
    """The requests of the Cloud API that are made here."""

    url: str
    token: str = field(repr=False)
    max_media: int
    media_timeout: float

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    async def fetch(self, client: httpx.AsyncClient, media_id: str) -> tuple[str, bytes]:
        """The type and the bytes of what a media id stands for."""
        if not _ID.fullmatch(media_id):
            raise Lost("it has no id")
        told = await download(client, f"{self.url}/{media_id}", 64 * 1024, self._headers)
        url = text_at(found := json_or_nothing(told), "url")
        # The token goes there, so it goes encrypted, or to where it goes anyway.
        if not url.startswith(("https://", self.url[: len(self.url) - len(urlsplit(self.url).path)] + "/")):
            raise Lost("it has no address")
        return text_at(found, "mime_type"), await download(client, url, self.max_media, self._headers)

    # ------------------------------------------------------------ answers

    async def send(self, out: Outgoing, to: tuple[str, str], event: WorkerEvent) -> None:
        """Send what a handler said, if it is for people."""
        data = event.data
        if event.send_type == "text":
            for piece in pieces(data["text"], TEXT_LIMIT):
                await self._post(out, to, "text", {"body": piece})
        elif event.send_type == "image":
            alt = (data.get("alt") or "")[:CAPTION_LIMIT]
            media = await self._media_of(out, to[0], data["url"], "image")
            await self._post(out, to, "image", media | ({"caption": alt} if alt else {}))
        elif event.send_type == "document":
            media = await self._media_of(out, to[0], data["url"], data["filename"], data["mime_type"])
            await self._post(out, to, "document", media | {"filename": data["filename"]})

    async def _media_of(
        self, out: Outgoing, number: str, url: str, filename: str, mime: str | None = None
    ) -> dict[str, str]:
        """How a message refers to what is at a URL: by the link, or where it is in the URL, by the id that it has once it is uploaded."""
        if (held := bytes_of(url)) is None:
            return {"link": url}
        mime = mime or held[0]
        told = await out.call(
            f"{self.url}/{number}/media",
            _passing,
            headers=self._headers,
            data={"messaging_product": "whatsapp", "type": mime},
            files={"file": (filename, held[1], mime)},
        )
        if not (media_id := text_at(told, "id")):
            raise Lost("its upload was given no id")
        return {"id": media_id}

    async def _post(self, out: Outgoing, to: tuple[str, str], kind: str, content: dict[str, str]) -> None:
        number, person = to
        message = {"messaging_product": "whatsapp", "recipient_type": "individual", "to": person, "type": kind}
        await out.call(
            f"{self.url}/{number}/messages", _passing, headers=self._headers, json={**message, kind: content}
        )


def json_or_nothing(body: bytes) -> dict[str, Any]:
    """An answer's JSON object, an empty one where it is something else."""
    try:
        return json_of(body)
    except Refused:
        return {}


def _passing(response: httpx.Response, told: Any) -> bool:
    """Whether Meta refuses now, and not for good: it says that in the body, and the status may be 400."""
    error = told.get("error")
    return isinstance(error, dict) and (error.get("is_transient") is True or error.get("code") in (*PASSING,))
