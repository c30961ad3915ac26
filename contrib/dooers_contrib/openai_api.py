"""A worker as a model behind OpenAI's `/v1/chat/completions` and `/v1/models`, for Open WebUI, LibreChat, the libraries. Needs no extra.

    app = Starlette(routes=openai_api(worker, who=who), lifespan=worker.lifespan)      # OpenAI(base_url=".../v1", api_key=...)

There is no library that serves it; the tests speak with `openai` itself. (`dooers_contrib.openai` is the other way round: a model's stream
as what a handler yields.)

A client of this protocol sends the whole conversation each time and has no name for it. Where it does name it (`X-Thread-Id`, Open WebUI's
`X-OpenWebUI-Chat-Id`, `metadata.thread_id`) that is the thread, and only the newest message is taken. Where not, a thread is made of
what it sends: a handler that reads its memory then knows what was said. System messages are not taken: what the assistant is, the
handler says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias
from uuid import uuid4

from attrs import define
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dooers import ContentPart, DocumentPart, Identity, TextPart, WorkerServer
from dooers_contrib.door import KEEP_ALIVE, MAX_BODY, PATIENCE, Asked, Door, Refused, Who, fault, text_at
from dooers_contrib.telling import Told, file_part, link, sse

__all__ = ["SAYS", "openai_api", "thread_named"]

Handler: TypeAlias = Callable[..., Any] | str | None

EARLIER = 50  # messages from before, at most, that a conversation without a name brings along
NAMED = ("x-thread-id", "x-openwebui-chat-id")
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {
    "UNAUTHENTICATED": "invalid_api_key",
    "RATE_LIMITED": "rate_limit_exceeded",
    "THREAD_BUSY": "rate_limit_exceeded",
}
FINISHED = {"succeeded": "stop", "canceled": "length"}  # "length": what there is of it is not the whole


def thread_named(request: Request, body: Mapping[str, Any]) -> str | None:
    """What the client calls the conversation; None where it has no name for it."""
    metadata = body.get("metadata")
    named = metadata.get("thread_id") if isinstance(metadata, Mapping) else None
    found = next((request.headers[name] for name in NAMED if request.headers.get(name)), named)
    return found if isinstance(found, str) and found else None


def openai_api(
    worker: WorkerServer,
    *,
    who: Who,
    path: str = "/v1",
    models: Mapping[str, Handler] | None = None,
    thread: Callable[[Request, Mapping[str, Any]], str | None] = thread_named,
    worker_id: str | None = None,
    leaving_stops: bool = False,
    max_body: int = MAX_BODY,
    keep_alive: float = KEEP_ALIVE,
    patience: float = PATIENCE,
) -> list[Route]:
    """The routes of the API: `path/chat/completions` and `path/models`.

    `who(request)` says who asks, by its `Authorization` for one: a mapping with `organization_id`, `workspace_id` and `user_id`, or None.
    `models`: the handlers by the names under which clients ask for them; else there is one model, the default handler, by the worker's
    id. `thread` says what a request calls its conversation. A client that leaves stops nothing, unless `leaving_stops`; one that does not
    read for `patience` seconds is left alone. `keep_alive`: seconds of silence after which something is sent that means nothing.
    """
    door = Door("openai_api", worker, who, worker_id, leaving_stops, max_body, keep_alive, patience)
    known: Mapping[str, Handler] = {door.served: None} if models is None else dict(models)
    began = int(time.time())

    def model(name: Any) -> dict[str, Any]:
        if not isinstance(name, str) or name not in known:
            raise Refused(
                404, "model_not_found", f"there is no model of that name; there are {', '.join(known)}", path="model"
            )
        return {"id": name, "object": "model", "created": began, "owned_by": "dooers"}

    async def complete(request: Request) -> Response:
        person = await door.person(request)
        body = await door.body(request)
        name = model(body.get("model"))["id"]
        streams, usage = _flag(body, "stream"), _flag(body, "stream_options", "include_usage")
        asked = _asked(door, person, request, body, thread(request, body))
        turn = await door.dispatch(person, asked, known[name])
        voice = _Voice(f"chatcmpl-{turn.stream.event_id}", name, int(time.time()), usage)
        return door.answer(turn, voice) if streams else voice.whole(await door.whole(request, turn))

    async def listed(request: Request) -> Response:
        await door.person(request)
        return JSONResponse({"object": "list", "data": [model(name) for name in known]})

    async def one(request: Request) -> Response:
        await door.person(request)
        return JSONResponse(model(request.path_params["name"]))

    base = path.rstrip("/")
    return [
        Route(f"{base}/chat/completions", door.endpoint(complete, _refuse), methods=["POST"]),
        Route(f"{base}/models", door.endpoint(listed, _refuse), methods=["GET"]),
        Route(f"{base}/models/{{name:path}}", door.endpoint(one, _refuse), methods=["GET"]),
    ]


def _refuse(refused: Refused) -> Response:
    status = 400 if refused.status == 422 else refused.status
    return JSONResponse(_error(status, refused.code, str(refused), refused.path or None), status)


def _error(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": CODES.get(code, code.lower())}}


# ---------------------------------------------------------------- what comes in


def _flag(body: Mapping[str, Any], *path: str) -> bool:
    value: Any = body
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is not None and not isinstance(value, bool):
        raise fault(".".join(path), "expected true or false")
    return bool(value)


def _asked(door: Door, person: Identity, request: Request, body: Mapping[str, Any], place: str | None) -> Asked:
    """The newest message of a request; with what was said before it, where its conversation has no name."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fault("messages", "expected a list with a message of the user")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise fault(f"messages[{index}]", "expected an object")
    *before, message = messages
    path = f"messages[{len(before)}]"
    if message.get("role") != "user":
        raise fault(f"{path}.role", "expected user: the client's tools are not called here")
    if body.get("n") not in (None, 1):
        raise fault("n", "expected 1: a turn has one answer")
    content = _content(door, message.get("content"), f"{path}.content")
    given, earlier = request.headers.get("idempotency-key"), [] if place else _earlier(before)
    # "Yes" to another question is another message, whatever the key.
    key = (place or "", given, *(text for _, text in earlier)) if given else None
    thread_id = door.thread_of(person, place or uuid4().hex)
    return Asked(thread_id, content, key, f"{path}.content", earlier=earlier)


def _content(door: Door, content: Any, path: str) -> list[ContentPart]:
    if isinstance(content, str):
        return [TextPart(content)]
    return [_part(part, f"{path}[{index}]") for index, part in enumerate(door.parts(content, path))]


def _part(part: Any, path: str) -> ContentPart:
    kind = part.get("type") if isinstance(part, dict) else None
    inner = part.get(kind) if isinstance(part, dict) and isinstance(kind, str) else None
    match kind, inner:
        case "text", _:
            return TextPart(text_at(inner, f"{path}.text"))
        case "image_url", {"url": url}:
            return file_part(text_at(url, f"{path}.image_url.url"), None, image=True)
        case "file", {"file_data": data, **more}:
            data = text_at(data, f"{path}.file.file_data")
            url = data if data[:5].lower() == "data:" else f"data:application/octet-stream;base64,{data}"
            return file_part(url, None, more.get("filename"), image=False)
        case "input_audio", {"data": str(data), "format": str(form)}:
            return DocumentPart(f"data:audio/{form};base64,{data}", f"audio.{form}", f"audio/{form}")
    raise fault(path, "expected a part of type text, image_url (with a url), file (with file_data) or input_audio")


def _earlier(messages: list[dict[str, Any]]) -> list[tuple[Literal["user", "assistant"], str]]:
    """What people and assistants said before, as texts."""
    said = [(one["role"], _text(one.get("content"))) for one in messages if one.get("role") in ("user", "assistant")]
    return [(role, text) for role, text in said if text][-EARLIER:]


def _text(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


# ---------------------------------------------------------------- what goes out


@define
class _Voice:
    id: str
    model: str
    created: int
    usage: bool
    spoken: bool = False

    def begin(self) -> Iterable[str]:
        yield self._chunk({"role": "assistant", "content": ""})

    def say(self, told: Told) -> Iterable[str]:
        if told.kind == "over":
            yield from self._over(told)
        elif text := self._text(told):
            yield self._chunk({"content": text})

    def _text(self, told: Told) -> str:
        # All messages of a turn are one here, with an empty line between them.
        gap = "\n\n" if self.spoken and told.kind in ("text_start", "image", "document") else ""
        text = gap + SAYS[told.kind](told)
        self.spoken = self.spoken or bool(text)
        return text

    def _over(self, told: Told) -> Iterable[str]:
        if told.data["status"] == "failed":
            yield sse(_error(500, "failed", told.data["error"]))
        else:
            yield self._chunk({}, FINISHED[told.data["status"]])
            if self.usage:
                yield sse({**self._about("chat.completion.chunk"), "choices": [], "usage": _USAGE})
        yield sse("[DONE]")

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return sse({**self._about("chat.completion.chunk"), "choices": [choice]})

    def _about(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self, steps: list[Told]) -> Response:
        *said, over = steps
        if over.data["status"] == "failed":
            # The libraries would ask again, and the turn has been.
            return JSONResponse(_error(500, "failed", over.data["error"]), 500, {"x-should-retry": "false"})
        message = {"role": "assistant", "content": "".join(map(self._text, said)), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": FINISHED[over.data["status"]], "logprobs": None}
        return JSONResponse({**self._about("chat.completion"), "choices": [choice], "usage": _USAGE})


# Nobody counts tokens here, and clients want to add them up.
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _delta(told: Told) -> str:
    return str(told.data["text"])


def _file(told: Told) -> str:
    return link(told)


def _nothing(told: Told) -> str:
    return ""


# What each step of an answer becomes: text, as there is nothing else. A tool call would ask the client to make it.
SAYS: dict[str, Callable[[Told], str]] = {
    "text_start": _nothing,
    "text_delta": _delta,
    "text_end": _nothing,
    "image": _file,
    "document": _file,
    "tool_call": _nothing,
    "tool_result": _nothing,
    "update_thread": _nothing,
    "run_start": _nothing,
    "run_end": _nothing,
}
