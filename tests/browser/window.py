"""A window of a browser on the playground, by the names that people and screen readers know its parts by. Not a test.

Whatever a page must never do is a fault, noted as it happens: an error in the console, an exception that nobody caught, a breach of the
Content-Security-Policy, a dialog, another window, a download, and a request to anywhere but the page's own files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Download,
    Error,
    Locator,
    Page,
    Request,
    expect,
)

__all__ = ["OWN", "WIDE", "Window", "opened"]

WIDE = {"width": 1280, "height": 800}
SHOTS = os.environ.get("DOOERS_TEST_SCREENSHOTS")
# What the page may ask its own server for.
OWN = re.compile(r"/(playground/[\w./-]+|ws|favicon\.ico)?")


@define(eq=False)
class Window:
    page: Page
    url: str
    faults: list[str] = field(factory=list)
    # Faults that a test is about, as patterns.
    expected: list[str] = field(factory=list)

    # ------------------------------------------------------------ its parts

    @property
    def threads(self) -> Locator:
        return self.page.get_by_role("navigation", name="Threads", exact=True)

    @property
    def title(self) -> Locator:
        return self.page.get_by_role("main").get_by_role("heading", level=1)

    @property
    def log(self) -> Locator:
        return self.page.get_by_role("log", name="Messages")

    @property
    def box(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def connection(self) -> Locator:
        return self.page.get_by_role("main").get_by_role("status").first

    @property
    def stop(self) -> Locator:
        return self.page.get_by_role("button", name="Stop", exact=True)

    @property
    def side(self) -> Locator:
        """The panel, beside the conversation or, where there is no room, over it."""
        return self.page.get_by_role("complementary").or_(self.page.get_by_role("dialog", name="Panel"))

    def button(self, name: str, within: Locator | None = None) -> Locator:
        return (within or self.page).get_by_role("button", name=name, exact=True)

    def thread(self, title: str) -> Locator:
        """Its entry in the list."""
        return self.threads.get_by_role("link", name=title).or_(
            self.threads.get_by_role("button", name=title, exact=True)
        )

    @property
    def dialog(self) -> Locator:
        return self.page.get_by_role("dialog")

    # ------------------------------------------------------------ what people do

    async def say(self, text: str) -> None:
        await self.box.fill(text)
        await self.box.press("Enter")

    async def panel(self, tab: str) -> Locator:
        """Open a panel; what is in it."""
        side = self.side
        if not await side.is_visible():
            await self.page.get_by_role("navigation", name="Panels").get_by_role("button", name=tab, exact=True).click()
        await side.get_by_role("tab", name=tab, exact=True).click()
        return side.get_by_role("tabpanel", name=tab)

    async def act(self, title: str, what: str) -> None:
        """An entry of a thread's menu."""
        await self.threads.get_by_role("button", name=f"Actions for {title}", exact=True).click()
        await (
            self.page.get_by_role("menuitem", name=what)
            .or_(self.page.get_by_role("button", name=what, exact=True))
            .first.click()
        )

    async def shot(self, name: str) -> None:
        """A picture for people to look at, where DOOERS_TEST_SCREENSHOTS says."""
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            await self.page.screenshot(path=Path(SHOTS, f"{name}.png"), animations="disabled")

    # ------------------------------------------------------------ what is wrong

    def unexpected(self) -> list[str]:
        return [fault for fault in self.faults if not any(re.search(known, fault) for known in self.expected)]

    def watch(self) -> None:
        page, home = self.page, urlsplit(self.url).netloc

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning", "assert"):
                self.faults.append(f"console: {message.text}")

        def asked(request: Request) -> None:
            parts = urlsplit(request.url)
            if parts.scheme in ("data", "blob"):
                return
            if parts.netloc != home or not OWN.fullmatch(parts.path):
                self.faults.append(f"request: {request.url}")

        async def downloaded(download: Download) -> None:
            self.faults.append(f"download: {download.suggested_filename}")

        page.on("console", said)
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error.stack or error}"))
        page.on("request", asked)
        page.on("download", downloaded)
        page.on("popup", lambda other: self.faults.append(f"window: {other.url}"))
        page.on(
            "framenavigated",
            lambda frame: self.faults.append(f"frame: {frame.url}") if self._strange(frame.url) else None,
        )

    def _strange(self, url: str) -> bool:
        return urlsplit(url).netloc != urlsplit(self.url).netloc


async def _answer_dialogs(window: Window) -> None:
    async def answer(dialog: Any) -> None:
        window.faults.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    window.page.on("dialog", answer)


@asynccontextmanager
async def opened(
    browser: Browser, url: str, identity: dict[str, str] | None = None, connects: bool = True, **context: Any
) -> AsyncIterator[Window]:
    """A window with cookies and storage of its own, connected, unless it is one that must not be."""
    made = await browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **context})
    # The page must not ask for anything else; should it do so, nobody shall hear of it.
    home = urlsplit(url).netloc
    await made.route(lambda asked: urlsplit(asked).netloc not in (home, ""), lambda route: route.abort())
    await made.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error(`CSP: ${e.violatedDirective} ${e.blockedURI} ${e.sample}`));"
    )
    if identity is not None:
        await made.add_init_script(
            f"if (!localStorage['dooers.identity']) localStorage['dooers.identity'] = {json.dumps(json.dumps(identity))}"
        )
    try:
        yield await another(made, url, connects)
    finally:
        with suppress(Error):  # the browser is gone, and the test says why
            await made.close()


async def another(context: BrowserContext, url: str, connects: bool = True) -> Window:
    """One more tab, beside those of the same person."""
    window = Window(await context.new_page(), url)
    window.watch()
    await _answer_dialogs(window)
    await window.page.goto(url)
    try:
        await expect(window.connection).to_have_text("Connected" if connects else "Not let in")
    except AssertionError as error:
        raise AssertionError(f"the page did not connect: {window.faults}") from error
    return window
