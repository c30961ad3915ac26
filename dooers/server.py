"""WorkerServer: the whole public face of a worker. What it offers is declared here; what it does happens in the rings below."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar, overload

from attrs import asdict
from starlette.types import ASGIApp

from dooers.access import Policy, origin_allowed
from dooers.asgi import make_app
from dooers.broadcast import TRY_AGAIN
from dooers.config import WorkerConfig
from dooers.container import Worker, close_parts, open_parts
from dooers.context import WorkerAnalytics, WorkerMemory, WorkerSettings
from dooers.dispatch import DispatchStream, identity_of, message_of
from dooers.exceptions import ClosingError, ConfigError, DispatchError, DooersError, InvalidValueError
from dooers.lifecycle import Lifecycle
from dooers.models import ContentPart, Identity, Operation, Thread
from dooers.openturn import Message, OpenTurn
from dooers.playground import Asset, about
from dooers.predecessor import BroadcastManager, ConnectionRegistry, Persistence
from dooers.registration import Registration
from dooers.repository import Repository
from dooers.routes.desk import Desk
from dooers.routing import route
from dooers.runner import waited_threads
from dooers.scope import InjectedHandler
from dooers.session import GOING_AWAY, NOT_YOU, REASONS, Session, WebSocketLike
from dooers.stats import WorkerStats

__all__ = ["WorkerServer"]

log = logging.getLogger("dooers")

C = TypeVar("C", bound=type)


class WorkerServer(Registration):
    """A worker: its handlers, its database, its two doors.

    Constructing one opens nothing. It opens on first use, by `lifespan`, or by `ensure_initialized()`, and lives until
    `close()`, or until its event loop ends. After `close()` it may be opened again, also on another loop.
    """

    def __init__(self, config: WorkerConfig) -> None:
        if not isinstance(config, WorkerConfig):
            raise ConfigError(f"WorkerServer: expected a WorkerConfig, got {type(config).__name__}")
        self.config = config
        parts = Worker(config=config)
        parts.vault()  # a key without its library is told here, not with the first password
        super().__init__(config, parts)
        self._warned = False
        self._sessions: set[Session] = set()
        shut = partial(close_parts, self._parts, self._sessions, self._kept)
        self._life = Lifecycle(partial(open_parts, self._parts), shut, config.shutdown_grace, config.shutdown_timeout)

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
        self._take_settings_class(worker_id)
        return worker_id

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

    def asgi_app(self, *, playground: bool = False) -> ASGIApp:
        """The whole application: the WebSocket at `/ws`, `/health` (live), `/ready` (store reachable). Mount it anywhere.

        With a lifespan it opens and closes the worker; mounted where none reaches it, the worker opens on first use. With `playground`
        there is a page at `/` to talk to the worker in a browser.
        """
        return make_app(self.handle, self.lifespan, self.ready, self._about if playground else None)

    def _about(self) -> Asset:
        return about(self.config, authenticated=self._authenticate is not None)

    async def ready(self) -> None:
        """Return when the store answers; StoreError when it does not, ClosingError while the worker closes."""
        await self.ensure_initialized()
        await self._parts.store().ping()

    def stats(self) -> WorkerStats:
        """What this process is at, and has done since it was opened: connections, turns, frames, transactions, drops. Costs a walk
        over the connections and turns; ask once in some seconds, from any thread."""
        # Copies, here and below: whoever collects metrics does it in a thread of its own.
        parts, outboxes = self._parts, [session.outbox for session in list(self._sessions)]
        counts, runner, collector, store = parts.counts(), parts.runner(), parts.collector(), parts.store()
        subscriptions, followed = parts.broadcast().followers()
        return WorkerStats(
            **asdict(counts),
            **asdict(store.tally),
            sessions=len(self._sessions),
            subscriptions=subscriptions,
            threads_followed=followed,
            outbox_frames=sum(frames for frames, _ in outboxes),
            outbox_size=sum(size for _, size in outboxes),
            outbox_longest=max((frames for frames, _ in outboxes), default=0),
            turns_running=runner.at_work,
            turns_waiting=runner.waiting,
            lanes=len(parts.lanes()),
            identities=len(parts.quotas()),
            catching_up=parts.relay().catching_up,
            ends_waiting=runner.ends_waiting,
            analytics_waiting=collector.waiting,
            analytics_delivered=collector.delivered,
            analytics_dropped=collector.dropped,
            analytics_failures=collector.failed_attempts,
        )

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
            websocket,
            partial(route, desk),
            self.config,
            desk.broadcast,
            desk.clock,
            desk.quotas.single(),
            self._parts.counts(),
        )
        self._sessions.add(session)
        self._parts.counts().connections += 1
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
            totals=parts.totals(),
            handler=handler,
            authenticate=self._authenticate,
        )

    async def dispatch(
        self,
        handler: Callable[..., Any] | str | None = None,
        *,
        organization_id: str | None = None,
        workspace_id: str | None = None,
        user_id: str | None = None,
        message: str = "",
        worker_id: str | None = None,
        user_name: str | None = None,
        user_email: str | None = None,
        user_role: str | None = None,
        metadata: Identity | Mapping[str, Any] | None = None,
        thread_id: str | None = None,
        thread_title: str | None = None,
        content: Iterable[ContentPart | Mapping[str, Any] | str] | None = None,
        data: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> DispatchStream:
        """Bring a message in from anywhere that is no WebSocket. When this returns, the message is stored.

        Whom it is for is told by the ids, all three, or by `metadata`: an Identity, a Metadata, or a mapping with their fields, of which
        those left out are empty. `data`, anything with a JSON form, is stored with the message and is the handler's `incoming.data`.

        `thread_id` None opens a new thread; one that does not exist yet is created under that id, once. A second call with the
        same `idempotency_key` returns the first one's ids and runs nothing. Iterate the stream, `collect()` it or `detach()` it.

        Raises DispatchError for whatever fails before the handler runs.
        """
        try:
            incoming = message_of(
                self._compile(handler),
                self.config.worker_id if worker_id is None else worker_id,
                identity_of(
                    metadata,
                    organization_id=organization_id,
                    workspace_id=workspace_id,
                    user_id=user_id,
                    user_name=user_name,
                    user_email=user_email,
                    user_role=user_role,
                ),
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

    def allows(self, identity: Identity, operation: Operation, thread: Thread | None = None) -> bool:
        """Whether `permissions` and the `@worker.authorize` hook let somebody do this within their own scope.

        For who builds a door of their own: `dispatch` does not ask, it does what its caller has decided.
        """
        return Policy(self.config.permissions, self._authorize).allows(identity, operation, thread)

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
        self,
        worker_id: str | None = None,
        thread_id: str | None = None,
        user_id: str | None = None,
        run_id: str | None = None,
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
            run_id=lambda: run_id,
        )

    async def repository(self) -> Repository:
        """Direct access to threads, events, runs and settings."""
        await self._life.begin()
        return self._parts.repository()

    # ------------------------------------------------------------ by the predecessor's names

    async def _opened(self) -> Worker:
        await self._life.begin()
        return self._parts

    @property
    def registry(self) -> ConnectionRegistry:
        """The connections to this process; `stats()` says more."""
        return ConnectionRegistry(lambda: self._parts.broadcast())

    @property
    def broadcast(self) -> BroadcastManager:
        """Messages and threads from outside of a turn, stored and told to who may see them."""
        return BroadcastManager(self._opened)

    @property
    def persistence(self) -> Persistence:
        """The database by the predecessor's calls; `repository()` is what to use now."""
        return Persistence(self._opened)
