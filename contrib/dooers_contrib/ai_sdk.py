"""The Vercel AI SDK's UI message stream: what `useChat` and its siblings for Vue, Svelte and Angular ask of a server. Needs no extra.

    app = Starlette(routes=ai_sdk(worker, who=who), lifespan=worker.lifespan)          // useChat({ id, resume: true }), at /api/chat

There is no library of it for Python; a frame is JSON after `data: `. The tests speak with the SDK itself, versions 5, 6 and 7.

The same message with the same content is the same message; one that was edited is a new one, and so is one to `regenerate()`. The front
end's tools are not called: the handler has its own, and what they did is shown as tools that the server executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from attrs import frozen
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dooers import ContentPart, TextPart, WorkerServer
from dooers_contrib.door import (
    KEEP_ALIVE,
    MAX_BODY,
    PATIENCE,
    Asked,
    Door,
    Refused,
    Turn,
    Who,
    fault,
    text_at,
)
from dooers_contrib.telling import Told, file_part, mime_type_of, sse

__all__ = ["SAYS", "ai_sdk"]

Chunks: TypeAlias = Iterable[dict[str, Any]]


def ai_sdk(
    worker: WorkerServer,
    *,
    who: Who,
    path: str = "/api/chat",
    handler: Callable[..., Any] | str | None = None,
    worker_id: str | None = None,
    leaving_stops: bool = False,
    max_body: int = MAX_BODY,
    keep_alive: float = KEEP_ALIVE,
    patience: float = PATIENCE,
) -> list[Route]:
    """The routes of a chat: POST at `path`, and GET at `path/{id}/stream`, where a client finds the answer that is being written.

    `who(request)` says who asks: a mapping with `organization_id`, `workspace_id` and `user_id`, or None. A client that leaves, by
    closing its tab or by `stop()`, stops nothing, unless `leaving_stops`; then nothing is left to resume, either. One that does not
    read for `patience` seconds is left alone. `keep_alive`: seconds of silence after which something is sent that means nothing.
    """
    door = Door("ai_sdk", worker, who, worker_id, leaving_stops, max_body, keep_alive, patience)

    def stream(turn: Turn) -> Response:
        return door.answer(turn, _Voice(turn.stream.event_id), x_vercel_ai_ui_message_stream="v1")

    async def post(request: Request) -> Response:
        person = await door.person(request)
        body = await door.body(request)
        thread_id = door.thread_of(person, text_at(body.get("id"), "id"))
        return stream(await door.dispatch(person, _asked(body, door, thread_id), handler))

    async def resume(request: Request) -> Response:
        person = await door.person(request)
        turn = door.running(door.thread_of(person, request.path_params["id"]))
        if turn is None or not await door.may(person, "thread.read", turn):
            return Response(status_code=204)
        return stream(turn)

    return [
        Route(path, door.endpoint(post, _refuse), methods=["POST"]),
        # A path, as a chat's id may have a slash in it.
        Route(f"{path.rstrip('/')}/{{id:path}}/stream", door.endpoint(resume, _refuse), methods=["GET"]),
    ]


def _refuse(refused: Refused) -> Response:
    # The text of the answer becomes the `error.message` of the chat.
    return PlainTextResponse(str(refused), refused.status, {"x-content-type-options": "nosniff"})


# ---------------------------------------------------------------- what comes in


def _asked(body: dict[str, Any], door: Door, thread_id: str) -> Asked:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fault("messages", "expected a list with a message of the user")
    path = f"messages[{len(messages) - 1}]"
    message = messages[-1]
    if not isinstance(message, dict):
        raise fault(path, "expected an object")
    if message.get("role") != "user":
        raise fault(f"{path}.role", "expected user: what the front end's tools did is not taken here")
    parts = door.parts(message.get("parts"), f"{path}.parts")
    content = [_part(part, f"{path}.parts[{index}]") for index, part in enumerate(parts)]
    message_id, key = message.get("id"), None
    regenerated = body.get("trigger") == "regenerate-message"
    # Without the id of what it is to replace, nobody can tell one regeneration from the next.
    if isinstance(message_id, str) and message_id and (not regenerated or isinstance(body.get("messageId"), str)):
        key = (thread_id, message_id, body["messageId"] if regenerated else "")
    return Asked(thread_id, content, key, f"{path}.parts", {"ai_sdk": {"message_id": str(message_id or "")[:256]}})


def _part(part: Any, path: str) -> ContentPart:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return TextPart(text_at(part.get("text"), f"{path}.text"))
    if kind == "file":
        url, media_type = text_at(part.get("url"), f"{path}.url"), text_at(part.get("mediaType"), f"{path}.mediaType")
        return file_part(url, media_type, part.get("filename"), image=media_type.startswith("image/"))
    raise fault(f"{path}.type", "expected text or file")


# ---------------------------------------------------------------- what goes out


@frozen
class _Voice:
    event_id: str

    def begin(self) -> Iterable[str]:
        yield sse({"type": "start", "messageId": f"answer-{self.event_id}"})

    def say(self, told: Told) -> Iterable[str]:
        yield from map(sse, SAYS[told.kind](told))
        if told.kind == "over":
            yield sse("[DONE]")


def _text_start(told: Told) -> Chunks:
    yield {"type": "text-start", "id": told.id}


def _text_delta(told: Told) -> Chunks:
    yield {"type": "text-delta", "id": told.id, "delta": told.data["text"]}


def _text_end(told: Told) -> Chunks:
    yield {"type": "text-end", "id": told.id}


def _file(told: Told) -> Chunks:
    kind = told.data.get("mime_type") or mime_type_of(told.data["url"])
    yield {
        "type": "file",
        "url": told.data["url"],
        "mediaType": kind or ("image/*" if told.kind == "image" else "application/octet-stream"),
    }


# Dynamic, as the front end need not know them; executed by the provider, so that it does not wait to do it itself.
def _tool_call(told: Told) -> Chunks:
    yield {
        "type": "tool-input-available",
        "toolCallId": told.id,
        "toolName": told.data["name"],
        "input": told.data.get("args") or {},
        "dynamic": True,
        "providerExecuted": True,
    }


def _tool_result(told: Told) -> Chunks:
    yield {
        "type": "tool-output-available",
        "toolCallId": told.id,
        "output": told.data.get("result"),
        "dynamic": True,
        "providerExecuted": True,
    }


def _thread(told: Told) -> Chunks:
    if "title" in told.data:  # its metadata is between the handler and the database
        yield {"type": "data-thread", "data": {"title": told.data["title"]}, "transient": True}


def _over(told: Told) -> Chunks:
    match told.data["status"]:
        case "failed":
            yield {"type": "error", "errorText": told.data["error"]}
        case "canceled":
            yield {"type": "abort"}
        case _:
            yield {"type": "finish"}


def _nothing(told: Told) -> Chunks:
    return ()


# What each step of an answer becomes.
SAYS: dict[str, Callable[[Told], Chunks]] = {
    "text_start": _text_start,
    "text_delta": _text_delta,
    "text_end": _text_end,
    "image": _file,
    "document": _file,
    "tool_call": _tool_call,
    "tool_result": _tool_result,
    "update_thread": _thread,
    "run_start": _nothing,
    "run_end": _nothing,
    "over": _over,
}
