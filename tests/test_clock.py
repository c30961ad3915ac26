"""The time and ids: aware, unique, and sorted as they were made."""

from __future__ import annotations

import time
from datetime import UTC, timedelta
from uuid import UUID

from dooers.clock import SystemClock


def test_the_time_is_aware_and_utc() -> None:
    assert SystemClock().now().utcoffset() == timedelta(0)
    assert SystemClock().now().tzinfo is UTC


def test_ids_are_whole_version_7_uuids_that_sort_by_the_time_they_were_made() -> None:
    clock = SystemClock()
    made = []
    for _ in range(50):
        made.append(clock.new_id())
        time.sleep(0.0011)
    assert made == sorted(made)
    for text in made:
        read = UUID(text)
        assert str(read) == text
        assert (read.version, read.variant) == (7, "specified in RFC 4122")
        assert abs((read.int >> 80) / 1000 - time.time()) < 60


def test_ids_do_not_repeat() -> None:
    clock = SystemClock()
    assert len({clock.new_id() for _ in range(20_000)}) == 20_000
