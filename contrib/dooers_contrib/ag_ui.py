"""AG-UI, the protocol of CopilotKit and others: an endpoint that their clients run as their agent. Needs the extra `ag-ui`.

    app = Starlette(routes=ag_ui(worker, who=who), lifespan=worker.lifespan)        // new HttpAgent({ url: ".../ag-ui", threadId })

What `ag_ui` (PyPI `ag-ui-protocol`) does for us: its models say what a `RunAgentInput` is, with the path of each fault, and
what an event is, and its encoder writes events. Ours is what each step of an answer is called there.

The same message in the same `runId` is the same message; another run of it is a new answer to it. The front end's tools are not called: the
handler has its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from attrs import frozen
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dooers import ContentPart, TextPart, WorkerServer
from dooers_contrib.door import KEEP_ALIVE, MAX_BODY, PATIENCE, Asked, Door, Refused, Who, fault
from dooers_contrib.telling import Told, file_part, link

try:
    from ag_ui.core import (
        BaseEvent,
        CustomEvent,
        FileSource,
        RunAgentInput,
        RunErrorEvent,
        RunFinishedCancelledOutcome,
        RunFinishedEvent,
        RunFinishedSuccessOutcome,
        RunStartedEvent,
        TextMessageContentEvent,
        TextMessageEndEvent,
        TextMessageStartEvent,
        ToolCallArgsEvent,
        ToolCallEndEvent,
        ToolCallResultEvent,
        ToolCallStartEvent,
        UserMessage,
    )
    from ag_ui.encoder import EventEncoder
    from pydantic import ValidationError
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pip install 'dooers-workers-server[ag-ui]'", name=missing.name) from None

__all__ = ["SAYS", "ag_ui"]

Events: TypeAlias = Iterable[BaseEvent]
encode = EventEncoder().encode


def ag_ui(
    worker: WorkerServer,
    *,
    who: Who,
    path: str = "/ag-ui",
    handler: Callable[..., Any] | str | None = None,
    worker_id: str | None = None,
    leaving_stops: bool = False,
    max_body: int = MAX_BODY,
    keep_alive: float = KEEP_ALIVE,
    patience: float = PATIENCE,
) -> list[Route]:
    """The route of an AG-UI agent. `who(request)` says who asks: a mapping with `organization_id`, `workspace_id` and `user_id`, or None.

    A client that leaves, by closing its tab or by `abortRun()`, stops nothing, unless `leaving_stops`. One that does not read for
    `patience` seconds is left alone. `keep_alive`: seconds of silence after which something is sent that means nothing.
    """
    door = Door("ag_ui", worker, who, worker_id, leaving_stops, max_body, keep_alive, patience)

    async def answer(request: Request) -> Response:
        person = await door.person(request)
        run, index = _input(await door.body(request), door)
        turn = await door.dispatch(person, _asked(run, index, door.thread_of(person, run.thread_id)), handler)
        return door.answer(turn, _Voice(run.thread_id, run.run_id, run.protocol_version))

    return [Route(path, door.endpoint(answer, _refuse), methods=["POST"])]


def _refuse(refused: Refused) -> Response:
    event = RunErrorEvent(message=str(refused), code=refused.code)
    return Response(event.model_dump_json(by_alias=True), refused.status, media_type="application/json")


# ---------------------------------------------------------------- what comes in


def _input(body: dict[str, Any], door: Door) -> tuple[RunAgentInput, int]:
    """What is asked, with the newest message of a person alone, and where it stands: the others are the client's word for what was said."""
    index = _newest(body)
    message = body["messages"][index]
    if isinstance(message.get("content"), list):
        door.parts(message["content"], f"messages[{index}].content")
    named = {name: body[name] for name in ("threadId", "runId", "protocolVersion") if name in body}
    for name, value in named.items():
        # They are said again in the answer, which is UTF-8.
        if isinstance(value, str) and value.encode(errors="replace") != value.encode(errors="surrogatepass"):
            raise fault(name, "expected a text of whole characters")
    try:
        return RunAgentInput.model_validate({**named, "messages": [message]}), index
    except ValidationError as error:
        # Of the members of a union, the one that went furthest is the one that was meant.
        faults = [(_path(body, _at(one["loc"], index)), one["msg"]) for one in error.errors(include_url=False)]
        raise fault(*max(faults, key=lambda one: len(one[0]))) from None


def _newest(body: dict[str, Any]) -> int:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise fault("messages", "expected a list with a message of the user")
    for index in reversed(range(len(messages))):
        role = messages[index].get("role") if isinstance(messages[index], dict) else None
        if not isinstance(role, str):
            raise fault(f"messages[{index}]", "expected an object with a role")
        if role == "tool":
            raise fault(f"messages[{index}].role", "tools of the front end are not called here")
        if role == "user":
            return index
    raise fault("messages", "expected a message of the user")


def _at(location: tuple[int | str, ...], index: int) -> tuple[int | str, ...]:
    return ("messages", index, *location[2:]) if location[:2] == ("messages", 0) else location


def _path(value: Any, location: tuple[int | str, ...]) -> str:
    """The way to a fault as people write it, without the names of union members that stand in pydantic's."""
    path = ""
    for index, step in enumerate(location):
        if isinstance(value, list) and isinstance(step, int) and step < len(value):
            path, value = f"{path}[{step}]", value[step]
        elif isinstance(value, dict) and (step in value or index == len(location) - 1):
            path, value = f"{path}.{step}" if path else str(step), value.get(step)
    return path


def _asked(run: RunAgentInput, index: int, thread_id: str) -> Asked:
    [message] = run.messages
    assert isinstance(message, UserMessage)
    path = f"messages[{index}].content"
    data = {"ag_ui": {"message_id": message.id[:256]}}
    return Asked(thread_id, list(_content(message, path)), (thread_id, run.run_id, message.id), path, data)


def _content(message: UserMessage, path: str) -> Iterable[ContentPart]:
    if isinstance(message.content, str):
        yield TextPart(message.content)
        return
    for index, part in enumerate(message.content):
        if part.type == "text":
            yield TextPart(part.text)
            continue
        source = part.source
        if isinstance(source, FileSource):
            raise fault(f"{path}[{index}].source.type", "expected data or url: files of a vendor cannot be read here")
        known = part.metadata if isinstance(part.metadata, dict) else {}
        name = known.get("filename") or known.get("name")
        data = f"data:{source.mime_type};base64,{source.value}"
        url = data if source.type == "data" else source.value
        yield file_part(url, source.mime_type, name, image=part.type == "image")


# ---------------------------------------------------------------- what goes out


@frozen
class _Voice:
    thread_id: str
    run_id: str
    version: str | None

    def begin(self) -> Iterable[str]:
        yield encode(RunStartedEvent(thread_id=self.thread_id, run_id=self.run_id))

    def say(self, told: Told) -> Iterable[str]:
        events = self._over(told) if told.kind == "over" else SAYS[told.kind](told)
        return map(encode, events)

    def _over(self, told: Told) -> Events:
        if told.data["status"] == "failed":
            yield RunErrorEvent(message=told.data["error"], code="failed")
            return
        canceled = told.data["status"] == "canceled"
        # Named, that there is none: a client takes each call without a result for one that it is to make.
        outcome = RunFinishedCancelledOutcome() if canceled else RunFinishedSuccessOutcome(pending_tool_call_ids=[])
        # Clients from before 1.0 do not say their version, and refuse an outcome that they do not know.
        known = outcome if self.version else None
        yield RunFinishedEvent(thread_id=self.thread_id, run_id=self.run_id, outcome=known)


def _text_start(told: Told) -> Events:
    yield TextMessageStartEvent(message_id=told.id, role="assistant")


def _text_delta(told: Told) -> Events:
    yield TextMessageContentEvent(message_id=told.id, delta=told.data["text"])


def _text_end(told: Told) -> Events:
    yield TextMessageEndEvent(message_id=told.id)


def _file(told: Told) -> Events:
    yield from _text_start(told)
    yield TextMessageContentEvent(message_id=told.id, delta=link(told))
    yield from _text_end(told)


def _tool_call(told: Told) -> Events:
    yield ToolCallStartEvent(tool_call_id=told.id, tool_call_name=told.data["name"])
    yield ToolCallArgsEvent(tool_call_id=told.id, delta=json.dumps(told.data.get("args") or {}, ensure_ascii=False))
    yield ToolCallEndEvent(tool_call_id=told.id)


def _tool_result(told: Told) -> Events:
    result = told.data.get("result")
    content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    yield ToolCallResultEvent(message_id=f"{told.id}-result", tool_call_id=told.id, content=content, role="tool")


def _thread(told: Told) -> Events:
    if "title" in told.data:  # its metadata is between the handler and the database
        yield CustomEvent(name="thread", value={"title": told.data["title"]})


def _nothing(told: Told) -> Events:
    return ()


# What each step of an answer becomes.
SAYS: dict[str, Callable[[Told], Events]] = {
    "text_start": _text_start,
    "text_delta": _text_delta,
    "text_end": _text_end,
    "image": _file,
    "document": _file,
    "tool_call": _tool_call,
    "tool_result": _tool_result,
    "update_thread": _thread,
    # The turn is the run, and its end says how the last run of the handler ended.
    "run_start": _nothing,
    "run_end": _nothing,
}
