"""What the doors for other front ends (`ag_ui`, `ai_sdk`, `openai_api`) share: who asks, what is asked, the turn, and its answer as
server-sent events. Nothing here knows any front end's format.

- **Who asks** is said by the hook `who(request)`, and by nothing else: it is what `@worker.authenticate` is to the WebSocket.
  `permissions` and `@worker.authorize` are asked as they are there, and the same limits hold.
- **A conversation belongs to a person.** The thread's id is made of the worker, the person and the id that the client gave, so naming
  somebody's conversation leads into one's own.
- **The history is the worker's.** Only the newest message of a request is taken; what the client says was said before is not believed.
- **The turn is the worker's**, too: it runs to its end however slowly its answer is read, and whether or not anybody is left to read it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from operator import attrgetter
from typing import Any, Literal, TypeAlias, TypeVar, cast
from uuid import NAMESPACE_URL, uuid5

from attrs import asdict, define, evolve, field, fields, frozen
from starlette.requests import Request
from starlette.responses import Response

from dooers import (
    ConfigError,
    ContentPart,
    DispatchStream,
    DooersError,
    HandlerError,
    Identity,
    InvalidValueError,
    Operation,
    TextPart,
    WorkerEvent,
    WorkerServer,
    check_content,
)
from dooers_contrib.body import Refused as Unread
from dooers_contrib.body import body_of, json_of
from dooers_contrib.telling import EventStream, Telling, Told, Voice, unless_left

__all__ = ["KEEP_ALIVE", "MAX_BODY", "PATIENCE", "Asked", "Door", "Refused", "Turn", "Who", "fault", "text_at"]

log = logging.getLogger("dooers")

# From a request to who sends it: a mapping with `organization_id`, `workspace_id` and `user_id`, an Identity, or None. Sync or async.
Who: TypeAlias = Callable[[Request], Any]
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

MAX_BODY = 16 * 1024 * 1024  # front ends send the whole conversation each time, files included
KEEP_ALIVE = 15.0
PATIENCE = 60.0
MAX_URL = 8192
AGAIN, LONGEST_PAUSE = 0.5, 8.0  # seconds between two looks at a turn that another process is at
SORRY = "Something went wrong."
_IDENTITY = frozenset(one.name for one in fields(Identity))
_person = attrgetter("organization_id", "workspace_id", "user_id")
_STATUS = {
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "TOO_LARGE": 413,
    "INVALID_VALUE": 422,
    "THREAD_BUSY": 429,
    "RATE_LIMITED": 429,
    "CLOSING": 503,
}


class Refused(Exception):
    """This request is not taken: a status, a code of the house, a text for people, and the path of the fault where there is one."""

    def __init__(self, status: int, code: str, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.status = status
        self.code = code
        self.path = path

    @property
    def headers(self) -> dict[str, str]:
        """What goes along with the status."""
        return {"retry-after": "1"} if self.status in (429, 503) else {}


def fault(path: str, message: str) -> Refused:
    """A request of a wrong shape, by the path to where it is wrong."""
    return Refused(422, "INVALID_VALUE", message, path=path)


def _refused_of(error: DooersError) -> Refused:
    status = _STATUS.get(error.code)
    if status is None:
        log.error("a request could not be taken", exc_info=error)
        return Refused(500, "SERVER_ERROR", SORRY)
    return Refused(status, error.code, str(error).removeprefix("dispatch: "))


def text_at(value: Any, path: str) -> str:
    """A value of a request that must be a text."""
    if not isinstance(value, str):
        kinds = {dict: "an object", list: "a list", bool: "a boolean", type(None): "nothing"}
        raise fault(path, f"expected a text, got {kinds.get(type(value), 'a number')}")
    return value


@frozen
class Asked:
    """A message as a door read it. The same `key` and the same content are the same message again; None where nobody can tell.

    `earlier` is what was said before it, where the client is the only one that knows: then its thread is a new one, with that in it.
    """

    thread_id: str
    content: list[ContentPart]
    key: tuple[str, ...] | None
    path: str = "content"
    data: dict[str, Any] = field(factory=dict)
    earlier: Sequence[tuple[Literal["user", "assistant"], str]] = ()


@define(eq=False)
class Turn:
    """A message that was taken, and how many read its answer. `again` gives a repeat once more, to see what became of the first one."""

    stream: DispatchStream
    again: Callable[[], Awaitable[Turn]]
    person: Identity
    readers: int = 0

    @property
    def running_elsewhere(self) -> bool:
        """Whether it is a repeat of a message that another process is answering now."""
        return self.stream.is_repeat and self.stream.status in ("waiting", "running")


@frozen(eq=False)
class Door:
    """Brings messages in for one kind of front end."""

    name: str
    worker: WorkerServer
    who: Who
    worker_id: str | None = None
    leaving_stops: bool = False
    max_body: int = MAX_BODY
    keep_alive: float = KEEP_ALIVE
    patience: float = PATIENCE
    _live: dict[str, Turn] = field(factory=dict, repr=False, init=False)  # by message
    _latest: dict[str, Turn] = field(factory=dict, repr=False, init=False)  # by thread
    _turns: Counter[tuple[str, str, str]] = field(factory=Counter, repr=False, init=False)
    _tasks: set[asyncio.Task[Any]] = field(factory=set, repr=False, init=False)

    def __attrs_post_init__(self) -> None:
        if not callable(self.who):
            raise ConfigError(f"{self.name}(who): expected a function of a request, got {type(self.who).__name__}")

    # ------------------------------------------------------------ what comes in

    async def person(self, request: Request) -> Identity:
        """Who asks. Asked before anything of the request's body is read."""
        allowed = self.worker.config.allowed_origins
        if allowed is not None and any(origin not in allowed for origin in request.headers.getlist("origin")):
            raise Refused(403, "FORBIDDEN", "this page may not ask here")
        found = self.who(request)
        found = await found if inspect.isawaitable(found) else found
        if found is None:
            raise Refused(401, "UNAUTHENTICATED", "who are you?")
        if isinstance(found, Mapping):
            try:
                found = Identity(**{name: value for name, value in found.items() if name in _IDENTITY})
            except InvalidValueError as error:  # ours to mend, and nothing that a client could
                raise TypeError(f"{self.name}(who): {error}") from error
        if not isinstance(found, Identity) or not found.user_id:
            # Nobody is no person: all nobodies would share their conversations.
            raise TypeError(f"{self.name}(who): expected a mapping with a user_id, an Identity or None")
        if found.expires_at is not None and found.expires_at <= datetime.now(UTC):
            raise Refused(401, "UNAUTHENTICATED", "the proof of who you are has expired")
        return found

    async def body(self, request: Request) -> dict[str, Any]:
        """The body, a JSON object, within bounds."""
        # A page of another origin can post a form or a plain text with the cookies of its reader, but not this.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "INVALID_VALUE", "expected application/json")
        try:
            return json_of(await body_of(request, self.max_body))
        except Unread as error:
            code = "TOO_LARGE" if error.status == 413 else "INVALID_VALUE"
            raise Refused(error.status, code, str(error)) from None

    def thread_of(self, person: Identity, place: str) -> str:
        """The thread of what this person's clients call `place`."""
        whose = (self.served, person.organization_id, person.workspace_id, person.user_id, place)
        return str(uuid5(NAMESPACE_URL, json.dumps(["front-end", *whose])))

    @property
    def served(self) -> str:
        """The worker id that is spoken to here."""
        return self.worker.config.worker_id if self.worker_id is None else self.worker_id

    def parts(self, value: Any, path: str) -> list[Any]:
        """The parts of a message, so many as may be: before anything is made of each."""
        if not isinstance(value, list):
            raise fault(path, "expected a list of parts")
        limit = self.worker.config.max_content_parts
        if len(value) > limit:
            raise Refused(413, "TOO_LARGE", f"at most {limit} parts, got {len(value)}", path=path)
        return value

    def _repeat_key(self, asked: Asked) -> str | None:
        if asked.key is None:
            return None
        content = [asdict(part) for part in asked.content]
        return sha256(json.dumps([self.name, asked.key, content]).encode()).hexdigest()

    # ------------------------------------------------------------ the turn

    async def dispatch(self, person: Identity, asked: Asked, handler: Callable[..., Any] | str | None = None) -> Turn:
        """Store a message and let its turn run. A repeat runs nothing, and is answered by what the first one was answered."""
        check_content(asked.content, self.worker.config, asked.path)
        for index, part in enumerate(asked.content):
            if not isinstance(part, TextPart) and part.url[:5].lower() != "data:" and len(part.url) > MAX_URL:
                raise fault(f"{asked.path}[{index}].url", f"expected at most {MAX_URL} characters")
        if not asked.content:
            raise fault(asked.path, "expected a text or a file")
        known = await self._check_post(person, asked.thread_id)
        limit = self.worker.config.max_turns_per_identity
        if self._turns[_person(person)] >= limit:
            raise Refused(429, "RATE_LIMITED", f"at most {limit} messages may wait for an answer at once")
        turn = await self._begun(person, asked, handler)
        if not known and not await self.may(
            person, "thread.read", turn
        ):  # it has its turn, and they are not told of it
            raise Refused(404, "NOT_FOUND", "there is no such thread")
        return turn

    async def may(self, person: Identity, operation: Operation, turn: Turn) -> bool:
        """Whether somebody may do this where a turn is."""
        thread = await (await self.worker.repository()).get_thread(turn.stream.thread_id)
        return thread is not None and self.worker.allows(person, operation, thread)

    async def _check_post(self, person: Identity, thread_id: str) -> bool:
        """Refuse who may not post there; else whether there is such a thread."""
        thread = await (await self.worker.repository()).get_thread(thread_id)
        if thread is not None and not self.worker.allows(person, "thread.read", thread):
            raise Refused(404, "NOT_FOUND", "there is no such thread")
        if not self.worker.allows(person, "thread.post", thread):
            raise Refused(403, "FORBIDDEN", "your role does not allow thread.post")
        return thread is not None

    def _begun(self, person: Identity, asked: Asked, handler: Callable[..., Any] | str | None) -> Awaitable[Turn]:
        self._turns[_person(person)] += 1  # not in the task: in front of it others would be counted with too few
        # Shielded: a dispatch that is cut off may have stored its message, whose turn is then stopped, and never run again.
        return asyncio.shield(self._kept(self._open(person, asked, handler)))

    async def _open(self, person: Identity, asked: Asked, handler: Callable[..., Any] | str | None) -> Turn:
        kept = None
        try:
            if asked.earlier:
                await self._recall(person, asked)
            stream = await self.worker.dispatch(
                handler,
                metadata=person,
                worker_id=self.served,
                thread_id=asked.thread_id,
                content=asked.content,
                data={"door": self.name, **asked.data},
                idempotency_key=self._repeat_key(asked),
            )
            same = evolve(asked, thread_id=stream.thread_id, earlier=())
            turn = Turn(stream, lambda: self._begun(person, same, handler), person)
            kept = stream.thread_id
        except BaseException:
            self._free(person)
            raise
        finally:
            if asked.earlier and kept != asked.thread_id:  # a repeat, or not taken
                with suppress(DooersError):
                    await (await self.worker.repository()).remove_thread(asked.thread_id)
        if stream.is_repeat:
            self._free(person)
            return self._live.get(stream.event_id, turn)
        stream.events(deltas=True)  # not to iterate it: as this is asked for before the turn runs, the pieces are kept
        stream.detach()
        self._live[stream.event_id] = self._latest[stream.thread_id] = turn
        self._kept(self._until_over(turn))
        return turn

    async def _recall(self, person: Identity, asked: Asked) -> None:
        """Make its thread, in which the earlier messages were said, as many of the newest as a message may be long."""
        room, said = self.worker.config.max_text_length, list[tuple[Literal["user", "assistant"], str]]()
        for actor, text in reversed(asked.earlier):
            if (room := room - len(text)) < 0:
                break
            said.insert(0, (actor, text))
        repository = await self.worker.repository()
        await repository.create_thread(self.served, metadata=person, id=asked.thread_id)
        for actor, text in said:
            user = person.user if actor == "user" else None
            await repository.create_event(asked.thread_id, "message", actor, text, user=user, data={"door": self.name})

    async def _until_over(self, turn: Turn) -> None:
        stream = turn.stream
        try:
            with suppress(HandlerError):  # logged where it happened
                await stream.collect()
        finally:
            self._free(turn.person)
            self._live.pop(stream.event_id, None)
            if self._latest.get(stream.thread_id) is turn:
                del self._latest[stream.thread_id]

    def _free(self, person: Identity) -> None:
        self._turns[_person(person)] -= 1
        if not self._turns[_person(person)]:
            del self._turns[_person(person)]

    def _kept(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=f"dooers-{self.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def running(self, thread_id: str) -> Turn | None:
        """The newest turn of a thread that runs here."""
        return self._latest.get(thread_id)

    # ------------------------------------------------------------ what goes out

    async def told(self, turn: Turn) -> AsyncGenerator[Told, None]:
        """The steps of an answer from its beginning, those that were there before live; the last one is `over`."""
        turn.readers += 1
        try:
            async with aclosing(self._told(turn)) as steps:
                async for told in steps:
                    yield told
        finally:
            turn.readers -= 1

    async def _told(self, turn: Turn) -> AsyncGenerator[Told, None]:
        pause = AGAIN
        while turn.running_elsewhere:
            await asyncio.sleep(pause)
            turn, pause = await turn.again(), min(2 * pause, LONGEST_PAUSE)
        stream, telling, ended, known = turn.stream, Telling(), None, turn.stream.is_repeat
        status, error = "succeeded", ""
        # Left early, it cancels nothing: the stream is detached, or a repeat.
        events = cast("AsyncGenerator[WorkerEvent, None]", stream.events(deltas=True))
        try:
            async with aclosing(events):
                async for event in events:
                    ended = event.data if event.send_type == "run_end" else ended
                    for told in telling.take(event):
                        yield told
            if stream.is_repeat and not known:  # when its place came, another process had answered it, or was about to
                async with aclosing(self._told(await turn.again())) as steps:
                    async for told in steps:
                        yield told
                return
            status = stream.status if stream.status != "running" else status
        except HandlerError:
            status = "failed"
        for told in telling.close():
            yield told
        if status == "succeeded" and ended is not None:
            status, error = ended["status"], ended["error"] or ""
        if status == "failed":
            error = error or await self._why(stream)
        yield Told("over", stream.event_id, {"status": status, "error": error})

    async def _why(self, stream: DispatchStream) -> str:
        """What people are told of a turn that failed: a safe text, with the number under which the log has the rest."""
        with suppress(DooersError):
            run = await (await self.worker.repository()).get_run(stream.event_id)
            return (run.error if run is not None else None) or SORRY
        return SORRY

    async def _frames(self, turn: Turn, voice: Voice) -> AsyncGenerator[str, None]:
        try:
            for frame in voice.begin():
                yield frame
            async with aclosing(self.told(turn)) as steps:
                async for told in steps:
                    for frame in voice.say(told):
                        yield frame
        except Exception:
            log.exception("%s: the answer in thread %s could not be told", self.name, turn.stream.thread_id)
            for frame in voice.say(Told("over", data={"status": "failed", "error": SORRY})):
                yield frame

    def answer(self, turn: Turn, voice: Voice, **headers: str) -> Response:
        """The answer to the request, as it is written."""
        frames = self._frames(turn, voice)
        return EventStream(frames, self.keep_alive, self.patience, partial(self._leave, turn), headers)

    async def whole(self, request: Request, turn: Turn) -> list[Told]:
        """The steps of an answer when it is over, for clients that want it in one piece."""

        async def gather() -> list[Told]:
            return [told async for told in self.told(turn)]

        if (gathered := await unless_left(request.receive, gather())) is not None:
            return gathered.result()
        await self._leave(turn)
        raise Refused(499, "CANCELED", "the client has left")

    async def _leave(self, turn: Turn) -> None:
        """Whoever asked has left: which says nothing of whether they meant to stop the turn, so it is for the worker's author to say."""
        if not self.leaving_stops or turn.readers or turn.stream.status not in ("waiting", "running"):
            return
        if await self.may(turn.person, "run.cancel", turn):
            await turn.stream.cancel()

    def endpoint(
        self, answer: Callable[[Request], Awaitable[Response]], refuse: Callable[[Refused], Response]
    ) -> Endpoint:
        """An endpoint that says what went wrong in the protocol's own form, and nothing of what is inside."""

        async def endpoint(request: Request) -> Response:
            try:
                return await answer(request)
            except Refused as error:
                refused = error
            except DooersError as error:
                refused = _refused_of(error)
            except Exception:
                log.exception("%s: a request could not be taken", self.name)
                refused = Refused(500, "SERVER_ERROR", SORRY)
            response = refuse(refused)
            response.headers.update(refused.headers)
            return response

        return endpoint
