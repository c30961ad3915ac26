"""What every broker does, whatever is under it. A broker's own test module subclasses `BrokerContract` and gives it the fixture
`processes`; one that carries no news subclasses `LockContract`.

Nothing in here may know what carries the texts, nor how fast.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dooers.brokers import Broker
from dooers.exceptions import StoreError

WITHIN = 10.0
# Long enough for a text, or a lock, that must not arrive to be seen to arrive.
A_WHILE = 0.1


class Process:
    """A broker and what it hears."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.heard: list[str] = []
        self.missed = 0
        self._news = asyncio.Event()

    async def open(self) -> Process:
        await self.broker.open(self._hear, self._miss)
        return self

    def _hear(self, text: str) -> None:
        self.heard.append(text)
        self._news.set()

    def _miss(self) -> None:
        self.missed += 1
        self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def hears(self, *texts: str) -> None:
        """Wait for exactly these, in this order."""
        await self.until(lambda: len(self.heard) >= len(texts))
        assert self.heard == list(texts)
        self.heard.clear()


class TellContract:
    """What is told is heard."""

    async def interrupt(self, broker: Broker) -> None:
        """Take the broker's connection away, in such a way that it comes back by itself."""
        raise NotImplementedError

    # ------------------------------------------------------------ telling and hearing

    async def test_what_is_told_is_heard_by_all_others_and_not_by_who_told_it(self, processes: list[Process]) -> None:
        one, two, three = processes
        one.broker.tell("hello")
        await two.hears("hello")
        await three.hears("hello")
        two.broker.tell("and back")  # by the time this came, an echo of the first would have come
        await one.hears("and back")

    async def test_it_is_not_alone(self, processes: list[Process]) -> None:
        assert not any(process.broker.alone for process in processes)

    async def test_a_thousand_texts_arrive_in_the_order_of_each_sender(self, processes: list[Process]) -> None:
        one, two, three = processes
        for number in range(1000):
            one.broker.tell(f"one {number}")
            two.broker.tell(f"two {number}")
            if number % 100 == 0:
                await asyncio.sleep(0)
        await three.until(lambda: len(three.heard) >= 2000)
        for name in ("one", "two"):
            assert [text for text in three.heard if text.startswith(name)] == [f"{name} {n}" for n in range(1000)]
        await one.until(lambda: len(one.heard) >= 1000)
        assert one.heard == [f"two {number}" for number in range(1000)]

    @pytest.mark.parametrize(
        "text", ["", " ", "\n'\"\\;--\t$1", "äöü ß 🏳️‍🌈 \u202e漢字", "\x01\x7f\u2028\ufffd", '{"a": "b"}']
    )
    async def test_a_text_arrives_as_it_was(self, processes: list[Process], text: str) -> None:
        one, two, _ = processes
        one.broker.tell(text)
        await two.hears(text)

    @pytest.mark.parametrize("letter", ["x", "€", "🎈"])
    async def test_a_text_of_the_size_of_the_limit_arrives(self, processes: list[Process], letter: str) -> None:
        one, two, _ = processes
        limit = one.broker.limit or 1_000_000
        text = letter * (limit // len(letter.encode()))
        text += "x" * (limit - len(text.encode()))
        assert len(text.encode()) == limit
        one.broker.tell(text)
        one.broker.tell("after it")
        await two.hears(text, "after it")

    async def test_telling_does_not_wait_for_who_hears(self, processes: list[Process]) -> None:
        one, two, _ = processes
        one.broker.tell("first")
        assert two.heard == []  # not even when everybody is in one loop: who tells is in the midst of something
        await two.hears("first")

    # ------------------------------------------------------------ coming and going

    async def test_closing_says_what_waits_to_be_said(self, processes: list[Process]) -> None:
        one, two, _ = processes
        for number in range(50):
            one.broker.tell(f"last words {number}")
        await one.broker.close()
        await two.hears(*(f"last words {number}" for number in range(50)))

    async def test_who_is_closed_hears_nothing_and_may_close_again(self, processes: list[Process]) -> None:
        one, two, three = processes
        await two.broker.close()
        await two.broker.close()
        one.broker.tell("too late")
        await three.hears("too late")
        await asyncio.sleep(0)
        assert two.heard == []

    async def test_a_broker_may_be_opened_again(self, processes: list[Process]) -> None:
        one, two, _ = processes
        await two.broker.close()
        await two.open()
        one.broker.tell("welcome back")
        await two.hears("welcome back")
        two.broker.tell("thanks")
        await one.hears("thanks")

    async def test_a_connection_that_was_away_and_is_back_is_told_of(self, processes: list[Process]) -> None:
        one, two, _ = processes
        await self.interrupt(two.broker)
        await two.until(lambda: two.missed > 0)
        two.heard.clear()
        one.broker.tell("after")
        two.broker.tell("and before")
        await two.hears("after")
        await one.until(lambda: "and before" in one.heard)
        assert one.missed == 0


class LockContract:
    """A key is held by one."""

    async def test_a_key_is_held_by_one_at_a_time_wherever_they_are(self, processes: list[Process]) -> None:
        inside, most, order = 0, 0, list[int]()

        async def work(number: int) -> None:
            nonlocal inside, most
            broker = processes[number % 3].broker
            await broker.lock("thread-1")
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            order.append(number)
            inside -= 1
            broker.unlock("thread-1")

        async with asyncio.timeout(3 * WITHIN):
            await asyncio.gather(*(work(number) for number in range(30)))
        assert (most, sorted(order)) == (1, list(range(30)))

    async def test_other_keys_are_free(self, processes: list[Process]) -> None:
        one, two, _ = processes
        keys = ["a", "b", "a'b\"c;--", "ä🎈", "x" * 500]
        async with asyncio.timeout(WITHIN):
            for key in keys:
                await one.broker.lock(key)
            await two.broker.lock("another")
        for key in keys:
            one.broker.unlock(key)
        async with asyncio.timeout(WITHIN):
            for key in keys:
                await two.broker.lock(key)

    async def test_who_waits_for_a_key_gets_it_when_it_is_let_go(self, processes: list[Process]) -> None:
        one, two, _ = processes
        await one.broker.lock("k")
        waiting = asyncio.create_task(two.broker.lock("k"))
        assert await self._waits(waiting)
        one.broker.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)

    async def test_who_stops_waiting_for_a_key_leaves_nothing_behind(self, processes: list[Process]) -> None:
        one, two, three = processes
        await one.broker.lock("k")
        waiting = [asyncio.create_task(broker.lock("k")) for broker in (one.broker, two.broker, two.broker)]
        assert await self._waits(*waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert all(task.cancelled() for task in waiting)
        one.broker.unlock("k")
        await asyncio.wait_for(three.broker.lock("k"), WITHIN)

    async def test_who_is_cancelled_in_the_moment_a_key_is_let_go_does_not_keep_it(
        self, processes: list[Process]
    ) -> None:
        one, two, three = processes
        await one.broker.lock("k")
        waiting = asyncio.create_task(two.broker.lock("k"))
        assert await self._waits(waiting)
        one.broker.unlock("k")
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():  # it may have been faster, and then holds it like anybody
            two.broker.unlock("k")
        await asyncio.wait_for(three.broker.lock("k"), WITHIN)

    async def test_letting_go_of_a_key_that_is_not_held_is_no_harm(self, processes: list[Process]) -> None:
        one, two, three = processes
        one.broker.unlock("k")
        await one.broker.lock("k")
        two.broker.unlock("k")
        waiting = asyncio.create_task(three.broker.lock("k"))
        assert await self._waits(waiting)
        one.broker.unlock("k")
        one.broker.unlock("k")
        await asyncio.wait_for(waiting, WITHIN)

    async def test_the_keys_of_who_closes_are_free(self, processes: list[Process]) -> None:
        one, two, _ = processes
        keys = [f"k{number}" for number in range(5)]
        for key in keys:
            await one.broker.lock(key)
        waiting = [asyncio.create_task(two.broker.lock(key)) for key in keys]
        assert await self._waits(*waiting)
        await one.broker.close()
        await asyncio.wait_for(asyncio.gather(*waiting), WITHIN)
        one.broker.unlock("k0")
        three_waits = asyncio.create_task(processes[2].broker.lock("k0"))
        assert await self._waits(three_waits)  # what a closed broker lets go of is not what others hold
        three_waits.cancel()
        await asyncio.wait([three_waits])

    async def test_a_broker_that_is_not_open_gives_no_keys(self, processes: list[Process]) -> None:
        one, two, _ = processes
        await one.broker.close()
        with pytest.raises(StoreError):
            await one.broker.lock("k")
        await asyncio.wait_for(two.broker.lock("k"), WITHIN)

    async def test_a_key_goes_from_hand_to_hand_among_many_who_wait(self, processes: list[Process]) -> None:
        done = list[int]()

        async def work(number: int) -> None:
            broker = processes[number % 3].broker
            await broker.lock("k")
            done.append(number)
            broker.unlock("k")

        await processes[0].broker.lock("k")
        tasks = [asyncio.create_task(work(number)) for number in range(60)]
        assert await self._waits(*tasks)
        for task in tasks[::3]:
            task.cancel()
        processes[0].broker.unlock("k")
        async with asyncio.timeout(3 * WITHIN):
            await asyncio.wait(tasks)
        assert sorted(done) == [number for number in range(60) if number % 3]

    async def _waits(self, *tasks: asyncio.Task[Any]) -> bool:
        done, _ = await asyncio.wait(tasks, timeout=A_WHILE)
        return not done


class BrokerContract(TellContract, LockContract):
    """One behaviour a test. Subclasses give the fixture `processes`: three open ones that hear each other, closed after the test."""
