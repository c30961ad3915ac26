"""Everything without a mouse: where the focus goes, and what the keys do."""

from __future__ import annotations

from playwright.async_api import Locator, expect

from browser.stage import Pieces, Stage
from browser.window import Window


async def tab_to(window: Window, target: Locator, most: int = 40) -> None:
    """Tab until the focus is there, as somebody does who has no other way."""
    for _ in range(most):
        if await target.evaluate("element => element === document.activeElement"):
            return
        await window.page.keyboard.press("Tab")
    raise AssertionError(f"not reached by {most} tabs: {target}")


async def test_write_send_stop_open_rename_and_delete(stage: Stage, window: Window) -> None:
    keys = window.page.keyboard
    await stage.dispatch("hello", thread_title="Older")
    await expect(window.thread("Older")).to_be_visible()

    # One may write at once; and from the top of the page there is a way past everything, into the message field.
    await expect(window.box).to_be_focused()
    await tab_to(window, window.page.get_by_role("link", name="Skip to the message field"))
    await keys.press("Enter")
    await expect(window.box).to_be_focused()

    pieces = Pieces()
    stage.script = pieces.script()
    await keys.type("two")
    await keys.press("Shift+Enter")
    await keys.type("lines")
    await keys.press("Enter")
    await expect(window.log.get_by_role("article", name="You")).to_contain_text("two")
    await expect(window.box).to_have_value("")
    await pieces.write("and so on")
    await expect(window.log).to_contain_text("and so on")
    await expect(window.box).to_be_focused()
    await keys.press("Escape")
    await expect(window.stop).to_be_hidden()
    await expect(window.log).to_contain_text("Stopped")

    await tab_to(window, window.thread("Older"), 60)
    await keys.press("Enter")
    await expect(window.title).to_have_text("Older")
    await tab_to(window, window.button("Actions for Older"))
    await keys.press("Enter")
    await expect(window.page.get_by_role("menuitem", name="Rename")).to_be_focused()
    await window.shot("menu")
    await keys.press("Enter")
    await expect(window.dialog.get_by_role("textbox", name="Title")).to_be_focused()
    await keys.press("Control+a")
    await keys.type("Newer")
    await keys.press("Enter")
    await expect(window.title).to_have_text("Newer")
    await tab_to(window, window.button("Actions for Newer"), 60)
    await keys.press("Enter")
    await keys.press("ArrowDown")
    await expect(window.page.get_by_role("menuitem", name="Delete")).to_be_focused()
    await keys.press("Enter")
    await tab_to(window, window.button("Delete", window.dialog), 5)
    await keys.press("Enter")
    await expect(window.thread("Newer")).to_have_count(0)


async def test_the_panels_are_tabs_that_arrows_move_between(window: Window) -> None:
    keys = window.page.keyboard
    await window.panel("Settings")
    side = window.page.get_by_role("complementary")
    await side.get_by_role("tab", name="Settings").focus()
    for name in ("Analytics", "Frames", "Identity", "Settings"):
        await keys.press("ArrowRight")
        await expect(side.get_by_role("tab", name=name)).to_be_focused()
        await expect(side.get_by_role("tabpanel", name=name)).to_be_visible()
    await keys.press("Escape")
    await expect(side).to_have_count(0)
