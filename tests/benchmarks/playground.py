"""How smooth the playground is in a long thread: reading it back to its first message, and an answer that is streamed at its end.

Run it by hand: `python tests/benchmarks/playground.py [MESSAGES] [WORDS]`. It drives the Chromium of this machine, without a screen: what
is painted is painted by the processor. Browser and server share this machine's cores. Not a test: nothing passes or fails.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from browser.conftest import FLAGS
from browser.stage import staged
from browser.test_long_thread import answered, fill, question, read_back
from browser.window import opened
from playwright.async_api import async_playwright, expect


async def main(messages: int = 2000, words: int = 1000) -> None:
    program = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as home:
        async with staged(Path(home, "worker.db")) as stage, async_playwright() as playwright:
            began = time.perf_counter()
            await fill(stage, messages)
            print(f"{messages} messages stored in {time.perf_counter() - began:.1f} s")
            browser = await playwright.chromium.launch(executable_path=program, args=FLAGS.split())
            print(f"Chromium {browser.version}")
            async with opened(browser, stage.url) as window:
                print(f"an answer of {words} words in a new thread: {await answered(stage, window, words)}")
                began = time.perf_counter()
                await window.thread("A long one").click()
                await expect(question(window, messages // 2 - 1)).to_be_visible()
                print(f"opened in {time.perf_counter() - began:.2f} s")
                print(f"read back to the first message: {await read_back(window)}")
                print(f"an answer of {words} words at its end: {await answered(stage, window, words)}")
                elements = await window.page.evaluate("document.querySelectorAll('*').length")
                print(f"{elements} elements in the page")
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
