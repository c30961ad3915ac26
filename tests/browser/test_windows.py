"""Two windows of two people in one workspace: what one does, the other sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.async_api import expect

from browser.conftest import Open
from browser.stage import WHO, Pieces, Stage, staged
from dooers.schema import SettingsField, SettingsFieldType, SettingsSchema

SCHEMA = SettingsSchema([SettingsField("name", SettingsFieldType.TEXT, "Name", value="nobody")])
ANA, BOB = ({**WHO, "user_id": name, "user_name": name.title()} for name in ("ana", "bob"))


async def test_messages_titles_and_deletion_are_live_in_both(stage: Stage, open_window: Open) -> None:
    ana, bob = await open_window(stage.url, identity=ANA), await open_window(stage.url, identity=BOB)
    pieces = Pieces()
    stage.script = pieces.script()
    await ana.say("Hello from Ana")
    await expect(ana.log).to_contain_text("Hello from Ana")
    await bob.thread("Untitled conversation").click()
    await expect(bob.log.get_by_role("article", name="Ana")).to_contain_text("Hello from Ana")
    await pieces.write("for both ")
    for window in (ana, bob):
        await expect(window.log).to_contain_text("for both")
        await expect(window.stop).to_be_visible()
    await pieces.write("of you")
    pieces.end()
    for window in (ana, bob):
        await expect(window.log).to_contain_text("for both of you")
        await expect(window.stop).to_be_hidden()

    await bob.act("Untitled conversation", "Rename")
    await bob.dialog.get_by_role("textbox", name="Title").fill("What we talked about")
    await bob.button("Rename", bob.dialog).click()
    for window in (ana, bob):
        await expect(window.title).to_have_text("What we talked about")
        await expect(window.thread("What we talked about")).to_be_visible()

    second = Pieces()
    stage.script = second.script()
    await bob.say("Stop this, Ana")
    await second.write("never ending")
    await expect(ana.log).to_contain_text("never ending")
    await ana.stop.click()
    await expect(bob.stop).to_be_hidden()
    await expect(bob.log).to_contain_text("Stopped")

    await ana.act("What we talked about", "Delete")
    await ana.button("Delete", ana.dialog).click()
    for window in (ana, bob):
        await expect(window.title).to_have_text("New conversation")
        await expect(window.thread("What we talked about")).to_have_count(0)


async def test_a_setting_that_one_changes_changes_in_the_other(tmp_path: Path, open_window: Open) -> None:
    async with staged(tmp_path / "worker.db", settings_schema=SCHEMA) as stage:
        one, other = await open_window(stage.url, identity=ANA), await open_window(stage.url, identity=BOB)
        forms = [await window.panel("Settings") for window in (one, other)]
        inputs = [form.get_by_role("textbox", name="Name") for form in forms]
        await inputs[0].fill("somebody")
        await inputs[0].press("Tab")
        await expect(inputs[1]).to_have_value("somebody")

        # What is being typed is not taken out of one's hands.
        await inputs[1].fill("half a na")
        await inputs[0].fill("somebody else")
        await inputs[0].press("Tab")
        await expect(forms[1]).to_contain_text("Changed elsewhere to somebody else")
        await expect(inputs[1]).to_have_value("half a na")
        await other.button("Take that", forms[1]).click()
        await expect(inputs[1]).to_have_value("somebody else")
        await one.page.close()
        await other.page.close()


async def test_what_another_door_brings_in_is_seen(stage: Stage, open_window: Open) -> None:
    window = await open_window(stage.url)
    thread = await stage.dispatch("from a webhook", thread_title="Delivered")
    await window.thread("Delivered").click()
    await expect(window.log).to_contain_text("You said: from a webhook")
    await stage.dispatch("and one more", thread_id=thread)
    await expect(window.log).to_contain_text("You said: and one more")
    answered: Any = window.log.get_by_role("article", name="Guide")
    await expect(answered).to_have_count(2)
