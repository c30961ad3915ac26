"""A conversation: it is answered while one watches, it can be stopped, and a reload finds it where it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import expect

from browser.stage import Pieces, Stage
from browser.window import Window
from dooers import WorkerEvent

PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


async def test_the_first_message_is_answered_while_one_watches(stage: Stage, window: Window) -> None:
    pieces = Pieces()
    stage.script = pieces.script()
    await expect(window.page).to_have_title("Guide · playground")
    await window.say("Hello there")
    await expect(window.log).to_contain_text("Hello there")
    await expect(window.stop).to_be_visible()
    await expect(window.box).to_have_value("")

    await pieces.write("All good ")
    await expect(window.log).to_contain_text("All good")
    await pieces.write("things **take")
    await expect(window.log).to_contain_text("All good things")
    await pieces.write(" time**.\n\n1. One\n2. Two\n")
    await expect(window.log).to_contain_text("All good things take time.")
    await window.shot("growing")
    pieces.end()
    await expect(window.stop).to_be_hidden()
    await expect(window.log.get_by_role("strong")).to_have_text("take time")
    await expect(window.log.get_by_role("listitem")).to_have_text(["One", "Two"])
    await expect(window.button("Copy")).to_be_visible()
    await expect(window.thread("Untitled conversation")).to_be_visible()


async def test_stop_ends_the_answer_and_keeps_what_there_is(stage: Stage, window: Window) -> None:
    pieces = Pieces()
    stage.script = pieces.script()
    await window.say("Tell me everything")
    await pieces.write("In the beginning")
    await expect(window.log).to_contain_text("In the beginning")
    await window.stop.click()
    await expect(window.stop).to_be_hidden()
    await expect(window.log).to_contain_text("Stopped")
    await expect(window.log).to_contain_text("In the beginning")
    thread_id = window.page.url.partition("#/")[2]
    [answer] = await (await stage.worker.repository()).list_events({"thread_id": thread_id, "actor": "assistant"})
    assert (answer.text, answer.data) == ("In the beginning", {"incomplete": True})
    await window.shot("stopped")


async def test_a_reload_in_mid_stream_sees_it_go_on_to_its_whole_text(stage: Stage, window: Window) -> None:
    pieces = Pieces()
    stage.script = pieces.script()
    await window.say("Count")
    await pieces.write("one ", "two ")
    await expect(window.log).to_contain_text("one two")
    await window.page.reload()
    await expect(window.log).to_contain_text("one two")
    await expect(window.stop).to_be_visible()
    await pieces.write("three ")
    await expect(window.log).to_contain_text("one two three")
    await window.page.reload(wait_until="commit")
    await pieces.write("four ", "five")
    pieces.end()
    await expect(window.log).to_contain_text("one two three four five")
    await expect(window.stop).to_be_hidden()
    await expect(window.log.get_by_role("article", name="Guide")).to_have_count(1)


async def test_what_is_said_meanwhile_waits_its_turn(stage: Stage, window: Window) -> None:
    pieces = Pieces()
    stage.script = pieces.script()
    await window.say("First")
    await pieces.write("slowly")
    await expect(window.log).to_contain_text("slowly")
    await window.say("Second")
    await expect(window.log).to_contain_text("1 more message waits")
    stage.script = _say("and that was the second")
    pieces.end()
    await expect(window.log).to_contain_text("and that was the second")
    await expect(window.stop).to_be_hidden()
    await expect(window.log.get_by_role("article", name="You")).to_have_count(2)


async def test_tools_are_cards_that_unfold(stage: Stage, window: Window) -> None:
    async def tools(send: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        yield send.tool_call("get_weather", {"city": "Lisbon"}, id="t-1")
        yield send.tool_result("get_weather", {"high": 27}, id="t-1")
        yield send.tool_transaction("remember", {"place": "Lisbon"}, {"ok": True}, display_name="Remember it")
        yield send.tool_call("never_answered", {"a": 1})

    stage.script = tools
    await window.say("Weather?")
    cards = window.log.locator("details")
    await expect(cards).to_have_count(3)
    await expect(cards.nth(0).locator("summary")).to_contain_text("get_weather")
    await expect(cards.nth(0).get_by_text('"high": 27')).to_be_hidden()
    await cards.nth(0).locator("summary").click()
    await expect(cards.nth(0)).to_contain_text('"city": "Lisbon"')
    await expect(cards.nth(0)).to_contain_text('"high": 27')
    await expect(cards.nth(1).locator("summary")).to_contain_text("Remember it")
    await cards.nth(1).locator("summary").press("Enter")
    await expect(cards.nth(1)).to_contain_text('"place": "Lisbon"')
    await expect(cards.nth(2).locator("summary")).to_contain_text("never_answered")
    await expect(window.stop).to_be_hidden()
    await window.shot("tools")


async def test_images_and_documents_are_shown_and_nothing_is_fetched_unasked(stage: Stage, window: Window) -> None:
    async def parts(send: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        yield send.image(PNG, alt="A dot")
        yield send.image("https://pictures.example/cat.png", alt="A cat")
        yield send.document("data:text/csv;base64,YSxiCjEsMgo=", "table.csv", "text/csv")
        yield send.document("https://files.example/report.pdf", "report.pdf", "application/pdf")

    stage.script = parts
    await window.say("Show me")
    await expect(window.log.get_by_role("img", name="A dot")).to_be_visible()
    await expect(window.log.get_by_role("img", name="A cat")).to_have_count(0)
    link = window.log.get_by_role("link", name="Open report.pdf")
    await expect(link).to_have_attribute("rel", "noopener noreferrer")
    await expect(link).to_have_attribute("target", "_blank")
    assert window.faults == []

    window.expected += ["download: table.csv", "request: https://pictures.example/cat.png", "Failed to load resource"]
    async with window.page.expect_download() as download:
        await window.log.get_by_role("button", name="Download table.csv").click()
    assert (await (await download.value).path()).read_bytes() == b"a,b\n1,2\n"
    async with window.page.expect_request("https://pictures.example/cat.png") as asked:
        await window.log.get_by_role("button", name="Load image from pictures.example").click()
    assert "referer" not in await (await asked.value).all_headers()


async def test_a_failure_is_told_and_retry_says_it_again(stage: Stage, window: Window) -> None:
    async def fail(send: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        yield send.text("so far so good")
        raise RuntimeError("a secret of the handler's")

    stage.script = fail
    await window.say("Try this")
    notice = window.log.get_by_role("article", name="Error")
    await expect(notice).to_be_visible()
    await expect(window.log).not_to_contain_text("a secret")
    stage.script = _say("this time it works")
    await window.shot("failed")
    await notice.get_by_role("button", name="Retry").click()
    await expect(window.log).to_contain_text("this time it works")
    await expect(window.log.get_by_role("article", name="You").filter(has_text="Try this")).to_have_count(2)


async def test_likes_and_dislikes_arrive_with_their_reason(stage: Stage, window: Window) -> None:
    await window.say("Good?")
    await expect(window.log).to_contain_text("You said: Good?")
    analytics = await window.panel("Analytics")
    await window.button("Like").click()
    await window.dialog.get_by_role("textbox", name="Reason").fill("to the point")
    await window.shot("feedback")
    await window.button("Send feedback", window.dialog).click()
    await expect(window.dialog).to_have_count(0)
    await expect(window.button("Like")).to_have_attribute("aria-pressed", "true")
    liked = analytics.locator("details").filter(has_text="feedback.like")
    await liked.locator("summary").click()
    await expect(liked).to_contain_text("to the point")

    await window.button("Dislike").click()
    await window.button("Send feedback", window.dialog).click()
    await expect(analytics.locator("details").filter(has_text="feedback.dislike")).to_have_count(1)
    await expect(window.button("Like")).to_have_attribute("aria-pressed", "false")


async def test_an_answer_is_copied_as_it_was_written(stage: Stage, window: Window) -> None:
    stage.script = _say("some **strong** `text`")
    await window.say("Hello")
    await window.button("Copy").click()
    await expect(window.page.get_by_text("Copied", exact=True)).to_be_visible()


async def test_the_inspector_shows_what_went_over_the_wire(stage: Stage, window: Window) -> None:
    frames = await window.panel("Frames")
    await window.say("find me")
    await expect(window.log).to_contain_text("You said: find me")
    await frames.get_by_role("searchbox", name="Filter frames").fill("event.create")
    await expect(frames.locator("details")).to_have_count(1)
    await frames.locator("details summary").click()
    await expect(frames.locator("details")).to_contain_text('"find me"')
    await window.shot("frames")


def _say(text: str) -> Any:
    async def script(send: Any, **_: Any) -> AsyncIterator[WorkerEvent]:
        yield send.text(text)

    return script
