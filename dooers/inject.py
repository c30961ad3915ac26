"""A handler's signature, compiled once into a plan: which parameter gets what. Mistakes are told at registration, with a suggestion.

Not wiring: nothing is patched, no marker is left in a signature, the decorated function stays an ordinary function. Per turn a
`_Scope` holds the values that were made for it: one a turn, shared by whoever needs it, torn down in reverse after the handler.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import partial
from math import inf
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from attrs import define, field, frozen

from dooers.config import ORDERS, TurnOrder
from dooers.exceptions import SignatureError, meant
from dooers.injector import providers
from dooers.send import WorkerEvent

__all__ = ["CLASSIC", "Compiler", "Dependency", "Lifetime", "Plan", "TurnValue", "TypedSnapshot"]

Lifetime: TypeAlias = Literal["worker", "turn"]

log = logging.getLogger("dooers")

# The classic order, in which five plain positional parameters of any name are bound.
CLASSIC = ("incoming", "send", "memory", "analytics", "settings")

_GENERATORS = (AsyncIterator, AsyncGenerator, Iterator, Generator)
_EMPTY = inspect.Parameter.empty


# ---------------------------------------------------------------- what a parameter may get: providers of the container


class TurnValue(providers.Provider[Any]):
    """One of the values that every turn has: `incoming`, `send`, and so on."""

    def __init__(self, key: str = "", type_: Any = None) -> None:
        super().__init__()
        self.key, self.produces = key, type_

    def __deepcopy__(self, memo: dict[Any, Any] | None) -> TurnValue:
        return type(self)(self.key, self.produces)

    def _provide(self, args: Any, kwargs: Any) -> Any:
        raise LookupError(f"{self.key!r} exists only while a handler runs")


class TypedSnapshot(TurnValue):
    """The settings as an instance of the worker's settings class, loaded when a turn first asks for them."""


class Dependency(providers.Provider[Any]):
    """Something a user provides: a class, a function or a generator, sync or async, made once a turn or once a worker."""

    def __init__(
        self, name: str = "", plan: Plan | None = None, lifetime: Lifetime = "turn", produces: Any = None
    ) -> None:
        super().__init__()
        self.name, self.plan, self.lifetime, self.produces = name, plan, lifetime, produces

    def __deepcopy__(self, memo: dict[Any, Any] | None) -> Dependency:
        return type(self)(self.name, self.plan, self.lifetime, self.produces)

    def _provide(self, args: Any, kwargs: Any) -> Any:
        raise LookupError(f"{self.name!r} is made by the worker, inside a turn")


# ---------------------------------------------------------------- a plan and its scope


@frozen(eq=False)
class Plan:
    """A callable and where each of its parameters comes from."""

    call: Callable[..., Any]
    name: str
    sources: tuple[tuple[str, Any], ...]
    positional: bool = False

    async def arguments(self, scope: _Scope) -> tuple[list[Any], dict[str, Any]]:
        """The values for one call."""
        values = {name: await scope.value(provider) for name, provider in self.sources}
        return (list(values.values()), {}) if self.positional else ([], values)

    @property
    def of_the_turn(self) -> bool:
        """Whether anything in it belongs to one turn only."""
        return any(
            isinstance(provider, TurnValue) or (isinstance(provider, Dependency) and provider.lifetime == "turn")
            for _, provider in self.sources
        )


@define(eq=False)
class _Scope:
    """The values of one turn, and how to be rid of them."""

    given: Mapping[str, Any]
    kept: KeptValues
    made: dict[int, Any] = field(factory=dict)
    stack: AsyncExitStack = field(factory=AsyncExitStack)

    async def value(self, provider: Any) -> Any:
        """What a provider gives in this turn; an override goes before everything."""
        if provider.overridden:
            return provider.last_overriding()
        if isinstance(provider, TypedSnapshot):
            return await self._once(provider, self.given["settings"].load)
        if isinstance(provider, TurnValue):
            return self.given[provider.key]
        if isinstance(provider, Dependency):
            # Under an override a worker's value is made for this turn only: the fake inside must not outlive its block.
            if provider.lifetime == "worker" and not _overridden_below(provider):
                return await self.kept.value(provider)
            return await self._once(provider, lambda: _make(_planned(provider), self, self.stack))
        return provider()

    async def _once(self, provider: Any, make: Callable[[], Awaitable[Any]]) -> Any:
        key = id(provider)
        if key not in self.made:
            self.made[key] = await make()
        return self.made[key]


def _overridden_below(provider: Dependency) -> bool:
    return any(
        below.overridden or (isinstance(below, Dependency) and _overridden_below(below))
        for _, below in _planned(provider).sources
    )


def _planned(provider: Dependency) -> Plan:
    assert provider.plan is not None, "a dependency without a plan is only ever a copy in the making"
    return provider.plan


async def _make(plan: Plan, scope: _Scope, stack: AsyncExitStack) -> Any:
    """Call a provider's function; what it tears down goes on the stack."""
    args, kwargs = await plan.arguments(scope)
    call = partial(plan.call, *args, **kwargs)
    if inspect.isasyncgenfunction(plan.call):
        return await stack.enter_async_context(asynccontextmanager(call)())
    if inspect.isgeneratorfunction(plan.call):
        return stack.enter_context(contextmanager(call)())
    value = call()
    return await value if inspect.isawaitable(value) else value


class KeptValues:
    """The dependencies that live as long as the worker: each made once, by whoever needs it first, in a task of its own.

    The task stays until the worker closes, because what was entered in a task must be left in it; and a turn that is cancelled
    while it waits does not take the value away from the others.
    """

    def __init__(self) -> None:
        self._values: dict[int, asyncio.Future[Any]] = {}
        self._keepers: list[tuple[asyncio.Task[None], asyncio.Event]] = []

    async def value(self, provider: Dependency) -> Any:
        """The value, made now if it is not there. A failure is told to all who wait, and the next one tries again."""
        future = self._values.get(id(provider))
        if future is None or (future.done() and future.exception() is not None):
            self._values[id(provider)] = future = asyncio.get_running_loop().create_future()
            leave = asyncio.Event()
            keeper = asyncio.create_task(self._keep(provider, future, leave), name=f"dooers-{provider.name}")
            self._keepers = [kept for kept in self._keepers if not kept[0].done()]
            self._keepers.append((keeper, leave))
        return await asyncio.shield(future)

    async def _keep(self, provider: Dependency, future: asyncio.Future[Any], leave: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            try:
                value = await _make(_planned(provider), _Scope({}, self), stack)
            except BaseException as error:
                future.set_exception(error if isinstance(error, Exception) else RuntimeError(f"not made: {error!r}"))
                future.exception()  # told to those who wait, if anybody still does
                return
            future.set_result(value)
            await leave.wait()

    async def close(self, timeout: float, within: float = inf) -> None:
        """Tear everything down, the last made first, each in `timeout` seconds and all `within`: one that hangs has its share, no more."""
        until = asyncio.get_running_loop().time() + within
        for waiting, (keeper, leave) in zip(range(len(self._keepers), 0, -1), reversed(self._keepers), strict=True):
            share = min(timeout, (until - asyncio.get_running_loop().time()) / waiting / 2)
            leave.set()
            _, late = await asyncio.wait([keeper], timeout=max(share, 0))
            if late:
                log.error("the teardown of a dependency took too long: %s", keeper.get_name())
                keeper.cancel()
                await asyncio.wait([keeper], timeout=max(share, 0))
            if keeper.done() and not keeper.cancelled() and (error := keeper.exception()) is not None:
                log.error("the teardown of a dependency failed", exc_info=error)

    def forget(self) -> list[asyncio.Task[None]]:
        """Begin anew; what of the old does not end."""
        left = [keeper for keeper, _ in self._keepers if not keeper.done()]
        self._values.clear()
        self._keepers.clear()
        return left


@frozen(eq=False)
class InjectedHandler:
    """A handler with its plan: what the runner runs."""

    plan: Plan
    kept: KeptValues
    teardown_timeout: float
    order: TurnOrder | None = None
    timeout: float | None = None
    # What is done around every turn of the worker: dependencies that nobody has to ask for.
    arounds: Sequence[Dependency] = ()

    @property
    def name(self) -> str:
        return self.plan.name

    @asynccontextmanager
    async def run(self, values: Mapping[str, Any]) -> AsyncIterator[AsyncGenerator[Any, None]]:
        """The handler's events; on the way out its generator is closed first, then its dependencies, in bounded time."""
        scope = _Scope(values, self.kept)
        async with _bounded_exit(scope.stack, self.teardown_timeout):
            for around in self.arounds:
                await scope.value(around)
            args, kwargs = await self.plan.arguments(scope)
            result = self.plan.call(*args, **kwargs)
            if not hasattr(result, "__aiter__"):
                result = _one(result)
            async with _bounded_exit(aclosing(result), self.teardown_timeout):
                yield result


async def _one(result: Awaitable[str | WorkerEvent | None]) -> AsyncGenerator[Any, None]:
    """A coroutine handler as a generator of what it returns."""
    value = await result
    if value is not None:
        yield value


@asynccontextmanager
async def _bounded_exit(inner: Any, seconds: float) -> AsyncIterator[Any]:
    """`async with inner`, but its exit is cancelled when it takes longer."""
    entered = await inner.__aenter__()
    try:
        yield entered
    except BaseException as error:
        async with asyncio.timeout(seconds):
            # The exception goes on whatever a dependency makes of it: it is the turn's outcome.
            await inner.__aexit__(type(error), error, error.__traceback__)
        raise
    else:
        async with asyncio.timeout(seconds):
            await inner.__aexit__(None, None, None)


# ---------------------------------------------------------------- the compiler


class Compiler:
    """Finds a provider for each parameter: by well-known name, then by annotated type, then the default."""

    def __init__(self, available: Callable[[], Mapping[str, Any]], kept: KeptValues, teardown_timeout: float) -> None:
        self._available = available
        self._kept = kept
        self._teardown_timeout = teardown_timeout
        self.settings_class: type | None = None
        self._arounds: list[Dependency] = []

    def handler(self, function: Any, order: TurnOrder | None = None, timeout: float | None = None) -> InjectedHandler:
        """A handler with its plan, or SignatureError with all that is wrong."""
        is_function = inspect.isroutine(function) or isinstance(function, partial)
        target = function if is_function or not callable(function) else type(function).__call__
        if not (inspect.isasyncgenfunction(target) or inspect.iscoroutinefunction(target)):
            raise SignatureError(
                f"{_where(function)}: a handler is an `async def` that yields events, or returns a text or one event"
            )
        if order is not None and order not in ORDERS:
            raise SignatureError(f"{_where(function)}: order: expected one of {', '.join(ORDERS)}, got {order!r}")
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0
        ):
            raise SignatureError(f"{_where(function)}: timeout: expected seconds above 0, got {timeout!r}")
        return InjectedHandler(
            self._plan(function), self._kept, self._teardown_timeout, order, timeout, arounds=self._arounds
        )

    def dependency(self, name: str, function: Any, lifetime: Lifetime | None) -> Dependency:
        """A provider for the container, or SignatureError. Without a lifetime the function's own shape decides."""
        if not callable(function):
            raise SignatureError(f"@worker.provide: expected a function or a class, got {function!r}")
        if lifetime not in (None, "worker", "turn"):
            raise SignatureError(f"{_where(function)}: scope: expected 'turn' or 'worker', got {lifetime!r}")
        plan = self._plan(function)
        if lifetime == "worker" and plan.of_the_turn:
            raise SignatureError(f"{_where(function)}: scope='worker', but it takes what belongs to one turn")
        yields = inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)
        chosen: Lifetime = lifetime or ("turn" if yields or plan.of_the_turn else "worker")
        return Dependency(name, plan, chosen, _produced(function))

    def around(self, function: Any) -> None:
        """Have every turn go through this generator, inside those that were given before; or SignatureError."""
        if not (inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)):
            raise SignatureError(
                f"@worker.around: expected a generator that yields once, got {function!r}; what comes before its `yield` is done "
                "before the handler, what comes after it afterwards"
            )
        self._arounds.append(Dependency(_name(function), self._plan(function), "turn"))

    def _plan(self, function: Any) -> Plan:
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        hints = _hints(function)
        available = self._available()
        if _is_classic(parameters, hints, available):
            return Plan(function, _name(function), tuple((name, available[name]) for name in CLASSIC), positional=True)
        sources, faults = [], []
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                faults.append(f"{parameter.name!r} is positional-only; remove the '/'")
                continue
            provider, fault = self._find(parameter.name, hints.get(parameter.name, _EMPTY), available)
            if provider is not None:
                sources.append((parameter.name, provider))
            elif parameter.default is _EMPTY:
                faults.append(fault)
        if faults:
            raise SignatureError(
                f"{_where(function)}: {'; '.join(faults)}. Known: {', '.join(sorted(_known(available)))}"
            )
        return Plan(function, _name(function), tuple(sources))

    def _find(self, name: str, hint: Any, available: Mapping[str, Any]) -> tuple[Any, str]:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        if hint is Any or hint == "Any":
            hint = _EMPTY
        if self._is_settings_class(hint):
            return available["typed_settings"], ""
        if name == "settings" and hint is not _EMPTY and not _fits(hint, available[name]):
            known = "none so far" if self.settings_class is None else self.settings_class.__name__
            return (
                None,
                f"'settings' is annotated with {_type_name(hint)}; the class given to @worker.settings is {known}",
            )
        if name in _known(available):
            if _contradicts(hint, available[name]):
                given = _type_name(available[name].produces)
                return (
                    None,
                    f"{name!r} is annotated with {_type_name(hint)}, and is a {given}; call it something else, or by its type",
                )
            return available[name], ""
        by_type = [key for key, provider in available.items() if _fits(hint, provider)]
        if len(by_type) == 1:
            return available[by_type[0]], ""
        if by_type:
            return None, f"{name!r}: {_type_name(hint)} is provided by {' and '.join(by_type)}; use one of these names"
        otherwise = " (provide it above, with @worker.provide)"
        return None, f"nobody provides {name!r}{meant(name, _known(available), otherwise)}"

    def _is_settings_class(self, hint: Any) -> bool:
        if self.settings_class is None or hint is _EMPTY:
            return False
        # A text where the annotation could not be evaluated: a class defined inside a function.
        return hint is self.settings_class or hint == self.settings_class.__name__


def _is_classic(parameters: list[inspect.Parameter], hints: Mapping[str, Any], available: Mapping[str, Any]) -> bool:
    """Five plain positional parameters, at least one with a name of its own, and no well-known name in the wrong place."""
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is _EMPTY]
    if len(parameters) != 5 or len(plain) != 5 or any(p.name in hints for p in parameters):
        return False
    names = [p.name for p in parameters]
    in_place = all(name not in available or name == classic for name, classic in zip(names, CLASSIC, strict=True))
    return in_place and any(name not in available for name in names)


def _known(available: Mapping[str, Any]) -> list[str]:
    """The names that may be asked for; the typed snapshot is asked for by its type."""
    return [name for name, provider in available.items() if not isinstance(provider, TypedSnapshot)]


def _fits(hint: Any, provider: Any) -> bool:
    produced = getattr(provider, "produces", None) or getattr(provider, "provides", None)
    return produced is not None and (hint is produced or hint == getattr(produced, "__name__", None))


def _contradicts(hint: Any, provider: Any) -> bool:
    """Whether somebody who annotates a value of the turn with `hint` means something else. Only plain classes say that much."""
    if hint is _EMPTY or not isinstance(provider, TurnValue):
        return False
    return (
        inspect.isclass(hint) and not getattr(hint, "_is_protocol", False) and not issubclass(provider.produces, hint)
    )


def _hints(function: Any) -> Mapping[str, Any]:
    target = function.func if isinstance(function, partial) else function
    if inspect.isclass(target):
        target = target.__init__
    elif not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError):
        return getattr(target, "__annotations__", {})  # unevaluated: names are compared as texts


def _produced(function: Any) -> Any:
    """The type a provider gives: the class itself, the return annotation, or what its generator yields."""
    if inspect.isclass(function):
        return function
    returned = _hints(function).get("return")
    if get_origin(returned) in _GENERATORS:
        return get_args(returned)[0]
    return None if isinstance(returned, str) or returned is type(None) else returned


def _type_name(hint: Any) -> str:
    return hint if isinstance(hint, str) else getattr(hint, "__name__", repr(hint))


def _name(function: Any) -> str:
    target = function.func if isinstance(function, partial) else function
    return getattr(target, "__qualname__", type(target).__qualname__)


def _where(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{_name(function)}{place}"
