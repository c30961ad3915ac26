"""AG-UI's own client runs a worker as its agent: what it sees of an answer, and what becomes of tools, files, errors and stops."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from ag_ui.core import RunAgentInput
from dooers_contrib.ag_ui import ag_ui
from front import SECRET, Front, node, who
from services.npm import install

from dooers import WorkerConfig

TEXT = ["TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"]
TOOL = ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT"]
BODY: dict[str, Any] = {
    "threadId": "t1",
    "runId": "r1",
    "messages": [{"id": "m1", "role": "user", "content": "echo"}],
    "state": {},
    "tools": [],
    "context": [],
    "forwardedProps": {},
}


@pytest.fixture(scope="module", params=["@ag-ui/client", "ag-ui-client-0"])
async def seen(request: pytest.FixtureRequest, anyio_backend: str) -> Any:
    """With a client of today, and with the last one from before the protocol's 1.0, which does not know how a run may end."""
    install("AG-UI's client")
    front = Front.of(WorkerConfig(database_type="memory"))
    async with front.served(ag_ui(front.worker, who=who)) as url:
        return {**await node("front_ag_ui.mjs", request.param, url), "today": request.param == "@ag-ui/client"}


def test_text_is_seen_before_the_run_is_over(seen: Any) -> None:
    start, content, end = TEXT
    assert (seen["live"]["early"], seen["live"]["text"]) == ("Olá ", "Olá mundo 🌍")
    assert seen["live"]["types"] == ["RUN_STARTED", start, content, content, end, "RUN_FINISHED"]


def test_a_second_message_finds_the_first_in_the_workers_memory(seen: Any) -> None:
    assert seen["second"]["said"] == ["stream live", "Olá mundo 🌍", "echo"]
    assert seen["second"]["messages"] == ["user", "assistant"] * 2


def test_tools_are_calls_with_their_results_and_none_is_left_to_the_client(seen: Any) -> None:
    assert seen["tools"]["types"] == ["RUN_STARTED", *TOOL * 3, *TEXT, "RUN_FINISHED"]
    assert seen["tools"].get("outcome") == ({"type": "success", "pendingToolCallIds": []} if seen["today"] else None)
    calls = [(name, json.loads(args)) for one in seen["tools"]["messages"] for name, args in one.get("calls") or []]
    assert calls == [("weather", {"city": "Lisboa"}), ("clock", {}), ("dice", {"sides": 6})]
    results = [one["content"] for one in seen["tools"]["messages"] if one["role"] == "tool"]
    assert results == ['{"celsius": 21}', "12:00", "4"]


def test_files_come_in_and_go_out_as_links(seen: Any) -> None:
    assert seen["sent"] == ["text", "image", "document"]
    assert seen["files"] == [
        "![a \\[cat\\]](<https://example.com/a(1).png>)",
        "[report.pdf](<https://example.com/report>)",
    ]
    assert "messages[5].content[0].url: expected an http, https or data URL" in seen["scripted"]


def test_a_title_is_told_and_metadata_is_not(seen: Any) -> None:
    assert seen["title"] == [{"name": "thread", "value": {"title": "About titles"}}]
    assert SECRET not in json.dumps(seen)


def test_a_failure_is_the_runs_error_without_what_is_inside(seen: Any) -> None:
    assert seen["fail"]["types"] == ["RUN_STARTED", *TEXT, "RUN_ERROR"]
    assert seen["fail"]["text"] == "half "
    assert seen["fail"]["told"].startswith("Something went wrong.")
    assert seen["refuse"]["told"] == "There is no credit left."


def test_the_same_run_again_gets_the_stored_answer_and_another_run_a_new_one(seen: Any) -> None:
    assert seen["twice"]["first"] == seen["twice"]["again"]
    assert (seen["twice"]["ran"], seen["twice"]["more"]) == (1, 2)


def test_an_aborted_run_goes_on_and_is_found_again_by_the_same_request(seen: Any) -> None:
    assert seen["left"] == {"text": "Olá ", "back": "Olá mundo 🌍", "ran": 1}


def test_a_canceled_turn_is_a_cancelled_run(seen: Any) -> None:
    assert seen["canceled"]["types"][-1] == "RUN_FINISHED"
    assert seen["canceled"].get("outcome") == ({"type": "cancelled"} if seen["today"] else None)


def test_somebody_else_has_another_thread_of_that_name_and_a_stranger_none(seen: Any) -> None:
    assert "UNAUTHENTICATED" in seen["stranger"]
    assert seen["bob"]["said"] == ["echo"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"threadId": 7}, "threadId: "),
        ({"runId": None}, "runId: "),
        ({"messages": {}}, "messages: "),
        ({"messages": []}, "messages: expected a message of the user"),
        ({"messages": [{"id": "s", "role": "system", "content": "x"}]}, "messages: expected a message of the user"),
        ({"messages": [{"id": "m"}]}, "messages[0]: "),
        ({"messages": [{"id": 7, "role": "user", "content": "x"}]}, "messages[0].id: "),
        ({"messages": [*BODY["messages"], {"id": "m", "role": "user", "content": 7}]}, "messages[1].content: "),
        ({"messages": [{"id": "m", "role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        (
            {
                "messages": [
                    *BODY["messages"],
                    {"id": "t", "role": "tool", "toolCallId": "c", "content": "done"},
                ]
            },
            "messages[1].role: tools of the front end",
        ),
        (
            {
                "messages": [
                    {
                        "id": "m",
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "file", "value": "file-1"}}],
                    }
                ]
            },
            "messages[0].content[0].source.type: ",
        ),
    ],
)
async def test_a_wrong_shape_is_told_by_its_path(change: dict[str, Any], path: str) -> None:
    front = Front.of(WorkerConfig(database_type="memory"))
    transport = httpx.ASGITransport(front.app(ag_ui(front.worker, who=who)))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answer = await client.post("/ag-ui", json=BODY | change, headers={"authorization": "Bearer alice"})
    told = answer.json()
    assert (answer.status_code, told["type"], told["code"], front.ran) == (422, "RUN_ERROR", "INVALID_VALUE", [])
    assert told["message"].startswith(path)
    await front.worker.close()


def test_what_the_tests_send_is_an_input() -> None:
    RunAgentInput.model_validate(BODY)
