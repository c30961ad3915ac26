"""Who one is: another identity sees other threads, and a worker with a hook is not talked round."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import expect

from browser.conftest import Open
from browser.stage import Stage, staged
from browser.window import Window
from dooers import AuthRequest, Identity, WorkerServer


async def become(window: Window, **fields: str) -> None:
    form = await window.panel("Identity")
    for label, value in fields.items():
        await (
            form.get_by_role("textbox", name=label, exact=True)
            .or_(form.get_by_label(label, exact=True))
            .first.fill(value)
        )
    await form.get_by_role("button", name="Connect", exact=True).click()


async def test_another_organization_sees_nothing_of_it(stage: Stage, window: Window) -> None:
    await stage.dispatch("a secret of ours", thread_title="Ours")
    await window.thread("Ours").click()
    await expect(window.log).to_contain_text("a secret of ours")
    address = window.page.url
    await become(window, Organization="theirs")
    await expect(window.connection).to_have_text("Connected")
    await expect(window.thread("Ours")).to_have_count(0)
    await expect(window.page.get_by_text("a secret of ours")).to_have_count(0)
    await window.shot("identity")
    # Not by its address either, nor by what comes meanwhile.
    await window.page.goto(address)
    await stage.dispatch("more of it", thread_title="Also ours")
    await stage.dispatch("hello", organization_id="theirs", thread_title="Theirs")
    await expect(window.thread("Theirs")).to_be_visible()
    await expect(window.thread("Also ours")).to_have_count(0)
    await expect(window.page.get_by_text("secret")).to_have_count(0)

    await become(window, Organization="local")
    await expect(window.thread("Also ours")).to_be_visible()
    await expect(window.thread("Theirs")).to_have_count(0)


async def test_private_threads_are_their_users_alone(tmp_path: Path, open_window: Open) -> None:
    async with staged(tmp_path / "private.db", private_threads=True) as stage:
        window = await open_window(stage.url)
        await window.say("mine")
        await expect(window.log).to_contain_text("You said: mine")
        await become(window, User="somebody-else")
        await expect(window.connection).to_have_text("Connected")
        await expect(window.page.get_by_text("You said: mine")).to_have_count(0)
        await expect(window.thread("Untitled conversation")).to_have_count(0)
        await window.page.close()


async def test_a_worker_with_a_hook_believes_the_token_and_nothing_else(tmp_path: Path, open_window: Open) -> None:
    def hook(worker: WorkerServer) -> None:
        async def authenticate(request: AuthRequest) -> Identity | None:
            if request.auth_token != "t0ken":
                return None
            return Identity(organization_id="real", workspace_id="main", user_id="alice")

        worker.authenticate(authenticate)

    async with staged(tmp_path / "hooked.db", hook) as stage:
        await stage.dispatch("theirs", organization_id="local", thread_title="Of the claimed")
        await stage.dispatch("real", organization_id="real", workspace_id="main", thread_title="Of the real")
        window = await open_window(stage.url, connects=False)
        await expect(window.page.get_by_role("alert")).to_contain_text("does not let you in")
        await expect(window.threads.get_by_role("listitem")).to_have_count(0)
        await window.shot("refused")
        await become(window, Token="wrong")
        await expect(window.connection).to_have_text("Not let in")
        await become(window, Token="t0ken")
        await expect(window.connection).to_have_text("Connected")
        await expect(window.thread("Of the real")).to_be_visible()
        await expect(window.thread("Of the claimed")).to_have_count(0)
        # The token is nowhere to be read, and gone with the tab.
        frames = await window.panel("Frames")
        await frames.get_by_role("searchbox", name="Filter frames").fill("connect")
        await frames.locator("details summary").last.click()
        await expect(frames).not_to_contain_text("t0ken")
        assert "t0ken" not in await window.page.evaluate("JSON.stringify(localStorage)")
        await window.page.close()
