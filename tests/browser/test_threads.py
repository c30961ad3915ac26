"""The list of threads: pages of fifty, search, names, and an end."""

from __future__ import annotations

import asyncio

from playwright.async_api import expect

from browser.stage import Stage
from browser.window import Window


async def test_more_threads_than_a_page_are_loaded_as_one_scrolls(stage: Stage, window: Window) -> None:
    for begin in range(0, 120, 20):
        await asyncio.gather(*(stage.dispatch("hi", thread_title=f"Thread {n:03}") for n in range(begin, begin + 20)))
    await window.page.reload()
    entries = window.threads.get_by_role("listitem")
    await expect(entries).to_have_count(50)
    more = window.button("Load more", window.threads)
    await more.click()
    await expect(entries).to_have_count(100)
    await entries.last.scroll_into_view_if_needed()
    await expect(entries).to_have_count(120)
    await expect(more).to_have_count(0)
    titles = await window.threads.locator(".title").all_text_contents()
    assert sorted(titles) == [f"Thread {n:03}" for n in range(120)]
    assert titles[0] >= "Thread 100", "the newest comes first"


async def test_threads_are_found_by_their_titles_also_those_that_were_not_loaded(stage: Stage, window: Window) -> None:
    await stage.dispatch("hi", thread_title="The Lighthouse of Évora")
    for _ in range(3):
        await asyncio.gather(*(stage.dispatch("hi", thread_title="Another 100% _thing_") for _ in range(20)))
    await window.page.reload()
    await expect(window.threads.get_by_role("listitem")).to_have_count(50)
    search = window.threads.get_by_role("searchbox", name="Search threads")
    await search.fill("lighthouse")
    await expect(window.threads.get_by_role("listitem")).to_have_count(1)
    await window.thread("The Lighthouse of Évora").click()
    await expect(window.log).to_contain_text("You said: hi")
    await search.fill("100% _")
    await expect(window.threads.get_by_role("listitem")).to_have_count(50)
    await search.fill("nothing is called this")
    await expect(window.threads).to_contain_text("nothing is called this")
    await expect(window.threads.get_by_role("listitem")).to_have_count(0)
    await search.fill("")
    await expect(window.threads.get_by_role("listitem")).not_to_have_count(0)


async def test_a_new_thread_begins_with_its_first_message(stage: Stage, window: Window) -> None:
    await window.say("first")
    await expect(window.log).to_contain_text("You said: first")
    await window.button("New thread").click()
    await expect(window.title).to_have_text("New conversation")
    await expect(window.log).not_to_contain_text("You said")
    await expect(window.box).to_be_focused()
    await window.say("second")
    await expect(window.log).to_contain_text("You said: second")
    await expect(window.threads.get_by_role("listitem")).to_have_count(2)
    await window.page.go_back()
    await expect(window.title).to_have_text("New conversation")
    await window.page.go_back()
    await expect(window.log).to_contain_text("You said: first")


async def test_a_name_may_be_given_and_taken_away_and_what_is_deleted_is_gone(stage: Stage, window: Window) -> None:
    await window.say("hello")
    await expect(window.log).to_contain_text("You said: hello")
    await window.act("Untitled conversation", "Rename")
    await window.dialog.get_by_role("textbox", name="Title").fill("Named")
    await window.page.keyboard.press("Enter")
    await expect(window.title).to_have_text("Named")
    await window.act("Named", "Rename")
    await window.dialog.get_by_role("textbox", name="Title").fill("Not this")
    await window.page.keyboard.press("Escape")
    await expect(window.dialog).to_have_count(0)
    await expect(window.title).to_have_text("Named")
    await window.act("Named", "Delete")
    await window.button("Cancel", window.dialog).click()
    await expect(window.thread("Named")).to_be_visible()
    await window.act("Named", "Delete")
    await window.button("Delete", window.dialog).click()
    await expect(window.thread("Named")).to_have_count(0)
    await expect(window.title).to_have_text("New conversation")
    assert (
        await (await stage.worker.repository()).list_threads({"organization_id": "local", "workspace_id": "local"})
    ) == []
