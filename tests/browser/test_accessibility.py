"""axe-core finds nothing serious: in every panel, light and dark, wide and narrow. And the pictures for people to look at."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect
from services import npm

from browser.conftest import Open
from browser.stage import Stage, staged
from browser.test_settings_form import SCHEMA
from browser.window import WIDE, Window

NARROW = {"width": 390, "height": 844}
ANSWER = """# A heading

Text with **strength**, `code` and [a link](https://example.com).

| a | b |
|---|---|
| 1 | 2 |

```python
print("hello")
```

> quoted

1. one
2. two
"""


@pytest.fixture(scope="module")
def axe() -> str:
    npm.install("axe-core")
    return (npm.MODULES / "axe-core" / "axe.min.js").read_text()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path / "worker.db", settings_schema=SCHEMA, assistant_name="Guide") as made:
        yield made


async def everything(send: Any, analytics: Any, **_: Any) -> AsyncIterator[Any]:
    await analytics.track("looked.at", {"all": True})
    yield send.tool_call("get_weather", {"city": "Lisbon"}, id="t-1")
    yield send.tool_result("get_weather", {"high": 27, "sky": None}, id="t-1")
    yield send.image("https://pictures.example/cat.png", alt="A cat")
    yield send.document("https://files.example/report.pdf", "report.pdf", "application/pdf")
    yield send.text(ANSWER)
    yield send.update_thread(title="A look at everything")


async def faults(window: Window, axe: str) -> list[str]:
    """What axe finds that is serious or worse. `evaluate` is not subject to the page's policy."""
    await window.page.evaluate(axe)
    found = await window.page.evaluate(
        "async () => JSON.stringify((await axe.run(document, {resultTypes: ['violations']})).violations)"
    )
    return [
        f"{violation['id']} ({violation['impact']}): {violation['help']}: {[node['html'][:200] for node in violation['nodes'][:4]]}"
        for violation in json.loads(found)
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_serious_is_found_anywhere(
    stage: Stage, open_window: Open, axe: str, size: Any, scheme: str
) -> None:
    narrow = size is NARROW
    name = f"{scheme}-{'narrow' if narrow else 'wide'}"
    window = await open_window(stage.url, viewport=size, color_scheme=scheme)
    found: dict[str, list[str]] = {}

    async def look(at: str) -> None:
        await window.shot(f"{name}-{at}")
        if told := await faults(window, axe):
            found[at] = told

    await look("empty")
    stage.script = everything
    await window.say("Show me everything")
    await expect(window.title).to_have_text("A look at everything")
    await expect(window.stop).to_be_hidden()
    await look("answered")
    await window.log.locator("summary").first.click()
    await window.log.locator("details[open]").scroll_into_view_if_needed()
    await look("tool")
    await window.button("Dislike").last.click()
    await expect(window.dialog).to_be_visible()
    await look("dialog")
    await window.page.keyboard.press("Escape")
    stage.script = _fails
    await window.say("Now fail")
    await expect(window.log.get_by_role("article", name="Error")).to_be_visible()
    await look("failed")

    if narrow:
        await window.page.get_by_role("main").get_by_role("button", name="Threads", exact=True).click()
        await expect(window.thread("A look at everything")).to_be_visible()
        await look("drawer")
        await window.thread("A look at everything").click()
    for tab in ("Settings", "Analytics", "Frames", "Identity"):
        panel = await window.panel(tab)
        if tab == "Settings":
            count = panel.get_by_role("spinbutton")
            await count.fill("99")
            await count.blur()
            await expect(panel.get_by_role("alert").filter(has_text="at most 9")).to_be_visible()
        if tab in ("Analytics", "Frames"):
            await panel.locator("summary").nth(1).click()
        await look(tab.lower())
    # Nothing is wider than the window.
    assert await window.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert found == {}


async def _fails(send: Any, **_: Any) -> AsyncIterator[Any]:
    yield send.text("So far so good.")
    raise RuntimeError
