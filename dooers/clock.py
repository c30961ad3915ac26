"""The two impure sources of the engine, the time and ids, in one object that tests replace."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

__all__ = ["SystemClock"]


class SystemClock:
    """The machine's clock, and ids that sort by the time they were made."""

    __slots__ = ()

    def now(self) -> datetime:
        """The time, aware, UTC."""
        return datetime.now(UTC)

    def new_id(self) -> str:
        """A version 7 UUID (RFC 9562, section 5.7): 48 bits of milliseconds, 74 random bits. Sorted, so that indexes stay compact."""
        at, some = f"{time.time_ns() // 1_000_000:012x}", _digits()
        return f"{at[:8]}-{at[8:]}-7{some[:3]}-{_VARIANT[some[3]]}{some[4:7]}-{some[7:]}"


# Of the first digit of the variant's field, two bits are given.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
# Hexadecimal digits of random bits for this many ids are fetched ahead: to ask the system for each takes longer than the id, and lets
# go of the interpreter, which under load is a while in coming back.
AHEAD = 64
_fetched: list[str] = []
if hasattr(os, "register_at_fork"):  # where there is forking, a child must not give out the ids of its parent
    os.register_at_fork(after_in_child=_fetched.clear)


def _digits() -> str:
    while True:
        try:
            return _fetched.pop()
        except IndexError:  # asked for this way, as there may be other threads
            some = os.urandom(10 * AHEAD).hex()
            _fetched.extend(some[at : at + 19] for at in range(0, len(some), 20))
