"""The panels beside the conversation: by keyboard and narrow, drafts beside what others set, frames, analytics, who one is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, expect

from browser.conftest import Open
from browser.stage import WHO, Stage, staged
from browser.window import Window
from dooers import AuthRequest, Identity, UnauthenticatedError, WorkerEvent, WorkerServer
from dooers.schema import SettingsField, SettingsFieldType, SettingsSchema, SettingsSelectOption

Kind = SettingsFieldType
NASTY = '<img src=x onerror="alert(1)">'
IDENTITY = {**WHO, "user_name": "", "user_role": "", "auth_token": ""}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
SCHEMA = SettingsSchema(
    [
        SettingsField("name", Kind.TEXT, "Name", value="Ana"),
        SettingsField("odd one", Kind.TEXT, NASTY, value=NASTY, help=NASTY, max_length=40),
        SettingsField("level", Kind.NUMBER, "Level", value=0.5, min=0, max=1, step=0.1),
        SettingsField(
            "pick", Kind.SELECT, "Pick", options=[SettingsSelectOption(1, NASTY), SettingsSelectOption(True, "Yes")]
        ),
        SettingsField("maybe", Kind.CHECKBOX, "Maybe"),
        SettingsField("key", Kind.PASSWORD, "Key"),
        SettingsField("here", Kind.IMAGE, "Here", src=PIXEL, width=40, height=40),
        SettingsField("away", Kind.IMAGE, "Away", src="https://pictures.example/logo.png"),
        SettingsField("evil", Kind.IMAGE, "Evil", src="javascript:alert(1)"),
    ]
)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path / "worker.db", settings_schema=SCHEMA) as made:
        yield made


# ---------------------------------------------------------------- settings


async def test_a_draft_stays_when_another_window_sets_its_field(stage: Stage, window: Window) -> None:
    form = await window.panel("Settings")
    name = form.get_by_role("textbox", name="Name")
    await name.press_sequentially("x")
    await (await stage.worker.settings()).patch("name", "Bob")
    await expect(form).to_contain_text("Changed elsewhere to Bob")
    await expect(name).to_have_value(re.compile("x"))
    await window.button("Take that", form).click()
    await expect(name).to_have_value("Bob")
    await expect(name).to_be_focused()
    assert await (await stage.worker.settings()).get("name") == "Bob"


async def test_what_others_set_does_not_move_the_caret(stage: Stage, window: Window) -> None:
    name = (await window.panel("Settings")).get_by_role("textbox", name="Name")
    await name.focus()
    await name.evaluate("input => input.setSelectionRange(1, 2)")
    await (await stage.worker.settings()).patch("name", "Carla")
    await expect(name).to_have_value("Carla")
    await expect(name).to_be_focused()
    assert await name.evaluate("input => [input.selectionStart, input.selectionEnd]") == [1, 2]


async def test_a_field_goes_back_to_nothing(stage: Stage, window: Window) -> None:
    form, settings = await window.panel("Settings"), await stage.worker.settings()
    await window.button("Unset Name", form).click()
    await expect(form.get_by_text("Saved", exact=True)).to_have_count(1)
    assert await settings.get("name") is None
    pick, maybe, level = form.get_by_label("Pick"), form.get_by_label("Maybe", exact=True), form.get_by_label("Level")
    assert await maybe.evaluate("box => box.indeterminate")
    await pick.select_option(label="Yes")
    await maybe.check()
    await expect(form.get_by_text("Saved", exact=True)).to_have_count(3)
    assert (await settings.get("pick"), await settings.get("maybe")) == (True, True)
    for undo in (
        pick.select_option(label="Not set"),
        window.button("Unset Maybe", form).click(),
        level.fill(""),
        level.blur(),
    ):
        await undo
    await expect(form.get_by_text("Saved", exact=True)).to_have_count(4)
    await expect(form.get_by_text(re.compile("Not saved yet|Saving"))).to_have_count(0)
    assert [await settings.get(one) for one in ("pick", "maybe", "level")] == [None, None, None]


async def test_what_is_no_number_is_told_without_asking_the_worker(stage: Stage, window: Window) -> None:
    form = await window.panel("Settings")
    level = form.get_by_label("Level")
    await level.press_sequentially("e")
    await level.blur()
    await expect(form.get_by_role("alert")).to_have_text("expected a number")
    await window.button("Undo", form).click()
    await expect(level).to_have_value("0.5")
    await expect(form.get_by_role("alert")).to_have_count(0)


async def test_a_change_that_the_connection_lost_is_tried_again(stage: Stage, window: Window) -> None:
    window.expected.append("WebSocket|ERR_INTERNET_DISCONNECTED")
    form = await window.panel("Settings")
    name = form.get_by_role("textbox", name="Name")
    await window.page.context.set_offline(True)
    await window.page.evaluate("dispatchEvent(new Event('offline'))")
    await name.fill("Dora")
    await name.blur()
    await expect(form.get_by_role("alert")).to_contain_text("Not saved")
    await window.page.context.set_offline(False)
    await window.page.evaluate("dispatchEvent(new Event('online'))")
    await expect(window.connection).to_contain_text("Connected")
    await expect(name).to_have_value("Dora")
    await window.button("Try again", form).click()
    await expect(form.get_by_text("Saved", exact=True)).to_be_visible()
    assert await (await stage.worker.settings()).get("name") == "Dora"


async def test_labels_help_options_and_pictures_are_text_until_somebody_asks(stage: Stage, window: Window) -> None:
    form = await window.panel("Settings")
    await expect(form.get_by_label(NASTY)).to_have_value(NASTY)
    await expect(form.get_by_text(NASTY).first).to_be_visible()
    await expect(form.locator("img")).to_have_count(1)  # the one that lies in its own value
    await expect(form).to_contain_text("Not the address of an image: javascript:alert(1)")
    window.expected.append("pictures.example|ERR_")
    await window.button("Load it", form).click()
    await expect(form.get_by_role("img", name="Away")).to_have_attribute("src", "https://pictures.example/logo.png")


async def test_a_worker_without_settings_says_how_to_declare_some(tmp_path: Path, open_window: Open) -> None:
    async with staged(tmp_path / "bare.db") as stage:
        window = await open_window(stage.url)
        await expect(await window.panel("Settings")).to_contain_text("@worker.settings")
        await window.page.close()


async def test_who_may_not_read_them_is_told_why(tmp_path: Path, open_window: Open) -> None:
    permissions = {"settings.read": "admin", "analytics.read": "admin"}
    async with staged(tmp_path / "closed.db", settings_schema=SCHEMA, permissions=permissions) as stage:
        window = await open_window(stage.url)
        form = await window.panel("Settings")
        await expect(form).to_contain_text("your role does not allow settings.read")
        await expect(await window.panel("Analytics")).to_contain_text("your role does not allow analytics.read")
        await window.panel("Settings")
        await window.button("Who am I?", window.page.get_by_role("tabpanel")).click()
        identity = window.page.get_by_role("tabpanel", name="Identity")
        await identity.get_by_role("textbox", name="Role").fill("admin")
        await window.button("Connect", identity).click()
        form = await window.panel("Settings")
        await expect(form.get_by_role("textbox", name="Name")).to_have_value("Ana")
        await window.page.close()


# ---------------------------------------------------------------- analytics and frames


async def test_analytics_are_counted_and_listed(stage: Stage, window: Window) -> None:
    async def ordering(send: Any, analytics: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        for total in (1, 2):
            await analytics.track("order.placed", {"total": total, "item": NASTY})
        yield send.text("ordered")

    stage.script = ordering
    panel = await window.panel("Analytics")
    await expect(panel).to_contain_text("Nothing was counted yet")
    await window.say("two, please")
    counter = panel.get_by_role("list", name="Counters").get_by_role("button", name="order.placed 2")
    await counter.click()
    await expect(panel.locator("details")).to_have_count(2)
    await panel.locator("details summary").first.click()
    await expect(panel.locator("details").first).to_contain_text('"total": 2')
    await window.button("Pause", panel).click()
    await window.say("more")
    await expect(panel).to_contain_text("not kept")
    await expect(counter).to_be_visible()
    await window.button("Resume", panel).click()
    await window.button("Clear", panel).click()
    await expect(panel).to_contain_text("Nothing was counted yet")


async def test_frames_are_filtered_paused_and_cleared(stage: Stage, window: Window) -> None:
    panel = await window.panel("Frames")
    rows, search = panel.locator("details"), panel.get_by_role("searchbox", name="Filter frames")
    await expect(rows.filter(has_text="thread.list.result")).to_have_count(1)
    await window.button("Out", panel).click()
    await expect(rows.filter(has_text="thread.list.result")).to_have_count(0)
    await expect(rows.filter(has_text="connect")).to_have_count(1)
    await window.button("Both", panel).click()
    await search.fill("no such text")
    await expect(rows).to_have_count(0)
    await search.press("Escape")
    await expect(search).to_have_value("")
    await expect(panel).to_be_visible()
    await window.button("Pause", panel).click()
    before = await rows.count()
    await window.say("unseen")
    await expect(window.log).to_contain_text("You said: unseen")
    await expect(panel).to_contain_text("not kept")
    assert await rows.count() == before
    await window.button("Clear", panel).click()
    await expect(rows).to_have_count(0)


async def test_neither_a_token_nor_a_password_is_among_the_frames(stage: Stage, window: Window) -> None:
    form = await window.panel("Settings")
    await form.get_by_label("Key").fill("hunter2")
    await form.get_by_label("Key").blur()
    await expect(window.button("Remove Key", form)).to_be_visible()
    await _become(window, Token="s3same")
    panel = await window.panel("Frames")
    for kind in ("settings.patch", "connect"):
        await panel.get_by_role("searchbox", name="Filter frames").fill(f'"{kind}"')
        await window.button("Out", panel).click()
        row = panel.locator("details").first
        await row.locator("summary").click()
        await expect(row).to_contain_text("•••")
    text = await window.page.evaluate(
        "import('/playground/store.js').then(({ state }) => JSON.stringify(state.frames.all))"
    )
    assert "•••" in text
    assert [secret for secret in ("hunter2", "s3same") if secret in text] == []


async def test_a_thousand_frames_stay_and_no_more(window: Window) -> None:
    panel = await window.panel("Frames")
    await window.page.evaluate("""async () => {
        const { state, changed } = await import('/playground/store.js');
        const { seenFrame } = await import('/playground/model.js');
        for (let n = 0; n < 1500; n++) seenFrame(state, 'in', '{"n":' + n + '}', { type: 'x', payload: {} }, n);
        changed();
    }""")
    await expect(panel.locator("details")).to_have_count(1000)
    await expect(panel).to_contain_text("the last of 1,5")


# ---------------------------------------------------------------- who one is


async def test_an_identity_without_ids_is_not_tried(window: Window) -> None:
    panel = await window.panel("Identity")
    user = panel.get_by_role("textbox", name="User")
    await user.fill("  ")
    await window.button("Connect", panel).click()
    await expect(user).to_be_focused()
    await expect(user).to_have_attribute("aria-invalid", "true")
    alert = panel.get_by_role("alert")
    assert await alert.get_attribute("id") in (await user.get_attribute("aria-describedby") or "").split()


async def test_somebody_else_sees_other_threads_and_going_back_is_one_click(stage: Stage, window: Window) -> None:
    await window.say("Only for here")
    await expect(window.log).to_contain_text("You said: Only for here")
    panel = await _become(window, Organization="elsewhere", Name="Zoe", Token="secret")
    await expect(panel.get_by_role("status")).to_contain_text("Zoe")
    await expect(window.thread("Untitled conversation")).to_have_count(0)
    assert "secret" not in await window.page.evaluate("JSON.stringify(localStorage)")
    await panel.get_by_role("button", name="local / local").click()
    await expect(window.thread("Untitled conversation")).to_be_visible()


async def test_what_a_worker_says_to_whom_it_refuses_is_shown(tmp_path: Path, open_window: Open) -> None:
    def guarded(worker: WorkerServer) -> None:
        @worker.authenticate
        async def who(request: AuthRequest) -> Identity:
            if request.auth_token != "let me in":
                raise UnauthenticatedError(f"not you {NASTY}")
            return Identity(organization_id="acme", workspace_id="sales", user_id="ana")

    async with staged(tmp_path / "guarded.db", guarded) as stage:
        window = await open_window(stage.url, identity={**IDENTITY, "auth_token": "let me in"})
        panel = await window.panel("Identity")
        await expect(panel).to_contain_text("authenticate hook: it decides who you are")
        for token, told in (("no", f"not you {NASTY}"), ("let me in", "You are")):
            await panel.get_by_label("Token", exact=True).fill(token)
            await panel.get_by_label("Token", exact=True).press("Enter")
            await expect(panel.get_by_role("status")).to_contain_text(told)
        await window.page.close()


# ---------------------------------------------------------------- keyboard and narrow windows


async def test_tabs_and_escape_by_keyboard(stage: Stage, window: Window) -> None:
    page, opener = window.page, window.button("Settings", window.page.get_by_role("navigation", name="Panels"))
    await opener.focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("tab", name="Settings")).to_be_focused()
    for key, tab in (
        ("ArrowRight", "Analytics"),
        ("End", "Identity"),
        ("ArrowRight", "Settings"),
        ("ArrowLeft", "Identity"),
        ("Home", "Settings"),
    ):
        await page.keyboard.press(key)
        await expect(page.get_by_role("tab", name=tab)).to_be_focused()
        await expect(page.get_by_role("tabpanel", name=tab)).to_be_visible()
    name = page.get_by_role("tabpanel").get_by_role("textbox", name="Name")
    await name.fill("by Escape")
    await name.press("Escape")
    await expect(page.get_by_role("tabpanel")).to_have_count(0)
    await expect(opener).to_be_focused()
    # A field that is left so is saved like any other.
    form = await window.panel("Settings")
    await expect(form.get_by_text("Saved", exact=True)).to_be_visible()
    assert await (await stage.worker.settings()).get("name") == "by Escape"


async def test_in_a_narrow_window_the_panel_is_a_sheet_that_keeps_the_focus(stage: Stage, open_window: Open) -> None:
    window = await open_window(stage.url, viewport={"width": 320, "height": 640})
    page = window.page
    opener = window.button("Identity", page.get_by_role("navigation", name="Panels"))
    await opener.click()
    sheet = page.get_by_role("dialog", name="Panel")
    await expect(sheet).to_be_visible()
    for _ in range(30):
        await page.keyboard.press("Tab")
        assert await page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('.panel') !== null"
        )
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320
    assert await sheet.evaluate("sheet => sheet.scrollWidth") <= 320
    await window.shot("panel-narrow")
    await sheet.get_by_role("textbox", name="User").press("Escape")
    await expect(sheet).to_have_count(0)
    await expect(opener).to_be_focused()
    assert await page.locator("[inert]").count() == 0


async def _become(window: Window, **fields: str) -> Locator:
    panel = await window.panel("Identity")
    for label, value in fields.items():
        await panel.get_by_label(label, exact=True).fill(value)
    await window.button("Connect", panel).click()
    await expect(panel.get_by_role("status")).to_contain_text("You are")
    return panel
