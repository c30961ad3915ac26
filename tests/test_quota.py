"""What one identity may take at once: a bucket that never gives more than it should, and quotas that outlive their connections."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from dooers import Identity, WorkerConfig
from dooers.quota import WEIGHT, Bucket, Quota, Quotas

RATES = st.floats(0.01, 1000)
BURSTS = st.integers(1, 5000)
ANN = Identity(organization_id="o", workspace_id="w", user_id="ann")
STEPS = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 100)), max_size=50)


# ---------------------------------------------------------------- the bucket


@given(RATES, BURSTS, STEPS)
def test_no_more_is_taken_than_the_burst_and_what_time_has_given(
    rate: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    bucket, now, taken = Bucket(rate, burst), 1000.0, 0.0
    for passed, cost in steps:
        now += passed
        if not bucket.take(cost, now):
            taken += min(cost, burst)
        assert taken <= (burst + rate * (now - 1000.0)) * (1 + 1e-9)
        assert 0 <= bucket.level <= burst


@given(RATES, BURSTS, STEPS)
def test_after_the_seconds_it_names_there_is_enough(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    bucket, now = Bucket(rate, burst), 1000.0
    for passed, cost in steps:
        now += passed
        before = bucket.level
        wait = bucket.take(cost, now)
        assert wait >= 0
        if wait:
            assert bucket.level >= before  # what is refused costs nothing
            now += wait * (1 + 1e-6) + 1e-6
            assert bucket.take(cost, now) == 0


@given(RATES, BURSTS, st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 100)), max_size=50))
def test_time_that_goes_back_gives_nothing(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    bucket, now, latest, taken = Bucket(rate, burst), 1000.0, 1000.0, 0.0
    first: float | None = None
    for passed, cost in steps:
        now += passed
        first = now if first is None else min(first, now)
        latest = max(latest, now)
        if not bucket.take(cost, now):
            taken += min(cost, burst)
        assert taken <= (burst + rate * (latest - first)) * (1 + 1e-9)
        assert bucket.level <= burst


def test_a_time_that_is_no_number_gives_nothing() -> None:
    bucket = Bucket(10, 5)
    assert bucket.take(5, 1.0) == 0
    for _ in range(3):
        assert bucket.take(1, math.nan) != 0
    assert bucket.take(1, 1.0) != 0
    assert bucket.take(1, 2.0) == 0


def test_what_costs_more_than_the_whole_bucket_takes_the_whole_bucket() -> None:
    bucket = Bucket(1, 5)
    assert bucket.take(100, 0.0) == 0
    assert bucket.level == 0
    assert bucket.take(100, 1.0) == pytest.approx(4)


def test_a_bucket_is_full_when_a_new_one_would_be_no_different() -> None:
    bucket = Bucket(2, 10)
    assert bucket.full(0.0)
    bucket.take(10, 0.0)
    assert not bucket.full(4.9)
    assert bucket.full(5.0)


def test_a_rate_without_end_never_refuses() -> None:
    bucket = Bucket(math.inf, 1)
    assert [bucket.take(1, 0.0) for _ in range(5)] == [0] * 5


@pytest.mark.parametrize(
    ("size", "cost"), [(0, 1), (WEIGHT - 1, 1), (WEIGHT, 2), (10 * WEIGHT, 11)], ids=["empty", "small", "one", "ten"]
)
def test_a_frame_counts_once_and_once_more_for_each_weight(size: int, cost: int) -> None:
    quota = Quota(Bucket(1, 100))
    assert quota.take_frame(size, 0.0) == 0
    assert quota.bucket.level == 100 - cost


# ---------------------------------------------------------------- the quotas


def quotas(**limits: Any) -> Quotas:
    return Quotas(WorkerConfig(database_type="memory", **limits))


def test_an_identity_is_told_by_its_three_ids_and_nothing_else() -> None:
    known = quotas()
    mine = known.of(ANN, 0.0)
    assert known.of(evolve(ANN, user_name="Ann", user_role="admin"), 9.0) is mine
    places: list[dict[str, Any]] = [{"organization_id": "x"}, {"workspace_id": "x"}, {"user_id": "x"}]
    assert len({id(mine), *(id(known.of(evolve(ANN, **one), 0.0)) for one in places)}) == 4


def test_whoever_leaves_and_comes_back_finds_the_bucket_as_it_was() -> None:
    known = quotas(frames_burst=3, frames_per_second=1)
    here: Any = object()
    quota = known.of(ANN, 0.0)
    quota.connections.add(here)
    for _ in range(3):
        assert quota.take_frame(1, 0.0) == 0
    quota.connections.discard(here)
    assert known.of(ANN, 0.0).take_frame(1, 0.0) == pytest.approx(1)


async def test_a_sweep_forgets_only_who_is_gone_and_whose_bucket_is_full() -> None:
    known = quotas(frames_burst=10, frames_per_second=1)
    kept = {name: known.of(evolve(ANN, user_id=name), 0.0) for name in "abcd"}
    here: Any = object()
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    kept["a"].connections.add(here)
    kept["b"].begin_turn(over)
    kept["c"].bucket.take(10, 0.0)
    for number in range(2000):
        known.of(evolve(ANN, user_id=str(number)), 5.0)
    for name, quota in kept.items():
        again = known.of(evolve(ANN, user_id=name), 5.0)
        assert (again is quota) == (name != "d"), name
    over.set_result(None)
    await asyncio.sleep(0)
    assert kept["b"].turns == 0


def test_strangers_that_come_and_go_do_not_grow_it() -> None:
    known = quotas()
    for number in range(20_000):
        known.of(evolve(ANN, user_id=str(number)), float(number))
    assert len(known) <= 2000
