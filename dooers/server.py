"""WorkerServer: the whole public face of a worker. What it offers is declared here; what it does happens in the rings below."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary

from starlette.types import ASGIApp

from dooers.access import Authorize, Policy, origin_allowed
from dooers.asgi import make_app
from dooers.broadcast import TRY_AGAIN
from dooers.config import TurnOrder, WorkerConfig
from dooers.container import Worker, close_parts, open_parts, override, turn_values
from dooers.context import WorkerAnalytics, WorkerMemory, WorkerSettings
from dooers.dispatch import DispatchStream, identity_of, message_of
from dooers.exceptions import (
    ClosingError,
    ConfigError,
    DispatchError,
    DooersError,
    InvalidValueError,
    NotConfiguredError,
    SignatureError,
)
from dooers.inject import Compiler, InjectedHandler, KeptValues, Lifetime
from dooers.lifecycle import Lifecycle
from dooers.models import ContentPart
from dooers.openturn import Message, OpenTurn
from dooers.repository import Repository
from dooers.routes.desk import Authenticate, Desk
from dooers.routing import route
from dooers.runner import waited_threads
from dooers.session import GOING_AWAY, NOT_YOU, REASONS, Session, WebSocketLike
from dooers.settings import typed_settings

__all__ = ["WorkerServer"]

log = logging.getLogger("dooers")

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class WorkerServer:
    """A worker: its handlers, its database, its two doors.

    Constructing one opens nothing. It opens on first use, by `lifespan`, or by `ensure_initialized()`, and lives until
    `close()`, or until its event loop ends. After `close()` it may be opened again, also on another loop.
    """

    def __init__(self, config: WorkerConfig) -> None:
        if not isinstance(config, WorkerConfig):
            raise ConfigError(f"WorkerServer: expected a WorkerConfig, got {type(config).__name__}")
        self.config = config
        self._parts = Worker(config=config)
        self._parts.vault()  # a key without its library is told here, not with the first password
        self._values = turn_values(self._parts)
        self._kept = KeptValues()
        self._compiler = Compiler(lambda: self._values.providers, self._kept, config.teardown_timeout)
        self._handlers: dict[str | None, InjectedHandler] = {}
        self._compiled: WeakKeyDictionary[Any, InjectedHandler] = WeakKeyDictionary()
        self._authenticate: Authenticate | None = None
        self._authorize: Authorize | None = None
        self._warned = False
        self._sessions: set[Session] = set()
        shut = partial(close_parts, self._parts, self._sessions, self._kept)
        self._life = Lifecycle(partial(open_parts, self._parts), shut, config.shutdown_grace, config.shutdown_timeout)

    # ------------------------------------------------------------ decorators

    @overload
    def handler(self, function: F, /) -> F: ...
    @overload
    def handler(
        self, name: str | None = None, /, *, order: TurnOrder | None = None, timeout: float | None = None
    ) -> Callable[[F], F]: ...
    def handler(self, function: Any = None, /, *, order: TurnOrder | None = None, timeout: float | None = None) -> Any:
        """Register the default handler, or with `@worker.handler("name")` one of that name. The function stays as it is.

        It asks for any of `incoming, send, memory, analytics, settings, identity, repository` and for what `@worker.provide`
        registered, by name or by annotated type. SignatureError if it asks for something else. `order` ("queue", "parallel",
        "reject", "replace") and `timeout` (seconds) go before `turn_order` and `handler_timeout` of the config.
        """
        if callable(function):
            self._register(None, function, order, timeout)
            return function
        if function is not None and not isinstance(function, str):
            raise SignatureError(f"@worker.handler: expected a function or a name, got {function!r}")

        def decorate(decorated: F) -> F:
            self._register(function, decorated, order, timeout)
            return decorated

        return decorate

    def _register(self, name: str | None, function: Any, order: TurnOrder | None, timeout: float | None) -> None:
        if name in self._handlers:
            which = "a default handler" if name is None else f"a handler named {name!r}"
            raise SignatureError(f"this worker has {which} already: {self._handlers[name].name}")
        self._handlers[name] = self._compiler.handler(function, order, timeout)
        # The same function passed to `handle` or `dispatch` keeps its options.
        with suppress(TypeError):
            self._compiled[function] = self._handlers[name]

    @overload
    def provide(self, function: F, /) -> F: ...
    @overload
    def provide(self, name: str | None = None, /, *, scope: Lifetime | None = None) -> Callable[[F], F]: ...
    def provide(self, function: Any = None, /, *, scope: Lifetime | None = None) -> Any:
        """Register something that handlers may ask for: a class, a function or a generator, sync or async.

        Its own parameters are resolved like a handler's. What a generator does around its `yield`, as with `contextlib`, is
        set-up and teardown; the handler's error or cancellation is raised at that `yield`. `scope` "turn" makes one a turn,
        "worker" one for as long as the worker is open; without it, what yields or takes a turn's value is made a turn,
        anything else once.
        """
        if function is not None and not isinstance(function, str):
            self._provide(getattr(function, "__name__", ""), function, scope)
            return function

        def decorate(decorated: F) -> F:
            self._provide(str(function or getattr(decorated, "__name__", "")), decorated, scope)
            return decorated

        return decorate

    def _provide(self, name: str, function: Any, scope: Lifetime | None) -> None:
        if not name.isidentifier():
            raise SignatureError(f"@worker.provide: expected a name that a parameter can have, got {name!r}")
        if name in self._values.providers:
            raise SignatureError(
                f"@worker.provide: {name!r} is provided already; to replace it for a test, use worker.override"
            )
        self._values.set_provider(name, self._compiler.dependency(name, function, scope))

    def authenticate(self, function: F) -> F:
        """Register the hook that says who a connection is: `(request) -> Identity | None`, sync or async.

        It is called once a connection, with what the client claims and what proves it. None, or anything it raises, refuses.
        """
        if self._authenticate is not None:
            raise SignatureError("this worker has an authenticate hook already")
        if not callable(function):
            raise SignatureError(f"@worker.authenticate: expected a function, got {function!r}")
        self._authenticate = function
        return function

    def authorize(self, function: F) -> F:
        """Register the hook that says who may do what inside their own tenant: `(identity, operation, thread) -> bool`.

        A plain function, for it is asked at every delivery. `thread` is None where no single thread is concerned: lists, new
        threads, settings, analytics. It is asked beside `permissions` of the config: both must allow.
        """
        if self._authorize is not None:
            raise SignatureError("this worker has an authorize hook already")
        if not callable(function) or any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
            raise SignatureError(f"@worker.authorize: expected a plain function, not async, got {function!r}")
        try:
            inspect.signature(function).bind(None, None, None)
        except TypeError:
            raise SignatureError("@worker.authorize: expected a function of (identity, operation, thread)") from None
        self._authorize = function
        return function

    @overload
    def settings(self, settings_class: C, /) -> C: ...
    @overload
    def settings(self, worker_id: str | None = None) -> Awaitable[WorkerSettings]: ...
    def settings(self, worker_id: Any = None) -> Any:
        """`@worker.settings` over a dataclass or attrs class makes it this worker's settings schema.

        `await worker.settings(worker_id)` gives the settings of a worker id, outside of handlers.
        """
        if worker_id is None or isinstance(worker_id, str):
            return self._settings_of(worker_id)
        settings_class = worker_id
        shape = self._parts.shape()
        if shape.schema is not None:
            what = (
                "settings_schema in its config"
                if shape.typed is None
                else f"the settings class {shape.typed.cls.__name__}"
            )
            raise ConfigError(f"@worker.settings: this worker has {what} already; one or the other")
        shape.typed = typed_settings(settings_class)
        shape.schema = shape.typed.schema
        self._compiler.settings_class = shape.typed.cls
        return settings_class

    def override(self, **values: Any) -> AbstractContextManager[None]:
        """Replace what handlers are given, by name, inside a `with` block: for tests. Reaches nested dependencies too.

        SignatureError for a name that nothing asks for. `settings=` takes an instance of the settings class or of anything else.
        """
        return override(self._values, values)

    # ------------------------------------------------------------ lifecycle

    async def ensure_initialized(self) -> None:
        """Open the worker if it is not open: any number of concurrent first calls open it once.

        StoreError when the database cannot be reached; the next call tries again. ClosingError while it closes.
        """
        if self._life.closing:
            raise ClosingError
        await self._life.begin()

    async def close(self) -> None:
        """Let turns finish for `shutdown_grace` seconds, cancel the rest, close sockets with 1012, let go of the database.

        Returns within `shutdown_grace + shutdown_timeout` and a little, whatever hangs; in a handler at once, as it would wait for itself.
        """
        if any(map(self.is_answering, waited_threads.get())):
            self._life.leave()
        else:
            await self._life.end()

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """`async with worker.lifespan(app):` opens and closes the worker; hosts take it as their lifespan."""
        await self.ensure_initialized()
        try:
            yield
        finally:
            await self.close()

    async def migrate(self) -> str:
        """Bring the database's schema up to date, whether or not `database_auto_migrate` is on; what was done, in a sentence."""
        return await self._parts.store().migrate()

    async def rotate_settings(self) -> int:
        """Seal the passwords in the settings of all worker ids with the newest `settings_encryption_key`; how many were not.

        Run it once every process has the new key first and the old ones after it; then the old ones may go. It takes nothing from
        who writes meanwhile. StoreError, once all others are done, names those that no key opens.
        """
        await self._life.begin()
        return await self._parts.settings().rotate()

    # ------------------------------------------------------------ the doors

    def asgi_app(self) -> ASGIApp:
        """The whole application: the WebSocket at `/ws`, `/health` (live), `/ready` (store reachable). Mount it anywhere.

        With a lifespan it opens and closes the worker; mounted where none reaches it, the worker opens on first use.
        """
        return make_app(self.handle, self.lifespan, self.ready)

    async def ready(self) -> None:
        """Return when the store answers; StoreError when it does not, ClosingError while the worker closes."""
        await self.ensure_initialized()
        await self._parts.store().ping()

    async def handle(self, websocket: WebSocketLike, handler: Callable[..., Any] | str | None = None) -> None:
        """Serve one WebSocket until it ends. Turns it started go on without it.

        `handler` is a function, the name of a registered one, or nothing for the default one.
        """
        # Without any handler the connection is served all the same; a message is then answered by NOT_CONFIGURED.
        compiled = None if handler is None and None not in self._handlers else self._compile(handler)
        refused = await self._admit(websocket)
        if refused is not None:
            await websocket.send({"type": "websocket.close", "code": refused, "reason": REASONS[refused]})
            return
        desk = self._desk(compiled)
        session = Session(
            websocket, partial(route, desk), self.config, desk.broadcast, desk.clock, desk.quotas.single()
        )
        self._sessions.add(session)
        try:
            await session.serve()
        finally:
            self._sessions.discard(session)

    async def _admit(self, websocket: WebSocketLike) -> int | None:
        """Let a connection in, or the code to close it with."""
        if not origin_allowed(websocket.scope, self.config.allowed_origins):
            log.warning("a connection from a page of another origin was refused")
            return NOT_YOU
        state = getattr(websocket, "application_state", None)
        if state is not None and state.name == "CONNECTING":
            await websocket.accept()  # type: ignore[attr-defined]
        try:
            await self.ensure_initialized()
        except ClosingError:
            return GOING_AWAY
        except DooersError:
            log.exception("a connection was refused: the worker cannot be opened")
            return TRY_AGAIN
        if len(self._sessions) >= self.config.max_connections:
            log.warning("a connection was refused: there are %d already", len(self._sessions))
            return TRY_AGAIN
        if self._authenticate is None and not self._warned:
            self._warned = True
            log.warning("no @worker.authenticate hook: clients are believed who they say they are")
        return None

    def _desk(self, handler: InjectedHandler | None) -> Desk:
        parts = self._parts
        return Desk(
            config=self.config,
            store=parts.store(),
            broadcast=parts.broadcast(),
            relay=parts.relay(),
            collector=parts.collector(),
            runner=parts.runner(),
            clock=parts.clock(),
            settings=parts.settings(),
            schema=parts.shape().schema,
            policy=Policy(self.config.permissions, self._authorize),
            quotas=parts.quotas(),
            handler=handler,
            authenticate=self._authenticate,
        )

    async def dispatch(
        self,
        handler: Callable[..., Any] | str | None = None,
        *,
        organization_id: str,
        workspace_id: str,
        user_id: str,
        message: str = "",
        worker_id: str | None = None,
        user_name: str = "",
        user_email: str = "",
        user_role: str = "",
        thread_id: str | None = None,
        thread_title: str | None = None,
        content: Iterable[ContentPart | Mapping[str, Any] | str] | None = None,
        data: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> DispatchStream:
        """Bring a message in from anywhere that is no WebSocket. When this returns, the message is stored.

        `thread_id` None opens a new thread; one that does not exist yet is created under that id, once. A second call with the
        same `idempotency_key` returns the first one's ids and runs nothing. Iterate the stream, `collect()` it or `detach()` it.

        Raises DispatchError for whatever fails before the handler runs.
        """
        try:
            incoming = message_of(
                self._compile(handler),
                self.config.worker_id if worker_id is None else worker_id,
                identity_of(organization_id, workspace_id, user_id, user_name, user_email, user_role),
                message,
                content,
                thread_id=thread_id,
                thread_title=thread_title,
                data=data,
                idempotency_key=idempotency_key,
            )
            await self._life.begin()
            opened = await self._open(incoming)
        except DooersError as error:
            raise DispatchError(f"dispatch: {error}", code=error.code) from error
        except Exception as error:
            raise DispatchError(f"dispatch: {error!r}") from error
        return DispatchStream(self._parts.runner(), self._parts.store(), opened)

    async def _open(self, incoming: Message) -> OpenTurn:
        """Store a message whose turn waits for somebody to run it; nobody will, where the caller was cancelled meanwhile."""
        runner = self._parts.runner()
        gone = False

        def accept(opened: OpenTurn) -> None:
            if gone and not opened.repeated:
                runner.stop(opened)

        try:
            return await runner.open(incoming, accept)
        except asyncio.CancelledError:
            gone = True
            raise

    async def cancel(self, *, thread_id: str | None = None, run_id: str | None = None) -> int:
        """Stop whatever runs and waits in a thread, or the turn of a run; how many turns that were.

        Each handler is cancelled at its await, what it has written is kept, its run becomes `canceled`. Returns when the turns
        have ended. InvalidValueError unless exactly one of the two is given.
        """
        if (thread_id is None) == (run_id is None):
            raise InvalidValueError("cancel: expected a thread_id or a run_id, one of the two")
        runner = self._parts.runner()
        stopped = runner.cancel(thread_id=thread_id, run_id=run_id)
        if asyncio.current_task() not in [opened.task for opened in stopped]:
            await runner.ended(*stopped)
        return len(stopped)

    def _compile(self, handler: Callable[..., Any] | str | None) -> InjectedHandler:
        if handler is None or isinstance(handler, str):
            found = self._handlers.get(handler)
            if found is None:
                known = ", ".join(repr(name) for name in self._handlers if name is not None) or "none"
                what = (
                    "no default handler" if handler is None else f"no handler named {handler!r} (named ones: {known})"
                )
                raise NotConfiguredError(f"this worker has {what}; register one with @worker.handler")
            return found
        try:
            compiled = self._compiled.get(handler)
            if compiled is None:
                self._compiled[handler] = compiled = self._compiler.handler(handler)
        except TypeError as error:
            if isinstance(error, SignatureError):
                raise
            compiled = self._compiler.handler(handler)  # cannot be remembered, as an unhashable callable
        return compiled

    def is_answering(self, thread_id: str) -> bool:
        """Whether a turn of this thread runs or waits in this process."""
        return self._parts.runner().is_answering(thread_id)

    # ------------------------------------------------------------ outside of handlers

    async def memory(self, thread_id: str) -> WorkerMemory:
        """The memory of a thread."""
        await self._life.begin()
        return WorkerMemory(self._parts.store(), thread_id)

    async def _settings_of(self, worker_id: str | None) -> WorkerSettings:
        await self._life.begin()
        return self._parts.settings()(self.config.worker_id if worker_id is None else worker_id)

    async def analytics(
        self, worker_id: str | None = None, thread_id: str | None = None, user_id: str | None = None
    ) -> WorkerAnalytics:
        """Analytics of a worker id; with a thread, live subscribers who may see that thread hear of it."""
        await self._life.begin()
        thread = None if thread_id is None else await self._parts.store().thread(thread_id)
        return WorkerAnalytics(
            self._parts.collector(),
            self._parts.clock(),
            self.config.worker_id if worker_id is None else worker_id,
            thread_id=thread_id,
            thread=thread,
            user_id=user_id,
        )

    async def repository(self) -> Repository:
        """Direct access to threads, events, runs and settings."""
        await self._life.begin()
        return self._parts.repository()
