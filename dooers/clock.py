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
        number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
        digits = f"{number & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
