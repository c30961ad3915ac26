"""The Python of README.md and of the pages in docs/ runs. (docs/classic-api.md has a test of its own: it is full of fragments; so has
docs/testing.md, which is files for pytest.)

The rule for whoever writes a page:

- A ```python block that makes a `WorkerServer` begins a program, in an empty namespace and an empty directory. Every other block
  goes on with the program before it, as if both were pasted into one file. `await` may stand at the top.
- Functions named `test_...` are called when their block has run, as pytest would.
- At the end of a program that has a `worker`, somebody says something to each of its handlers, and no turn may fail; where the
  worker has an authenticate hook, a stranger must be refused instead.
- At the end of a program that has an `app`, it is served, and spoken to over HTTP and a real WebSocket.
- Model vendors are fakes (`fakes.py`); there is no other network. What cannot run like this is fenced as something else
  (```text, ```sh, ```json).
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fakes import chat, serving, vendors
from snippets import ROOT, Block, blocks, run

from dooers import UnauthenticatedError, WorkerServer
from dooers.testing import WorkerClient, assert_succeeded

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
OF_THEIR_OWN = ["docs/classic-api.md", "docs/testing.md"]
PAGES = [page for page in PAGES if page not in OF_THEIR_OWN]
WHO: dict[str, Any] = {"worker_id": "worker", "organization_id": "org-1", "workspace_id": "ws-1", "user_id": "reader"}


def programs(page: str) -> list[list[Block]]:
    """The Python blocks of a page, by program."""
    found: list[list[Block]] = []
    for block in blocks(page):
        if block.language in ("python", "py"):
            if not found or "WorkerServer(" in block.text:
                found.append([])
            found[-1].append(block)
    return found


PROGRAMS = [program for page in PAGES for program in programs(page)]


# Where aiohttp is installed (the cosmos extra brings it), google-genai uses it, in a way that aiohttp warns of.
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
@pytest.mark.parametrize("program", [pytest.param(program, id=program[0].place) for program in PROGRAMS])
async def test_the_program_runs_and_its_worker_answers(
    program: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A real module, so that a program may say `from __future__ import annotations`.
    module = ModuleType("program")
    monkeypatch.setitem(sys.modules, "program", module)
    names: dict[str, Any] = module.__dict__
    async with vendors(monkeypatch):
        try:
            for block in program:
                before = dict(names)
                await run(block.text, names, block.place)
                for name, value in list(names.items()):
                    if name.startswith("test_") and before.get(name) is not value:
                        result = value()
                        if inspect.isawaitable(result):
                            await result
            if isinstance(names.get("worker"), WorkerServer):
                await speak(names["worker"])
                await names["worker"].close()
            if "app" in names:
                await visit(names["app"], "\n".join(block.text for block in program))
        finally:
            for value in list(names.values()):
                if isinstance(value, WorkerServer):
                    await value.close()


async def speak(worker: WorkerServer) -> None:
    for name in list(worker._handlers):
        try:
            async with WorkerClient(worker, handler=name, **WHO) as client:
                reply = await client.say("Hello?")
        except UnauthenticatedError:
            assert worker._authenticate is not None
            continue
        assert worker._authenticate is None, "the hook let a stranger in"
        assert_succeeded(reply)
        assert reply.texts != []


async def visit(app: Any, text: str) -> None:
    mounted = re.search(r'(?:[Mm]ount|@asgi)\("(/.+?)"', text)
    prefix = mounted[1] if mounted else ""
    async with serving(app) as address:
        async with httpx.AsyncClient(trust_env=False) as http:
            for path in ("/health", "/ready"):
                response = await http.get(f"http://{address}{prefix}{path}")
                assert (response.status_code, response.json()) == (200, {"status": "ok"})
        async with chat(f"ws://{address}{prefix}/ws", **WHO) as browser:
            event = {"type": "message", "actor": "user", "content": [{"type": "text", "text": "Hello?"}]}
            await browser.send("event.create", event=event)
            await browser.until("ack", ack_id="event.create", ok=True)


def test_the_pages_have_programs() -> None:
    assert {block.page for program in PROGRAMS for block in program} >= {"README.md", "docs/decorator-api.md"}


@pytest.mark.parametrize("page", [*OF_THEIR_OWN, *PAGES])
def test_every_code_block_says_its_language_or_is_a_drawing(page: str) -> None:
    # A program that is fenced without a language would go untested.
    for block in blocks(page):
        assert block.language or not re.search(r"(?m)^(from|import|async def|def|@\w+) ", block.text), block.place
