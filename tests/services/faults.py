"""A store and a broker that fail when a test says so: generic over the methods of the two seams, so that a new one is covered at once.

`FaultyStore` and `FaultyBroker` stand before real ones. `Faults` counts the calls and decides what becomes of each. Not a test.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

from attrs import Factory, define, frozen

from dooers.brokers import Broker
from dooers.exceptions import StoreError
from dooers.models import Change
from dooers.stores import Store

__all__ = ["FAULTS", "SECRET", "Call", "Fault", "Faults", "FaultyBroker", "FaultyStore", "methods"]

# What a call may do instead of its work:
# - refused: raise StoreError, nothing is done
# - raw: raise something else, nothing is done
# - lost: it is done, and then StoreError is raised: the answer was lost
# - hangs: nothing, until it is let go; then its work
# - cancelled: be cancelled by something inside of it, nothing is done
Fault: TypeAlias = Literal["refused", "raw", "lost", "hangs", "cancelled"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
# What the errors say, and nobody but the log may hear.
SECRET = "password=hunter2"


@frozen
class Call:
    """The n-th call of a method, counted from 1."""

    method: str
    number: int

    def __str__(self) -> str:
        return f"{self.method} {self.number}"


@define(eq=False)
class Faults:
    """What becomes of calls: all are counted while `counting`; the one that is `planned` gets its fault, once."""

    calls: list[Call] = Factory(list)
    counting: bool = False
    planned: Call | None = None
    # What was planned before that was mended.
    last: Call | None = None
    fault: Fault | None = None
    # Also everything from the planned call on, until `mended`: the database is away.
    lasting: bool = False
    struck: asyncio.Event = Factory(asyncio.Event)
    released: asyncio.Event = Factory(asyncio.Event)
    # What calls were for, in words, where their arguments say so.
    said: dict[Call, str] = Factory(dict)
    _counts: Counter[str] = Factory(Counter)

    def begin(self, planned: Call | None = None, fault: Fault | None = None, *, lasting: bool = False) -> None:
        """Count from here on; the planned call is to get this fault."""
        self.calls, self._counts, self.counting = [], Counter(), True
        self.planned, self.fault, self.lasting = planned, fault, lasting
        self.struck, self.released = asyncio.Event(), asyncio.Event()

    def mend(self) -> None:
        """No more faults; what hangs goes on."""
        self.counting, self.planned, self.last = False, None, self.planned
        self.released.set()

    def next(self, method: str, what: str = "") -> Fault | None:
        """A method is called: what it does instead of its work."""
        if not self.counting:
            return None
        self._counts[method] += 1
        call = Call(method, self._counts[method])
        self.calls.append(call)
        self.said[call] = what
        if call != self.planned and not (self.lasting and self.struck.is_set()):
            return None
        self.struck.set()
        return self.fault


def methods(protocol: type) -> dict[str, Any]:
    """The methods of a seam by name; its properties are not calls."""
    return {
        name: member
        for name, member in vars(protocol).items()
        if not name.startswith("_") and inspect.isfunction(member)
    }


def _error(fault: Fault) -> BaseException:
    if fault == "raw":
        return RuntimeError(f"the driver is confused about {SECRET}")
    if fault == "cancelled":
        return asyncio.CancelledError()
    return StoreError(f"the database did not do it: {SECRET}")


def _words(change: Change) -> str:
    """What a Change is about."""
    words = ["a removal"] if change.removes else []
    for event in change.events:
        if event.notice:
            words.append("a notice")
        elif event.type == "message":
            words.append("the message" if event.actor == "user" else "an answer")
        else:
            words.append(event.type)
    words += [f"a run {'begins' if run.status == 'running' else 'ends'}" for run in change.runs]
    return ", ".join(words) or "a title"


class _Faulty:
    """What stands before the real one. Only what the seam declares can be called."""

    seam: type

    def __init__(self, real: Any, faults: Faults) -> None:
        self.real, self.faults = real, faults
        self._methods = methods(self.seam)
        # Of calls that keep their order in a thread: the last one, for the next to wait for.
        self._last: dict[str, asyncio.Future[Any]] = {}
        self._working: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        if name in self._methods:
            return self._faulty(name, self._methods[name])
        if name in vars(self.seam):  # a property
            return getattr(self.real, name)
        raise AttributeError(f"{self.seam.__name__} has no {name!r}: what the engine calls is to be declared there")

    def _faulty(self, name: str, declared: Any) -> Callable[..., Any]:
        real = getattr(self.real, name)
        if inspect.iscoroutinefunction(declared):
            return lambda *args, **kwargs: self._wait(name, real, args, kwargs)
        if get_type_hints(declared)["return"] is type(None):
            return lambda *args, **kwargs: self._say(name, real, args, kwargs)
        return lambda *args, **kwargs: self._order(name, real, args, kwargs)

    async def _wait(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A coroutine."""
        fault = self.faults.next(name)
        if fault == "hangs":
            await self.faults.released.wait()
        if fault in ("refused", "raw", "cancelled"):
            await asyncio.sleep(0)
            raise _error(fault)
        answer = await real(*args, **kwargs)
        if fault == "lost":
            raise _error(fault)
        return answer

    def _say(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """What returns at once and has no answer: it can only raise."""
        fault = self.faults.next(name)
        if fault in ("refused", "raw"):
            raise _error(fault)
        real(*args, **kwargs)
        if fault == "lost":
            raise _error(fault)

    def _order(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> asyncio.Future[Any]:
        """What gives a future, in the order of the calls for one thread, as `apply` promises it."""
        fault, key = self.faults.next(name, _words(args[0])), args[0].thread.id
        before = self._last.get(key)
        if fault is None and before is None:
            return real(*args, **kwargs)  # type: ignore[no-any-return]
        if fault == "raw" and self.faults.lasting:
            raise _error(fault)  # a store that does not even give a future
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._last[key] = future

        async def work() -> None:
            try:
                if before is not None and not before.done():
                    await asyncio.wait([before])
                answer = await self._wait_for(fault, real, args, kwargs)
                future.set_result(answer)
            except asyncio.CancelledError:
                future.cancel()
            except BaseException as error:
                future.set_exception(error)
                future.exception()
            finally:
                if self._last.get(key) is future:
                    del self._last[key]

        task = asyncio.create_task(work(), name=f"faulty-{name}")
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return future

    async def _wait_for(self, fault: Fault | None, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if fault == "hangs":
            await self.faults.released.wait()
        if fault in ("refused", "raw", "cancelled"):
            raise _error(fault)
        answer = await real(*args, **kwargs)
        if fault == "lost":
            raise _error(fault)
        return answer


class FaultyStore(_Faulty):
    """A store before another one."""

    seam = Store


class FaultyBroker(_Faulty):
    """A broker before another one."""

    seam = Broker
