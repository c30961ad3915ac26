"""A thread of two thousand messages: read back to its beginning, and answered in, without a page that hangs.

What is asserted is an order of magnitude, as the machine is shared; `tests/benchmarks/playground.py` prints the figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Locator, expect

from browser.smoothness import Smoothness, measured, watch
from browser.stage import Pieces, Stage
from browser.window import Window

MESSAGES = 2000
ANSWER = """Message **{n}** of many, with a [link](https://example.com/{n}), some `code` and a list:

- one
- two

```python
print({n})
```
"""


async def fill(stage: Stage, messages: int = MESSAGES) -> str:
    """A thread of so many messages, half of them answers."""

    async def answer(incoming: Any, send: Any, **_: Any) -> AsyncIterator[Any]:
        yield send.text(ANSWER.format(n=incoming.message))

    stage.script = answer
    thread_id = await stage.dispatch("question 0", thread_title="A long one")
    for begin in range(1, messages // 2, 50):
        turns = [
            await stage.worker.dispatch(
                organization_id="local",
                workspace_id="local",
                user_id="local",
                message=f"question {n}",
                thread_id=thread_id,
            )
            for n in range(begin, min(begin + 50, messages // 2))
        ]
        await asyncio.gather(*(turn.collect() for turn in turns))
    return thread_id


def question(window: Window, n: int) -> Locator:
    return window.log.get_by_role("article", name="You").get_by_text(f"question {n}", exact=True)


async def read_back(window: Window, step: int = 3000) -> Smoothness:
    """Scroll from the newest message to the first, by so many pixels a frame."""
    await window.log.hover()
    await watch(window)
    first = question(window, 0)
    for _ in range(4000):
        await window.page.mouse.wheel(0, -step)
        await window.page.evaluate("() => new Promise(requestAnimationFrame)")
        if await first.count() and await window.log.evaluate("log => log.scrollTop < 1"):
            break
    await expect(first).to_be_visible()
    return await measured(window)


async def answered(stage: Stage, window: Window, words: int = 300) -> Smoothness:
    """Stream an answer at its end."""
    pieces = Pieces()
    stage.script = pieces.script()
    await window.say("the last question")
    await expect(window.stop).to_be_visible()
    await watch(window)
    for n in range(words):
        await pieces.write(f"word{n} " if n % 12 else f"\n\nparagraph **{n}** ")
        await asyncio.sleep(0.01)  # as fast as models are
    pieces.end()
    await expect(window.stop).to_be_hidden()
    await expect(window.log).to_contain_text(f"word{words - 1}")
    return await measured(window)


async def test_two_thousand_messages_are_read_back_and_answered(stage: Stage, window: Window) -> None:
    await fill(stage)
    await window.thread("A long one").click()
    await expect(question(window, 999)).to_be_visible()
    back = await read_back(window, 20_000)
    assert await window.log.get_by_role("article", name="You").count() == MESSAGES // 2
    await window.shot("long-thread")
    typed = await answered(stage, window, 150)
    print(f"\nreading back {MESSAGES} messages: {back}\nan answer at its end: {typed}")
    assert back.fps > 5
    assert max(back.tasks, default=0) < 2000
    assert typed.fps > 5
    assert max(typed.tasks, default=0) < 2000
