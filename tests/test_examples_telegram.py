"""The example for Telegram is served by `dooers run`, gets updates as Telegram brings them, and answers to a Bot API on this machine."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import serving
from serving import WITHIN, dooers_run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

EXAMPLE = Path(__file__).parent.parent / "examples" / "telegram_webhook.py"


async def test_telegram_webhook_greets_streams_and_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "examples")
    sent = asyncio.Queue[str]()

    async def method(request: Request) -> Response:
        if request.path_params["method"] == "getFile":
            return JSONResponse({"ok": True, "result": {"file_path": "documents/file_1"}})
        if request.path_params["method"] == "sendMessage":
            sent.put_nowait((await request.json())["text"])
        return JSONResponse({"ok": True, "result": {}})

    async def file(request: Request) -> Response:
        return Response(b"hello")

    def update(number: int, **said: Any) -> dict[str, Any]:
        who = {"id": 7, "is_bot": False, "first_name": "Ann"}
        message = {"message_id": number, "date": 1, "from": who, "chat": {"id": 7, "type": "private"}, **said}
        return {"update_id": number, "message": message}

    routes = [Route("/bot1:t/{method}", method, methods=["POST"]), Route("/file/bot1:t/documents/file_1", file)]
    async with serving(Starlette(routes=routes)) as api:
        for name, value in {"BOT_TOKEN": "1:t", "SECRET_TOKEN": "s", "API_URL": f"http://{api}"}.items():
            monkeypatch.setenv(f"TELEGRAM_{name}", value)
        with ExitStack() as stack:
            run = dooers_run("examples.telegram_webhook:app", tmp_path)
            served = await asyncio.to_thread(stack.enter_context, run)
            async with httpx.AsyncClient(base_url=served.http, timeout=WITHIN) as http, asyncio.timeout(WITHIN):
                headers = {"x-telegram-bot-api-secret-token": "s"}
                document = {"file_id": "f", "file_name": "a.txt", "mime_type": "text/plain"}
                said: list[tuple[dict[str, Any], str]] = [
                    ({"text": "/start"}, "Hello Ann! Write to me, or send me a file."),
                    ({"text": "how are you"}, "You said: how are you"),
                    ({"document": document}, "a.txt: 5 bytes, thank you."),
                ]
                for number, (message, expected) in enumerate(said):
                    for _ in range(2):  # Telegram brings it again, and nobody is answered twice
                        answer = await http.post("/telegram", json=update(number, **message), headers=headers)
                        assert answer.status_code == 200
                    assert await sent.get() == expected
                assert (await http.post("/telegram", json={})).status_code == 401
            assert await asyncio.to_thread(served.stop) == 0
            assert "Traceback" not in served.said
            assert "1:t/" not in served.said
    assert sent.empty()
