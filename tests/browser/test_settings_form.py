"""The settings form: every kind of field, faults beside their field, and values that reach the handler."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, expect

from browser.conftest import Open
from browser.stage import Stage, staged
from browser.window import Window
from dooers import WorkerEvent
from dooers.schema import (
    SettingsField,
    SettingsFieldGroup,
    SettingsFieldType,
    SettingsSchema,
    SettingsSelectOption,
)

Kind = SettingsFieldType
SCHEMA = SettingsSchema(
    [
        SettingsField(
            "name", Kind.TEXT, "Name", required=True, value="Ana", max_length=10, help="What you are called."
        ),
        SettingsField("bio", Kind.TEXTAREA, "About", rows=5, placeholder="A few words"),
        SettingsField("mail", Kind.EMAIL, "Mail"),
        SettingsField("key", Kind.PASSWORD, "Key"),
        SettingsField("on", Kind.CHECKBOX, "Switched on", value=True),
        SettingsField("logo", Kind.IMAGE, "Logo", src="https://pictures.example/logo.png"),
        SettingsField("fixed", Kind.TEXT, "Version", value="1.0", readonly=True),
        SettingsField("secret", Kind.TEXT, "Inner thing", value="internal", is_internal=True),
        SettingsFieldGroup(
            "more",
            "More of it",
            [
                SettingsField("count", Kind.NUMBER, "Count", value=3, min=1, max=9, step=1, integer=True),
                SettingsField("day", Kind.DATE, "Day", value="2024-05-01"),
                SettingsField(
                    "size",
                    Kind.SELECT,
                    "Size",
                    value="s",
                    options=[
                        SettingsSelectOption("s", "Small"),
                        SettingsSelectOption(2, "Two"),
                        SettingsSelectOption(True, "Yes"),
                    ],
                ),
            ],
            collapsible="open",
        ),
        SettingsFieldGroup("folded", "Folded", [SettingsField("deep", Kind.TEXT, "Deep")], collapsible="closed"),
    ]
)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async def tell(send: Any, settings: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        values = await settings.get_all(exclude=["logo", "secret"])
        yield send.text("\n\n".join(f"{name} is {value!r}" for name, value in values.items()))

    async with staged(tmp_path / "worker.db", settings_schema=SCHEMA) as stage:
        stage.script = tell
        yield stage


@pytest.fixture
async def form(window: Window) -> Locator:
    return await window.panel("Settings")


def field(form: Locator, label: str) -> Locator:
    """Its input; the star of a required one is for the eye only."""
    return form.locator("input, textarea, select").and_(form.get_by_label(re.compile(rf"^{label}( \*)?$")))


async def leave(field: Locator, text: str) -> None:
    await field.fill(text)
    await field.blur()


async def test_what_is_set_in_every_kind_of_field_is_what_the_handler_sees(window: Window, form: Locator) -> None:
    await leave(field(form, "Name"), "Béa")
    await leave(field(form, "About"), "two\nlines")
    await leave(field(form, "Mail"), "bea@example.com")
    await leave(field(form, "Key"), "hunter2")
    await field(form, "Switched on").uncheck()
    await leave(field(form, "Count"), "7")
    await leave(field(form, "Day"), "2025-12-31")
    await field(form, "Size").select_option(label="Two")
    await form.get_by_text("Folded").click()
    await leave(field(form, "Deep"), "under")
    await expect(form.get_by_text("Saved", exact=True)).to_have_count(9)
    await window.say("What is set?")
    for told in (
        "name is 'Béa'",
        "bio is 'two\\nlines'",
        "mail is 'bea@example.com'",
        "key is 'hunter2'",
        "on is False",
    ):
        await expect(window.log).to_contain_text(told)
    for told in ("count is 7", "day is '2025-12-31'", "size is 2", "deep is 'under'"):
        await expect(window.log).to_contain_text(told)
    await window.shot("settings")

    await window.page.reload()
    form = await window.panel("Settings")
    await expect(field(form, "Name")).to_have_value("Béa")
    await expect(field(form, "Size").locator("option:checked")).to_have_text("Two")
    await expect(field(form, "Key")).to_have_value("")
    assert "hunter2" not in await form.inner_html()


async def test_a_fault_is_told_beside_its_field_and_goes_when_it_is_mended(window: Window, form: Locator) -> None:
    for label, bad, told, good in (
        ("Count", "12", "at most 9", "9"),
        ("Name", "far too long a name", "at most 10 characters", "short"),
        ("Name", "", "required", "Ana"),
        ("Mail", "no address", "expected", "a@b.example"),
    ):
        box = field(form, label)
        await leave(box, bad)
        alert = form.get_by_role("alert").filter(has_text=told)
        await expect(alert).to_be_visible()
        assert await alert.get_attribute("id") in (await box.get_attribute("aria-describedby") or "").split()
        await expect(box).to_have_attribute("aria-invalid", "true")
        await window.shot(f"settings-fault-{label.lower()}")
        await leave(box, good)
        await expect(alert).to_have_count(0)
        await expect(box).not_to_have_attribute("aria-invalid", "true")


async def test_what_is_not_for_people_is_not_there_and_what_is_fixed_stays(window: Window, form: Locator) -> None:
    await expect(form).not_to_contain_text("Inner thing")
    await expect(field(form, "Version")).not_to_be_editable()
    await expect(field(form, "Deep")).to_be_hidden()
    # A picture of another host is asked for when somebody wants it.
    await expect(form.get_by_role("img", name="Logo")).to_have_count(0)
    assert window.faults == []


async def test_the_handler_may_change_them_too(stage: Stage, window: Window, form: Locator) -> None:
    settings = await stage.worker.settings()
    await settings.patch("name", "Changed")
    await expect(field(form, "Name")).to_have_value("Changed")


async def test_who_may_not_is_told_so(tmp_path: Path, open_window: Open) -> None:
    async with staged(tmp_path / "locked.db", settings_schema=SCHEMA, permissions={"settings.patch": "admin"}) as stage:
        window = await open_window(stage.url)
        form = await window.panel("Settings")
        await leave(field(form, "Name"), "Mallory")
        await expect(form.get_by_role("alert").filter(has_not_text="^$").first).to_be_visible()
        assert await (await stage.worker.settings()).get("name") == "Ana"
        await window.page.close()
