"""A handler's signature, compiled once into a plan: which parameter gets what. Mistakes are told at registration, with a suggestion.

Not wiring: nothing is patched, no marker is left in a signature, the decorated function stays an ordinary function. What a turn
makes of a plan is `scope.py`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from dooers.config import ORDERS, TurnOrder
from dooers.exceptions import SignatureError, meant
from dooers.scope import Dependency, InjectedHandler, KeptValues, Lifetime, Plan, TurnValue, TypedSnapshot

__all__ = ["CLASSIC", "Compiler"]

# The classic order, in which five plain positional parameters of any name are bound.
CLASSIC = ("incoming", "send", "memory", "analytics", "settings")

_GENERATORS = (AsyncIterator, AsyncGenerator, Iterator, Generator)
_EMPTY = inspect.Parameter.empty


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
