"""The AI SDK's own chat talks to a worker: what it shows while an answer is written, and what becomes of tools, files, errors and stops."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from dooers_contrib.ai_sdk import SAYS, ai_sdk
from front import SECRET, Front, node, who
from services.npm import install

from dooers import WorkerConfig

# By the names of package.json: versions 5, 6 and 7.
PACKAGES = ["ai-5", "ai", "ai-7"]
BODY: dict[str, Any] = {
    "id": "c1",
    "trigger": "submit-message",
    "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "echo"}]}],
}


@pytest.fixture(scope="module", params=PACKAGES)
async def seen(request: pytest.FixtureRequest, anyio_backend: str) -> Any:
    install("the AI SDK's client")
    front = Front.of(WorkerConfig(database_type="memory"))
    async with front.served(ai_sdk(front.worker, who=who)) as url:
        return await node("front_ai_sdk.mjs", request.param, url)


def test_text_is_seen_before_the_answer_is_over(seen: Any) -> None:
    assert seen["live"] == {"early": "Olá ", "status": "streaming", "text": "Olá mundo 🌍", "after": "ready"}


def test_a_second_message_finds_the_first_in_the_workers_memory(seen: Any) -> None:
    assert seen["second"]["said"] == ["stream live", "Olá mundo 🌍", "echo"]
    assert seen["second"]["messages"] == 4


def test_to_regenerate_asks_again(seen: Any) -> None:
    assert seen["regenerated"] == 5


def test_tools_are_shown_as_what_the_server_has_done(seen: Any) -> None:
    *tools, text = seen["tools"]
    assert [(one["toolName"], one["input"], one["output"]) for one in tools] == [
        ("weather", {"city": "Lisboa"}, {"celsius": 21}),
        ("clock", {}, "12:00"),
        ("dice", {"sides": 6}, 4),
    ]
    assert {(one["type"], one["state"], one["providerExecuted"]) for one in tools} == {
        ("dynamic-tool", "output-available", True)
    }
    assert text["text"] == "It is warm."


def test_files_come_in_and_go_out(seen: Any) -> None:
    assert seen["sent"] == ["image", "document", "text"]
    assert [(one["mediaType"], one["url"]) for one in seen["files"]] == [
        ("image/png", "https://example.com/a(1).png"),
        ("application/pdf", "https://example.com/report"),
    ]
    assert seen["scripted"].startswith("messages[4].parts[0].url: expected an http, https or data URL")


def test_a_title_is_told_and_metadata_is_not(seen: Any) -> None:
    [part] = seen["title"]["data"]
    assert (part["type"], part["data"]) == ("data-thread", {"title": "About titles"})
    assert SECRET not in json.dumps(seen)


def test_a_failure_is_the_chats_error_without_what_is_inside(seen: Any) -> None:
    assert (seen["fail"]["text"], seen["fail"]["status"]) == ("half ", "error")
    assert seen["fail"]["error"].startswith("Something went wrong.")
    assert seen["refuse"]["error"] == "There is no credit left."


def test_the_same_message_again_gets_the_stored_answer(seen: Any) -> None:
    assert seen["twice"]["first"] == seen["twice"]["again"] == "Olá mundo 🌍"
    assert (seen["twice"]["same"], seen["twice"]["ran"]) == (True, 1)


def test_an_edited_message_is_a_new_one(seen: Any) -> None:
    assert seen["twice"]["edited"] == 3


def test_a_stopped_chat_stops_nothing_and_finds_its_answer_again(seen: Any) -> None:
    assert seen["left"] == {
        "text": "Olá ",
        "back": "Olá mundo 🌍",
        "status": "ready",
        "over": None,
        "stranger": None,
    }


def test_a_canceled_turn_is_aborted(seen: Any) -> None:
    assert seen["canceled"][-1] == "abort"


def test_somebody_else_has_another_thread_of_that_name_and_a_stranger_none(seen: Any) -> None:
    assert seen["stranger"] == {"status": "error", "error": "who are you?"}
    assert seen["bob"]["said"] == ["echo"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, "id: expected a text, got a number"),
        ({"messages": {}}, "messages: expected a list with a message of the user"),
        ({"messages": []}, "messages: expected a list with a message of the user"),
        ({"messages": ["x"]}, "messages[0]: expected an object"),
        ({"messages": [{"role": "assistant", "parts": []}]}, "messages[0].role: expected user: what the front"),
        ({"messages": [{"role": "user"}]}, "messages[0].parts: expected a list of parts"),
        ({"messages": [{"role": "user", "parts": []}]}, "messages[0].parts: expected a text or a file"),
        ({"messages": [{"role": "user", "parts": [{"type": "x"}]}]}, "messages[0].parts[0].type: expected text or"),
        ({"messages": [{"role": "user", "parts": [{"type": "text"}]}]}, "messages[0].parts[0].text: expected a text"),
        (
            {"messages": [{"role": "user", "parts": [{"type": "file", "url": "ftp://a", "mediaType": "a/b"}]}]},
            "messages[0].parts[0].url: expected an http",
        ),
    ],
)
async def test_a_wrong_shape_is_told_by_its_path(change: dict[str, Any], message: str) -> None:
    front = Front.of(WorkerConfig(database_type="memory"))
    transport = httpx.ASGITransport(front.app(ai_sdk(front.worker, who=who)))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.post("/api/chat", json=BODY | change, headers={"authorization": "Bearer alice"})
    assert (answer.status_code, front.ran) == (422, [])
    assert answer.text.startswith(message)
    await front.worker.close()


async def test_the_stream_says_what_it_is() -> None:
    front = Front.of(WorkerConfig(database_type="memory"))
    transport = httpx.ASGITransport(front.app(ai_sdk(front.worker, who=who)))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.post("/api/chat", json=BODY, headers={"authorization": "Bearer alice"})
    await front.worker.close()
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.endswith("data: [DONE]\n\n")


def test_every_step_has_a_translation() -> None:
    assert "over" in SAYS
