"""`dooers run`: who may talk to what is served for development, and what it says and opens."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import WITHIN, Served, dooers_run
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from dooers.cli.guard import is_loopback, of_this_machine
from dooers.client import Client

BOT = """
import gc

from dooers import WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="memory"))
named = WorkerServer(WorkerConfig(database_type="memory", allowed_origins="https://app.example.com"))
app = worker.asgi_app()

@worker.handler
@named.handler
async def agent(incoming, send):
    yield send.text(f"{gc.get_threshold()[0]} {gc.get_freeze_count() > 10_000}")
"""
OURS = [
    "http://localhost",
    "http://localhost:3000",
    "https://LOCALHOST:8443",
    "http://app.localhost:5173",
    "http://127.0.0.1:8000",
    "http://127.0.1.1:8000",
    "http://[::1]:8000",
]
THEIRS = [
    "http://evil.example",
    "https://evil.example:8000",
    "http://localhost.evil.example",
    "http://evil-localhost",
    "http://127.0.0.1.evil.example:8000",
    "http://127.0.0.1@evil.example",
    "http://localhost:3000@evil.example",
    "http://evil.example/localhost",
    "http://localhost/evil",
    "http://localhost:port",
    "http://[::1",
    "http://[::2]:8000",
    "http://192.168.0.1:8000",
    "http://10.0.0.7",
    "http://0.0.0.0:8000",
    "localhost",
    "null",
    "file://",
    "",
    "http://localhost, http://evil.example",
]


def bot(folder: Path) -> Path:
    (folder / "bot.py").write_text(BOT)
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return bot(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with dooers_run("bot:worker", bot(tmp_path_factory.mktemp("served"))) as running:
        yield running


async def lets_in(served: Served, origin: str | None, **headers: str) -> bool:
    try:
        async with connect(served.ws, origin=origin, additional_headers=headers, proxy=None):  # type: ignore[arg-type]
            return True
    except InvalidStatus as refused:
        return refused.response.status_code not in (400, 403)


# ---------------------------------------------------------------- which pages


@pytest.mark.parametrize("origin", OURS)
def test_a_page_of_this_machine_is_known(origin: str) -> None:
    assert of_this_machine(origin)


@pytest.mark.parametrize("origin", THEIRS)
def test_any_other_page_is_none_of_this_machine(origin: str) -> None:
    assert not of_this_machine(origin)


def test_the_name_that_it_was_asked_to_listen_on_is_of_this_machine() -> None:
    assert of_this_machine("http://MyBox:8000", "mybox")
    assert not of_this_machine("http://mybox.evil.example:8000", "mybox")
    assert not of_this_machine("http://:8000", "")


def test_only_addresses_of_this_machine_are_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"]))
    assert not any(
        map(is_loopback, ["0.0.0.0", "::", "192.168.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "", "localhost"])
    )


async def test_only_pages_of_this_machine_and_what_is_no_page_get_in(served: Served) -> None:
    assert await lets_in(served, None)
    for origin in OURS:
        assert await lets_in(served, origin), origin
    for origin in [origin for origin in THEIRS if origin]:
        assert not await lets_in(served, origin), origin
    assert "a page of 'http://evil.example' was refused" in served.said


async def test_a_name_that_was_made_to_point_here_is_refused(served: Served) -> None:
    port = served.host.rpartition(":")[2]
    assert not await lets_in(served, f"http://evil.example:{port}", Host=f"evil.example:{port}")


async def test_a_page_cannot_hide_behind_a_second_origin(served: Served) -> None:
    assert not await lets_in(served, "http://localhost", Origin="http://evil.example")


async def test_the_config_decides_where_it_names_origins(here: Path) -> None:
    with dooers_run("bot:named", here) as running:
        assert await lets_in(running, "https://app.example.com")
        assert not await lets_in(running, "http://localhost:3000")


async def test_an_application_has_its_own_rules(here: Path) -> None:
    with dooers_run("bot:app", here) as running:
        assert await lets_in(running, "https://evil.example")
        assert "open http" not in running.said


async def test_who_listens_to_other_machines_is_not_guarded(here: Path) -> None:
    with dooers_run("bot:worker", here, "--host", "0.0.0.0") as running:
        assert await lets_in(running, "https://evil.example")
        assert f"open http://127.0.0.1:{running.host.rpartition(':')[2]} in a browser" in running.said


async def test_the_collector_of_garbage_leaves_alone_what_is_there_from_the_start(served: Served) -> None:
    async with Client(served.ws, user_id="ana") as client:
        assert (await client.say("how is it?")).text == "10000 True"


# ---------------------------------------------------------------- the playground


def test_the_first_thing_it_says_is_what_to_open(served: Served) -> None:
    first, second, *_ = served.said.splitlines()
    assert first == f"open http://{served.host} in a browser (Ctrl-C stops it)"
    assert second == f"talk to it: dooers chat ws://{served.host}/ws"


async def test_the_playground_is_there_also_after_a_reload(here: Path) -> None:
    with dooers_run("bot:worker", here, "--reload") as running:
        async with httpx.AsyncClient(trust_env=False) as http:
            page = await http.get(running.http)
            assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
            assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_without_the_playground_there_is_no_page(here: Path) -> None:
    with dooers_run("bot:worker", here, "--no-playground", "--reload") as running:
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(running.http)).status_code == 404
            assert (await http.get(f"{running.http}/health")).status_code == 200
        assert not await lets_in(running, "https://evil.example")
        assert running.said.startswith(f"bot:worker listens on {running.http} (Ctrl-C stops it)\n")


@pytest.mark.parametrize("options", [(), ("--reload",)])
def test_open_opens_it_in_the_browser(options: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = here / f"opened{len(options)}"
    browser = here / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with dooers_run("bot:worker", here, "--open", *options) as running:
        until = time.monotonic() + WITHIN
        while not opened.exists():
            assert time.monotonic() < until, running.said
            time.sleep(0.02)
        assert opened.read_text() == f"{running.http}\n"


def test_without_a_part_of_the_extra_one_line_says_what_to_install(here: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; sys.argv = ['dooers', 'run', 'bot:worker']; from dooers.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert (done.returncode, done.stderr) == (1, "pip install 'dooers-workers-server[cli]'\n")


def test_what_is_heavy_is_imported_by_the_command_that_needs_it(here: Path) -> None:
    heavy = ["uvicorn", "websockets", "rich.markdown", "rich.live", "rich.progress", "dooers.chat", "dooers.testing"]
    code = f"import sys, dooers.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")
