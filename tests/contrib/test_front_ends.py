"""docs/front-ends.md says what becomes of each thing that a handler yields: every row of its table is run at every door."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any, get_args

import httpx
import pytest
from dooers_contrib.ag_ui import ag_ui
from dooers_contrib.ai_sdk import ai_sdk
from dooers_contrib.openai_api import openai_api
from front import PIXEL, who
from snippets import ROOT
from starlette.applications import Starlette

from dooers import WorkerConfig, WorkerServer
from dooers.send import SendType

PAGE = (ROOT / "docs" / "front-ends.md").read_text()
SECTION = PAGE.partition("## What becomes of what")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in SECTION.splitlines() if line.startswith("|")][
    2:
]
ENDS = {"begins", "ends", "raises", "is canceled"}


async def words(*pieces: str) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece


async def handler(incoming: Any, send: Any) -> AsyncIterator[Any]:
    match incoming.message:
        case "send.text":
            yield send.text("Hello")
        case "send.stream":
            yield send.stream(words("Hello"))
        case "send.image":
            yield send.image(PIXEL)
        case "send.document":
            yield send.document("https://example.com/a.pdf", "a.pdf", "application/pdf")
        case "send.tool_call":
            yield send.tool_call("dice")
        case "send.tool_result":
            yield send.tool_result("dice", 4)
        case "send.tool_transaction":
            yield send.tool_transaction("dice", result=4)
        case "send.update_thread":
            yield send.update_thread(title="A title", metadata={"a": 1})
        case "send.run_start":
            yield send.run_start("agent")
        case "send.run_end":
            yield send.run_start()
            yield send.run_end()
        case "raises":
            raise RuntimeError("inside")
        case "is canceled":
            yield send.run_start()
            yield send.run_end("canceled")


@pytest.fixture(scope="module")
async def heard(anyio_backend: str) -> Any:
    """What each door says for each row, without its beginning and end where the row is not about them."""
    worker = WorkerServer(WorkerConfig(database_type="memory"))
    worker.handler(handler)
    app = Starlette(routes=[*ag_ui(worker, who=who), *ai_sdk(worker, who=who), *openai_api(worker, who=who)])
    found: dict[str, list[list[str]]] = {}
    async with worker.lifespan():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://app", headers={"authorization": "Bearer alice"}
        ) as client:
            for what, *_ in ROWS:
                word = what.strip("`")
                message = [{"id": "1", "role": "user", "content": word, "parts": [{"type": "text", "text": word}]}]
                asked = {
                    "id": word,
                    "threadId": word,
                    "runId": word,
                    "messages": message,
                    "model": "worker",
                    "stream": True,
                }
                answers = [
                    await client.post(path, json=asked) for path in ("/ag-ui", "/api/chat", "/v1/chat/completions")
                ]
                found[what] = [part_of(word, said(answer.text)) for answer in answers]
    return found


def said(text: str) -> list[str]:
    frames = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [token for frame in frames for token in tokens(frame)]


def tokens(frame: dict[str, Any]) -> list[str]:
    if "type" in frame:
        return [frame["type"]]
    if "error" in frame:
        return ["error"]
    [choice] = frame["choices"]
    delta = choice["delta"]
    return [
        *(["delta.role"] if "role" in delta else []),
        *(["delta.content"] if delta.get("content") else []),
        *(["finish_reason"] if choice["finish_reason"] else []),
    ]


def part_of(word: str, told: list[str]) -> list[str]:
    return told[:1] if word == "begins" else told[-1:] if word in ENDS else told[1:-1]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_of_the_table_is_what_a_client_gets(row: list[str], heard: Any) -> None:
    what, *cells = row
    expected = [re.findall(r"`([^`]+)`", cell) for cell in cells]
    assert heard[what] == expected
    for cell, tokens in zip(cells, expected, strict=True):
        assert tokens or cell.startswith("nothing"), cell


def test_every_kind_of_event_has_its_row() -> None:
    kinds = {f"`send.{kind}`" for kind in get_args(SendType) if kind != "delta"}
    assert {row[0] for row in ROWS} == kinds | ENDS


def test_the_tests_that_show_a_client_are_there() -> None:
    table = PAGE.partition("## Clients that connect unchanged")[2]
    shown = re.findall(r"`(tests/[^`]+)`", table)
    assert len(shown) >= 6
    for path in shown:
        assert (ROOT / path).exists(), path


def test_the_versions_are_those_of_the_tests() -> None:
    packages = json.loads((ROOT / "tests" / "services" / "package.json").read_text())["dependencies"]
    table = PAGE.partition("## Clients that connect unchanged")[2]
    for name in ("@ag-ui/client", "ag-ui-client-0", "ai", "ai-5", "ai-7"):
        assert packages[name].rpartition("@")[2] in table
