"""The Python in docstrings, which the reference shows: it is Python, and where `SETUPS` says how, it is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from fakes import serving, vendors
from snippets import ROOT, run

from dooers import WorkerConfig, WorkerServer
from dooers.testing import WorkerClient, assert_succeeded

# What stands before the block, in the handler or program that it is a part of.
SETUPS = {
    "dooers.client": "from dooers.client import Client, Delta",
    "dooers.testing": "from dooers.testing import WorkerClient, assert_events",
    "dooers_contrib.anthropic": """
from anthropic import AsyncAnthropic
from dooers_contrib import anthropic
messages = await memory.get_history(format="anthropic")
async with AsyncAnthropic() as client:
""",
    "dooers_contrib.google": """
from google import genai
from dooers_contrib import google
contents = await memory.get_history(format="google")
client = genai.Client()
async with client.aio:
""",
    "dooers_contrib.jwt": "from dooers_contrib.jwt import JwtAuthenticator",
    "dooers_contrib.openai": """
from openai import AsyncOpenAI
from dooers_contrib import openai
messages = await memory.get_history(format="openai")
async with AsyncOpenAI() as client:
""",
}


def found() -> dict[str, list[str]]:
    """The blocks of Python in docstrings, by module."""
    blocks: dict[str, list[str]] = {}
    for folder in ("dooers", "contrib/dooers_contrib"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node) or ""
                    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("contrib.")
                    for block in re.findall(r"(?ms)^```python\n(.+?)^```", text):
                        blocks.setdefault(name.removesuffix(".__init__"), []).append(block)
    return blocks


BLOCKS = found()


def handler(setup: str, block: str) -> str:
    """A handler with a block inside, and within what its setup opens."""
    depth = "        " if setup.rstrip().endswith(":") else "    "
    return f"async def agent(send, memory):\n{indent(setup, '    ')}\n{indent(block, depth)}"


@pytest.mark.parametrize("name", BLOCKS)
def test_it_is_python(name: str) -> None:
    for block in BLOCKS[name]:
        if re.search(r"\b(yield|return)\b", block):
            block = handler("", block)
        compile(block, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_every_setup_has_its_block() -> None:
    assert set(SETUPS) - set(BLOCKS) == set()


# Where aiohttp is installed (the cosmos extra brings it), google-genai uses it, in a way that aiohttp warns of.
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
@pytest.mark.parametrize("name", SETUPS)
async def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "worker.db")))
    names: dict[str, Any] = {"worker": worker}
    program = "\n".join(BLOCKS[name])
    async with vendors(monkeypatch), serving(worker.asgi_app()) as address:
        if "yield" in program:
            await run(handler(SETUPS[name], program), names, name)
            worker.handler(names["agent"])
            async with WorkerClient(worker, user_id="ana") as client:
                reply = await client.say("hello")
                assert_succeeded(reply)
                assert reply.texts != []
        else:

            @worker.handler
            async def agent(send: Any) -> Any:
                yield send.text("hello")

            program = program.replace("127.0.0.1:8000", address)
            await run(f"{SETUPS[name]}\n{program}", names, name)
        await worker.close()
