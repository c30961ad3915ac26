"""The page comes up: nothing is loaded from elsewhere, nothing is forbidden to it that it needs."""

from __future__ import annotations

from playwright.async_api import expect

from browser.window import Window


async def test_it_connects_and_waits_for_the_first_message(window: Window) -> None:
    await expect(window.page).to_have_title("Guide · playground")
    await expect(window.box).to_be_editable()
    await window.shot("empty")
