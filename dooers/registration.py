"""What a worker's author registers: handlers, what they may ask for, what is done around them, and the hooks that say who may do what.

Checked and compiled here, at once, so that a mistake is told where it was made. Run elsewhere: by the runner, at the doors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary

from attrs import frozen

from dooers.access import Authorize
from dooers.config import TurnOrder, WorkerConfig
from dooers.container import Worker, override, turn_values
from dooers.exceptions import ConfigError, NotConfiguredError, SignatureError
from dooers.inject import Compiler
from dooers.routes.desk import Authenticate
from dooers.schema import SettingsSchema
from dooers.scope import InjectedHandler, KeptValues, Lifetime
from dooers.settings import typed_settings

__all__ = ["Registered", "Registration"]

F = TypeVar("F", bound=Callable[..., Any])


@frozen
class Registered:
    """What a worker's author has registered, for who looks at it: `None` among the handlers is the default one."""

    handlers: tuple[str | None, ...]
    settings: SettingsSchema | None
    authenticates: bool
    authorizes: bool


class Registration:
    """The decorators of a worker, and what they have registered."""

    def __init__(self, config: WorkerConfig, parts: Worker) -> None:
        self._parts = parts
        self._values = turn_values(parts)
        self._kept = KeptValues()
        self._compiler = Compiler(lambda: self._values.providers, self._kept, config.teardown_timeout)
        self._handlers: dict[str | None, InjectedHandler] = {}
        self._compiled: WeakKeyDictionary[Any, InjectedHandler] = WeakKeyDictionary()
        self._authenticate: Authenticate | None = None
        self._authorize: Authorize | None = None

    @property
    def registered(self) -> Registered:
        """What was registered so far."""
        schema = self._parts.shape().schema
        return Registered(tuple(self._handlers), schema, self._authenticate is not None, self._authorize is not None)

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

    def around(self, function: F) -> F:
        """Register what is done around every turn: a generator, sync or async, that yields once. For traces, metrics, audits.

        It runs in the turn's own task, from before the handler's dependencies are made until after they are torn down, so context
        variables that it sets are seen by the handler. It asks for what it needs as a handler does, `incoming` for example, and the
        handler's error or cancellation is raised at its `yield`; an error of its own is the turn's. The first registered is outermost.
        """
        self._compiler.around(function)
        return function

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

    def _take_settings_class(self, settings_class: type) -> None:
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

    def override(self, **values: Any) -> AbstractContextManager[None]:
        """Replace what handlers are given, by name, inside a `with` block: for tests. Reaches nested dependencies too.

        SignatureError for a name that nothing asks for. `settings=` takes an instance of the settings class or of anything else.
        """
        return override(self._values, values)

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
