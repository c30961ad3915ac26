"""Who is next in a thread."""

from __future__ import annotations

import asyncio

import pytest

from dooers.exceptions import ThreadBusyError
from dooers.lanes import Lanes, Ticket

WITHIN = 10.0


async def is_next(ticket: Ticket) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await ticket.wait()
    except TimeoutError:
        return False
    return True


async def test_the_first_in_a_lane_is_next_at_once() -> None:
    async with asyncio.timeout(WITHIN):
        await Lanes(5).join("t").wait()


async def test_tickets_of_one_lane_are_next_in_the_order_they_were_taken() -> None:
    lanes = Lanes(100)
    tickets = [lanes.join("t") for _ in range(50)]
    done: list[int] = []

    async def stand(number: int, ticket: Ticket) -> None:
        await ticket.wait()
        done.append(number)
        await asyncio.sleep(0)
        assert done[-1] == number, "nobody else was let in meanwhile"
        ticket.leave()

    # Whoever begins to wait first is not therefore first.
    tasks = [asyncio.create_task(stand(n, ticket)) for n, ticket in reversed(list(enumerate(tickets)))]
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*tasks)
    assert done == list(range(50))
    assert len(lanes) == 0


async def test_lanes_do_not_wait_for_each_other() -> None:
    lanes = Lanes(1)
    assert await is_next(lanes.join("a"))
    assert await is_next(lanes.join("b"))
    assert await is_next(lanes.join(("scope", "a")))
    assert list(lanes) == ["a", "b", ("scope", "a")]


async def test_a_full_lane_refuses_and_a_place_that_is_left_can_be_taken() -> None:
    lanes = Lanes(2)
    first, second = lanes.join("t"), lanes.join("t")
    with pytest.raises(ThreadBusyError):
        lanes.join("t")
    lanes.join("elsewhere")
    first.leave()
    third = lanes.join("t")
    assert await is_next(second)
    assert not await is_next(third)
    second.leave()
    assert await is_next(third)


async def test_one_who_leaves_from_the_middle_lets_nobody_in_early() -> None:
    lanes = Lanes(5)
    first, middle, last = (lanes.join("t") for _ in range(3))
    middle.leave()
    assert not await is_next(last)
    first.leave()
    assert await is_next(last)


async def test_leaving_twice_frees_one_place_only() -> None:
    lanes = Lanes(5)
    first, second, third = (lanes.join("t") for _ in range(3))
    first.leave()
    first.leave()
    assert await is_next(second)
    assert not await is_next(third)


async def test_one_who_left_an_old_lane_does_no_harm_to_a_new_one_of_that_name() -> None:
    lanes = Lanes(5)
    old = lanes.join("t")
    old.leave()
    new, waiting = lanes.join("t"), lanes.join("t")
    old.leave()
    assert await is_next(new)
    assert not await is_next(waiting)


async def test_a_wait_that_is_cancelled_keeps_its_place_until_it_is_left() -> None:
    lanes = Lanes(5)
    first, second, third = (lanes.join("t") for _ in range(3))
    task = asyncio.create_task(second.wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    first.leave()
    assert not await is_next(third)
    second.leave()
    assert await is_next(third)


async def test_one_who_goes_beside_a_lane_waits_for_nobody_and_keeps_nobody_waiting() -> None:
    lanes = Lanes(1)
    first = lanes.join("t")
    beside = lanes.beside("t")
    assert await is_next(beside)
    beside.leave()
    beside.leave()
    with pytest.raises(ThreadBusyError):
        lanes.join("t")  # the one place is still the first one's
    first.leave()
    assert await is_next(lanes.beside("t"))
    assert await is_next(lanes.join("t"))


async def test_a_lane_is_taken_while_somebody_stands_in_it_and_not_by_those_beside_it() -> None:
    lanes = Lanes(5)
    lanes.beside("t")
    assert not lanes.is_taken("t")
    first, second = lanes.join("t"), lanes.join("t")
    assert lanes.is_taken("t")
    assert not lanes.is_taken("u")
    first.leave()
    assert lanes.is_taken("t")
    second.leave()
    assert not lanes.is_taken("t")


async def test_an_empty_lane_is_forgotten() -> None:
    lanes = Lanes(5)
    tickets = [lanes.join(f"t{n % 100}") for n in range(300)]
    assert len(lanes) == 100
    for ticket in tickets:
        ticket.leave()
    assert len(lanes) == 0
    assert list(lanes) == []
