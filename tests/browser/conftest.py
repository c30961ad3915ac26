"""The browser, one for each module; stages and windows, as many as a test wants. A fault that a test does not expect fails it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright, expect

from browser.stage import Stage, staged
from browser.window import Window, opened

expect.set_options(timeout=15_000)  # two cores, shared with everything else

# Nothing but the page: no profile, no updates, nobody to phone home to.
FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync
    --disable-default-apps --disable-extensions --disable-breakpad --disable-dev-shm-usage
"""

Open = Callable[..., Any]


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("these tests drive a Chromium: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        await browser.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path / "worker.db", assistant_name="Guide") as made:
        yield made


@pytest.fixture
async def open_window(browser: Browser) -> AsyncIterator[Open]:
    """`await open_window(url)`: a window of somebody with a browser of their own."""
    windows: list[Window] = []
    async with AsyncExitStack() as stack:

        async def open_one(url: str, **more: Any) -> Window:
            windows.append(await stack.enter_async_context(opened(browser, url, **more)))
            return windows[-1]

        yield open_one
        assert [fault for window in windows for fault in window.unexpected()] == []


@pytest.fixture
async def window(stage: Stage, open_window: Open) -> Window:
    made: Window = await open_window(stage.url)
    return made
