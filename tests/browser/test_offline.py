"""Away and back: the page says so, keeps what is written, sends it once, and shows what came meanwhile."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from signal import SIGKILL
from typing import Any

from attrs import define, field
from playwright.async_api import expect
from services.redis import free_port
from serving import dooers_run

from browser.conftest import Open
from browser.stage import Pieces, Stage

# What Chromium writes into the console about a connection that is not there.
GONE = ["WebSocket connection to", "Failed to load resource"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


@define(eq=False)
class Cable:
    """TCP to a server, until it is cut; and again once it is mended. `deaf`: it takes what is sent, and nothing comes through."""

    target: int
    port: int = 0
    whole: bool = True
    _ends: set[asyncio.StreamWriter] = field(factory=set)

    async def plug(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.whole:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._ends |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer), return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    def cut(self) -> None:
        self.whole = False
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    def mend(self) -> None:
        self.whole = True


@asynccontextmanager
async def cable(url: str) -> AsyncIterator[tuple[Cable, str]]:
    made = Cable(int(url.rstrip("/").rpartition(":")[2]))
    server = await asyncio.start_server(made.plug, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made, f"http://127.0.0.1:{made.port}/"
    finally:
        server.close()
        made.cut()


async def test_what_came_meanwhile_is_there_and_what_was_written_is_sent_once(stage: Stage, open_window: Open) -> None:
    heard: list[str] = []

    async def count(incoming: Any, send: Any, **_: Any) -> AsyncIterator[Any]:
        heard.append(incoming.message)
        yield send.text(f"You said: {incoming.message}")

    stage.script = count
    async with cable(stage.url) as (line, url):
        window = await open_window(url)
        window.expected += GONE
        await window.say("before")
        await expect(window.log).to_contain_text("You said: before")
        thread_id = window.page.url.partition("#/")[2]

        line.cut()
        await expect(window.connection).to_contain_text("Offline")
        await window.say("written meanwhile")
        await expect(window.log).to_contain_text("Waits for the connection")
        await stage.dispatch("said elsewhere", thread_id=thread_id)
        await window.shot("offline")
        assert heard == ["before", "said elsewhere"]

        line.mend()
        await expect(window.connection).to_have_text("Connected")
        await expect(window.log).to_contain_text("You said: said elsewhere")
        await expect(window.log).to_contain_text("You said: written meanwhile")
        await expect(window.log).not_to_contain_text("Waits for the connection")
        assert heard == ["before", "said elsewhere", "written meanwhile"]
        await expect(window.log.get_by_role("article", name="Guide")).to_have_count(3)


async def test_a_message_whose_answer_was_lost_is_not_said_twice(stage: Stage, open_window: Open) -> None:
    pieces = Pieces()
    stage.script = pieces.script()
    async with cable(stage.url) as (line, url):
        window = await open_window(url)
        window.expected += GONE
        await window.say("only once")
        await pieces.write("an answer ")
        await expect(window.log).to_contain_text("an answer")
        line.cut()
        await expect(window.connection).to_contain_text("Offline")
        await pieces.write("that goes on ")
        line.mend()
        await expect(window.log).to_contain_text("an answer that goes on")
        await pieces.write("and ends")
        pieces.end()
        await expect(window.log).to_contain_text("an answer that goes on and ends")
        await expect(window.log.get_by_role("article", name="You")).to_have_count(1)
        await expect(window.log.get_by_role("article", name="Guide")).to_have_count(1)
        await expect(window.stop).to_be_hidden()


async def test_what_was_not_sent_survives_a_reload(stage: Stage, open_window: Open) -> None:
    async with cable(stage.url) as (line, url):
        window = await open_window(url)
        window.expected += GONE
        await window.say("before")
        await expect(window.log).to_contain_text("You said: before")
        await window.box.fill("half a thought")
        await window.page.reload()
        await expect(window.box).to_have_value("half a thought")
        line.cut()
        await expect(window.connection).to_contain_text("Offline")
        await window.say("to be kept")
        await expect(window.log).to_contain_text("to be kept")
        line.mend()
        await window.page.reload()
        await expect(window.log).to_contain_text("You said: to be kept")
        await expect(window.log.get_by_role("article", name="You")).to_have_count(2)


async def test_a_server_that_is_killed_and_started_again(tmp_path: Path, open_window: Open) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "examples")
    port = str(free_port())
    options = ("examples.quickstart:worker", tmp_path, "--port", port)
    with dooers_run(*options) as first:
        window = await open_window(f"{first.http}/")
        window.expected += GONE
        await window.say("one two three")
        await expect(window.log).to_contain_text("You said: one two three")
        await expect(window.stop).to_be_hidden()
        first.process.send_signal(SIGKILL)
        await expect(window.connection).to_contain_text("Offline")
        await window.say("are you back?")
    with dooers_run(*options):
        await (
            window.page.get_by_role("button", name="Try now")
            .or_(window.log.get_by_text("You said: are you back?"))
            .first.click()
        )
        await expect(window.connection).to_have_text("Connected")
        await expect(window.log).to_contain_text("You said: are you back?")
        await expect(window.log.get_by_role("article", name="You")).to_have_count(2)
        await window.page.close()
