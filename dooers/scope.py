"""What the parameters of a handler get in one turn, and how to be rid of it: plans, the values of a turn, and a handler while it runs.

Per turn a `_Scope` holds the values that were made for it: one a turn, shared by whoever needs it, torn down in reverse after the
handler. How a signature becomes a plan is `inject.py`'s.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, Literal, TypeAlias

from attrs import define, field, frozen

from dooers.config import TurnOrder
from dooers.injector import providers
from dooers.send import WorkerEvent

__all__ = ["Dependency", "InjectedHandler", "KeptValues", "Lifetime", "Plan", "TurnValue", "TypedSnapshot"]

Lifetime: TypeAlias = Literal["worker", "turn"]

log = logging.getLogger("dooers")


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
    # There once something was made that is to be torn down.
    stack: AsyncExitStack | None = None

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
            return await self._once(provider, lambda: _make(_planned(provider), self))
        return provider()

    def torn_down(self) -> AsyncExitStack:
        """Where the teardown of what is made for this scope goes."""
        if self.stack is None:
            self.stack = AsyncExitStack()
        return self.stack

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


async def _make(plan: Plan, scope: _Scope) -> Any:
    """Call a provider's function; what it tears down is the scope's."""
    args, kwargs = await plan.arguments(scope)
    call = partial(plan.call, *args, **kwargs)
    if inspect.isasyncgenfunction(plan.call):
        return await scope.torn_down().enter_async_context(asynccontextmanager(call)())
    if inspect.isgeneratorfunction(plan.call):
        return scope.torn_down().enter_context(contextmanager(call)())
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
        scope = _Scope({}, self)
        async with scope.torn_down():
            try:
                value = await _make(_planned(provider), scope)
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

    def run(self, values: Mapping[str, Any]) -> _Performance:
        """The handler's events; on the way out its generator is closed first, then its dependencies, in bounded time."""
        return _Performance(self, _Scope(values, self.kept))


@define(eq=False)
class _Performance:
    """A handler while it runs. Not made of generators, as context managers are: a turn would have three of them, and two timers."""

    handler: InjectedHandler
    scope: _Scope
    events: Any = None

    async def __aenter__(self) -> AsyncGenerator[Any, None]:
        handler, scope = self.handler, self.scope
        try:
            for around in handler.arounds:
                await scope.value(around)
            args, kwargs = await handler.plan.arguments(scope)
            result = handler.plan.call(*args, **kwargs)
        except BaseException as error:
            await self._tear_down(error)
            raise
        self.events = result if hasattr(result, "__aiter__") else _one(result)
        return self.events  # type: ignore[no-any-return]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if getattr(self.events, "ag_frame", self) is None and self.scope.stack is None:
            return  # it has ended, and there is nothing else
        try:
            async with asyncio.timeout(self.handler.teardown_timeout):
                await self.events.aclose()
        except BaseException as failed:
            await self._tear_down(failed)
            raise
        await self._tear_down(error)

    async def _tear_down(self, error: BaseException | None) -> None:
        """The dependencies see how it went. Whatever they make of it, it stays the turn's outcome."""
        if self.scope.stack is not None:
            async with asyncio.timeout(self.handler.teardown_timeout):
                await self.scope.stack.__aexit__(
                    None if error is None else type(error), error, None if error is None else error.__traceback__
                )


async def _one(result: Awaitable[str | WorkerEvent | None]) -> AsyncGenerator[Any, None]:
    """A coroutine handler as a generator of what it returns."""
    value = await result
    if value is not None:
        yield value
