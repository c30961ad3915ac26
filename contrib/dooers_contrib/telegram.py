"""Telegram: an endpoint for the webhook of the Bot API, which brings messages into a worker and sends its answers.

    app.add_route("/telegram", telegram(worker, bot_token=..., secret_token=...), methods=["POST"])

The libraries for Telegram are frameworks: they come with an application, a queue and handlers, which a worker is already. What is
needed here is a header and seven kinds of request, and `httpx` does the HTTP. The tests make their updates with `python-telegram-bot`,
and compare what is sent with what its client sends.

The bot's token is in the path of each URL, and httpx logs URLs: in a request of ours the URL is one that shows itself without.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

import httpx
from attrs import define, field
from starlette.requests import Request
from starlette.responses import Response

from dooers import ConfigError, ContentPart, TextPart, WorkerEvent, WorkerServer
from dooers_contrib.attachments import IMAGES, attachment, bytes_of, download
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
    seconds,
    secret,
    text_at,
)

__all__ = ["telegram"]

API = "https://api.telegram.org"
TEXT_LIMIT = 4096
CAPTION_LIMIT = 1024
# What may be attached, with the type it has where Telegram names none.
MEDIA = {
    "photo": "image/jpeg",
    "voice": "audio/ogg",
    "audio": "audio/mpeg",
    "video": "video/mp4",
    "video_note": "video/mp4",
    "animation": "video/mp4",  # before `document`, which the same message has for older clients
    "sticker": "image/webp",
    "document": "application/octet-stream",
}
GROUPS = ("addressed", "all", "none")
_TOKEN = re.compile(r"([0-9]{1,20}):[A-Za-z0-9_-]{1,200}")
_INT = re.compile(r"-?[0-9]{1,18}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{1,256}")
_PATH = re.compile(r"[\w./-]{1,500}", re.ASCII)
_SHOWN = re.compile(r"(/bot[0-9]+)(?::|%3A)[A-Za-z0-9_-]+")


def telegram(
    worker: WorkerServer,
    *,
    bot_token: str,
    secret_token: str,
    handler: Callable[..., Any] | str | None = None,
    worker_id: str | None = None,
    organization_id: str = "telegram",
    workspace_id: str = "telegram",
    lookup: Lookup | None = None,
    sorry: str | None = SORRY,
    groups: Literal["addressed", "all", "none"] = "addressed",
    max_media_bytes: int | None = None,
    attempts: int = 6,
    pause: float = 1.0,
    timeout: float = 10.0,
    media_timeout: float = 8.0,
    api_url: str = API,
) -> Endpoint:
    """An endpoint for POST. A chat is a thread, and so is a topic in it; with `private_threads` one for each person of a group.

    `secret_token` is what you gave to `setWebhook`. `lookup` is given a Telegram user id, and `sorry` is as in `whatsapp`. `groups` says
    what is answered there: what is `addressed` to the bot (its name, a reply to it, a command), `all` that comes, or `none`.
    """
    if not (found := _TOKEN.fullmatch(secret("telegram(bot_token)", bot_token))):
        raise ConfigError("telegram(bot_token): expected a token as BotFather gives it, such as 123456:ABC-DEF")
    if not _SECRET.fullmatch(secret("telegram(secret_token)", secret_token)):
        raise ConfigError("telegram(secret_token): expected 1 to 256 of A-Z, a-z, 0-9, _ and -, as setWebhook wants it")
    if groups not in GROUPS:
        raise ConfigError(f"telegram(groups): expected one of {', '.join(GROUPS)}, got {groups!r}")
    limit = worker.config.max_data_url_bytes * 3 // 4 - 1024 if max_media_bytes is None else max_media_bytes
    bot = _Bot(found[1], bot_token, api_url.rstrip("/"), max(limit, 0), media_timeout)
    channel = Channel(
        "telegram", worker, bot.send, handler, worker_id, organization_id, workspace_id, lookup, sorry, attempts, pause,
        timeout, sign=bot.sign, veil=_veil,
    )  # fmt: skip

    async def answer(request: Request) -> Response:
        # Before the body: there is nothing in it that could be checked.
        if not same(request.headers.get("x-telegram-bot-api-secret-token"), secret_token):
            raise Refused(401)
        update = json_of(await body_of(request, MAX_BODY))
        return await channel.take(_messages(update, bot, channel, groups))

    return channel.endpoint(answer)


class _Veiled(httpx.URL):
    """A URL that is shown without the token in it, whoever shows it: httpx in its log, an error tracker with the request of an error."""

    def __str__(self) -> str:
        return _SHOWN.sub(r"\1:***", super().__str__())

    def __repr__(self) -> str:
        return f"URL({str(self)!r})"


async def _veil(request: httpx.Request) -> None:
    request.url = _Veiled(request.url)


# ---------------------------------------------------------------- what comes in


async def _messages(update: dict[str, Any], bot: _Bot, channel: Channel, groups: str) -> AsyncGenerator[Taken, None]:
    # Edited messages have had their turn.
    message = update.get("message")
    chat, sender = _number(message, "chat", "id"), _number(message, "from", "id")
    message_id = _number(message, "message_id")
    if not isinstance(message, dict) or not (chat and sender and message_id):
        return
    # Bots, and what a channel's posts are in the group that discusses them: nobody wrote to us.
    if message["from"].get("is_bot") is not False or message.get("is_automatic_forward"):
        return
    direct = text_at(message, "chat", "type") == "private"
    if not direct and (groups == "none" or not await _is_meant(message, bot, channel, groups)):
        return
    content = await _content(message, bot, channel)
    if not content:
        return
    # Replies have a thread id too, which is no topic.
    topic = _number(message, "message_thread_id") if message.get("is_topic_message") is True else ""
    whose = sender if channel.worker.config.private_threads and not direct else ""
    to: dict[str, Any] = {"chat_id": int(chat)} | ({"message_thread_id": int(topic)} if topic else {})
    if not direct:
        to["reply_parameters"] = {"message_id": int(message_id), "allow_sending_without_reply": True}
    yield Taken(
        # Not the update's id: Telegram begins with another number after a quiet week.
        key=f"{bot.id}/{chat}/{message_id}",
        sender=sender,
        place=f"{bot.id}/{chat}/{topic}/{whose}",
        to=to,
        content=content,
        name=f"{text_at(message, 'from', 'first_name')} {text_at(message, 'from', 'last_name')}".strip(),
        data={"telegram": _told(update, message, topic)},
    )


def _number(value: Any, *path: str) -> str:
    """The whole number at a path of keys, as a text; empty where there is none."""
    found = text_at(value, *path)
    return found if _INT.fullmatch(found) else ""


def _told(update: dict[str, Any], message: dict[str, Any], topic: str) -> dict[str, str]:
    """What else is worth knowing of a message."""
    told = {
        "update_id": text_at(update, "update_id"),
        "message_id": text_at(message, "message_id"),
        "chat_id": text_at(message, "chat", "id"),
        "chat_type": text_at(message, "chat", "type"),
        "topic": topic,
        "username": text_at(message, "from", "username"),
        "language": text_at(message, "from", "language_code"),
        "command": _command(message)[0][1:],
        "reply_to": text_at(message, "reply_to_message", "message_id"),
        "album": text_at(message, "media_group_id"),
    }
    return {name: value for name, value in told.items() if value}


def _command(message: dict[str, Any]) -> tuple[str, str]:
    """The command that a message begins with, and the bot that it names: ("/start", "my_bot"). Empty where there is none."""
    for entity in dicts(message, "entities"):
        if text_at(entity, "type") == "bot_command" and text_at(entity, "offset") == "0":
            command, _, name = _marked(text_at(message, "text"), entity).partition("@")
            return command, name
    return "", ""


def _marked(text: str, entity: dict[str, Any]) -> str:
    """What an entity marks. It counts in UTF-16."""
    start, length = _number(entity, "offset"), _number(entity, "length")
    if not start or not length:
        return ""
    units = text.encode("utf-16-le", "surrogatepass")[2 * int(start) : 2 * (int(start) + int(length))]
    return units.decode("utf-16-le", "replace")


async def _is_meant(message: dict[str, Any], bot: _Bot, channel: Channel, groups: str) -> bool:
    """Whether this bot is to answer what is said in a group: a command, its name, a reply to it."""
    command, name = _command(message)
    if name:
        return name.casefold() == await bot.name(channel)
    if groups == "all" or command:
        return True
    # In a topic everything is a reply to the notice that it was opened.
    replied = message.get("reply_to_message")
    if text_at(replied, "from", "id") == bot.id and isinstance(replied, dict) and "forum_topic_created" not in replied:
        return True
    for kind in ("", "caption_"):
        text = text_at(message, "caption" if kind else "text")
        for entity in dicts(message, f"{kind}entities"):
            if text_at(entity, "type") == "text_mention" and text_at(entity, "user", "id") == bot.id:
                return True
            named = _marked(text, entity)[1:] if text_at(entity, "type") == "mention" else ""
            if named and named.casefold() == await bot.name(channel):
                return True
    return False


async def _content(message: dict[str, Any], bot: _Bot, channel: Channel) -> list[ContentPart]:
    """What somebody said; nothing for what is no message to answer, such as somebody who joins."""
    for kind, mime in MEDIA.items():
        if (told := _file(message, kind, bot.max_media)) is not None:
            caption = text_at(message, "caption")
            async with channel.client() as client:
                fetch = bot.fetch(client, told, text_at(told, "mime_type") or mime)
                part = await attachment(kind, text_at(told, "file_name"), bot.media_timeout, fetch)
            return [TextPart(caption), part] if caption.strip() else [part]
    if isinstance(where := message.get("location"), dict):
        found = [where.get(name) for name in ("latitude", "longitude")]
        text = ", ".join(str(one) for one in found if isinstance(one, int | float))
        name = text_at(message, "venue", "title")
        return [TextPart(f"Location: {name} ({text})" if name else f"Location: {text}")] if text else []
    text = text_at(message, "text")
    command, name = _command(message)
    if name:  # `/help@my_bot` is how a group says `/help`
        text = command + text[len(command) + 1 + len(name) :]
    return [TextPart(text)] if text.strip() else []


def _file(message: dict[str, Any], kind: str, limit: int) -> dict[str, Any] | None:
    """What is told of a file. Of the sizes of a photo, which come the smallest first, the largest within the limit."""
    if kind == "photo":
        sizes = dicts(message, "photo")
        fit = [one for one in sizes if int(_number(one, "file_size") or 0) <= limit]
        return fit[-1] if fit else sizes[0] if sizes else None
    told = message.get(kind)
    if kind == "sticker" and isinstance(told, dict):
        moving = "application/x-tgsticker" if told.get("is_animated") is True else "video/webm"
        return {**told, "mime_type": moving} if told.get("is_animated") or told.get("is_video") else told
    return told if isinstance(told, dict) else None


# ---------------------------------------------------------------- the Bot API


@define(eq=False)
class _Bot:
    """The requests of the Bot API that are made here."""

    id: str
    token: str = field(repr=False)
    url: str
    max_media: int
    media_timeout: float
    _name: str = ""

    def _method(self, name: str) -> str:
        return f"{self.url}/bot{self.token}/{name}"

    async def name(self, channel: Channel) -> str:
        """The bot's username, in lower case; asked once, when somebody is called by a name for the first time."""
        if not self._name:
            async with channel.client() as client:
                told = await self._call(Outgoing(client, 1, 0), "getMe")
            self._name = text_at(told, "result", "username").casefold()
        return self._name

    async def fetch(self, client: httpx.AsyncClient, told: dict[str, Any], mime: str) -> tuple[str, bytes]:
        """The type and the bytes of a file."""
        if int(_number(told, "file_size") or 0) > self.max_media:
            raise Lost(f"it has more than {self.max_media} bytes")
        try:
            found = await self._call(Outgoing(client, 1, 0), "getFile", json={"file_id": text_at(told, "file_id")})
        except Lost as error:
            raise (
                error if error.again else Lost("Telegram does not give it")
            ) from None  # it has more than 20 MB, or is gone
        path = text_at(found, "result", "file_path")
        # The token goes with it, so it goes nowhere else. A server of one's own may give a path of its disk: that is no address.
        if not _PATH.fullmatch(path) or ".." in path or path.startswith("/"):
            raise Lost("it has no address")
        return mime, await download(client, f"{self.url}/file/bot{self.token}/{path}", self.max_media)

    async def _call(self, out: Outgoing, method: str, **request: Any) -> dict[str, Any]:
        try:
            told = await out.call(self._method(method), _passing, **request)
        except Lost as error:  # whoever is between us and Telegram may say which path it was
            lost = Lost(_SHOWN.sub(r"\1:***", str(error)), again=error.again)
        else:
            if told.get("ok") is True:
                return told
            lost = Lost("an answer that is none of Telegram's")
        raise lost  # out here, or the first one would be its context

    # ------------------------------------------------------------ answers

    async def sign(self, out: Outgoing, to: dict[str, Any]) -> None:
        """`typing...`, for five seconds."""
        where = {name: value for name, value in to.items() if name != "reply_parameters"}
        await self._call(out, "sendChatAction", json={**where, "action": "typing"})

    async def send(self, out: Outgoing, to: dict[str, Any], event: WorkerEvent) -> None:
        """Send what a handler said, if it is for people."""
        data = event.data
        if event.send_type == "text":
            await self._say(out, to, data["text"])
        elif event.send_type == "image":
            alt = data.get("alt") or ""
            held = bytes_of(data["url"])
            kind = "photo" if held is None or held[0] in IMAGES else "document"
            name = f"image.{(held[0] if held else '').partition('/')[2] or 'bin'}"
            await self._show(out, {**to, "caption": "".join(pieces(alt, CAPTION_LIMIT)[:1])}, kind, data["url"], name)
        elif event.send_type == "document":
            await self._show(out, to, "document", data["url"], data["filename"], data["mime_type"])

    async def _say(self, out: Outgoing, to: dict[str, Any], text: str) -> None:
        for piece in pieces(text, TEXT_LIMIT):
            # Without a preview: Telegram would fetch what a model writes, and a model can be talked into writing a secret into a URL.
            no_preview = {"link_preview_options": {"is_disabled": True}}
            await self._call(out, "sendMessage", json={**to, "text": piece, **no_preview})

    async def _show(
        self, out: Outgoing, to: dict[str, Any], kind: str, url: str, name: str, mime: str | None = None
    ) -> None:
        method = f"send{kind.title()}"
        to = {key: value for key, value in to.items() if value != ""}
        if (held := bytes_of(url)) is not None:
            form = {key: value if isinstance(value, str) else json.dumps(value) for key, value in to.items()}
            await self._call(out, method, data=form, files={kind: (name, held[1], mime or held[0])})
            return
        try:
            await self._call(out, method, json={**to, kind: url})
        except Lost as error:
            if error.again:
                raise
            # Telegram fetches what is small, and of documents PDF and ZIP alone. People can fetch the rest.
            caption = to.pop("caption", "" if kind == "photo" else name)
            await self._say(out, to, f"{caption}\n{url}")


def _passing(response: httpx.Response, told: Any) -> float | bool:
    """Whether Telegram refuses now, and not for good: then it says in the body for how many seconds."""
    asked = seconds(text_at(told, "parameters", "retry_after"))
    return False if asked is None else asked
