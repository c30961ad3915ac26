"""What the pages promise besides the Python that `test_readme.py` runs: the quickstart's commands, docs/deployment.md's files, the picture.

Servers and proxies are the real ones, started with the very lines and files of the page; of those only addresses and paths are others here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
import trustme
import yaml
from fakes import Chat
from serving import WITHIN, dooers_run
from snippets import ROOT, Block, blocks
from websockets.asyncio.client import connect

from dooers import WorkerConfig
from dooers.client import Client
from dooers.testing import assert_succeeded

PAGE = "docs/deployment.md"
WHO = {"worker_id": "worker", "organization_id": "org-1", "workspace_id": "ws-1", "user_id": "user-1"}


def block(heading: str, language: str, page: str = PAGE) -> Block:
    """The one block of this language under a heading."""
    [found] = [one for one in blocks(page) if one.heading == heading and one.language == language]
    return found


# ---------------------------------------------------------------- the quickstart


async def test_the_quickstarts_first_worker_is_served_by_its_command_and_remembers(tmp_path: Path) -> None:
    first, second, *_ = [one.text for one in blocks("docs/quickstart.md") if one.language == "python"]
    command = shlex.split(block("3. Talk to it", "sh", "docs/quickstart.md").text)
    assert command == ["dooers", "run", "app:worker", "--open"]
    thread_id = None
    for text, answer in (
        (first, "You said: hello"),
        (second, "You said: hello. That was message 3 of this thread."),
    ):
        (tmp_path / "app.py").write_text(text)
        with dooers_run(command[2], tmp_path) as served:
            async with Client(served.ws, within=WITHIN) as client:
                reply = await client.say("hello", thread_id)
                assert_succeeded(reply)
                assert (reply.text, (await client.threads()).items[0].title) == (
                    answer,
                    "hello" if thread_id else None,
                )
            thread_id = reply.thread_id
            async with httpx.AsyncClient(trust_env=False) as http:
                assert "<html" in (await http.get(served.http)).text


# ---------------------------------------------------------------- the picture


def test_the_picture_has_the_words_of_its_page_and_reads_on_a_dark_page() -> None:
    picture = (ROOT / "docs/concepts.svg").read_text(encoding="utf-8")
    shown = " ".join(ElementTree.fromstring(picture).itertext())
    page = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    words = re.findall(r"(?m)^\| \*\*(\w+)\*\* \|", page)
    assert len(words) == 10
    assert [word for word in words if word not in shown] == []
    assert "prefers-color-scheme: dark" in picture


def test_the_benchmarks_of_the_page_are_those_that_there_are() -> None:
    told = re.findall(r"(?m)^\| `(\w+\.py)` \|", (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8"))
    assert sorted(told) == sorted(path.name for path in (ROOT / "tests/benchmarks").glob("[a-z]*.py"))


# ---------------------------------------------------------------- servers


@contextmanager
def started(
    command: list[str], cwd: Path, up: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process, and what `up` finds in its output; it is killed at the end whatever happens."""
    log = cwd / f"{Path(command[0]).name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts can be ended with it
            env={"PATH": "", "HOME": str(cwd), "PYTHONPATH": f"{cwd}:{ROOT}:{ROOT / 'contrib'}", **environment},
        )
    try:
        until = time.monotonic() + WITHIN
        while process.poll() is None and time.monotonic() < until:
            if found := re.search(up, log.read_text(errors="replace")):
                yield process, found[1]
                return
            time.sleep(0.02)
        raise AssertionError(f"{command[0]} did not come up:\n{log.read_text(errors='replace')}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(WITHIN)


def line(name: str, **others: str) -> list[str]:
    """The command of the page under this heading, run by this Python, with other values for some options."""
    words = shlex.split(block(name, "sh").text)
    for option, value in others.items():
        words[words.index(f"--{option}") + 1] = value
    return [str(Path(sys.executable).with_name(words[0])), *words[1:]]


SERVERS = {
    "uvicorn": (line("uvicorn", port="0"), r"running on http://(\S+)", -signal.SIGTERM),
    "gunicorn": (
        line("gunicorn", bind="127.0.0.1:0"),
        r"Listening at: http://(\S+)(?s:.*Application startup complete){4}",
        0,
    ),
}


@pytest.mark.parametrize("name", SERVERS)
async def test_the_line_of_a_server_serves_the_pages_application_and_ends_on_sigterm(name: str, tmp_path: Path) -> None:
    program, paths = blocks(PAGE)[0].text, ("/health", "/ready")
    assert program.startswith("# app.py")
    (tmp_path / "app.py").write_text(program)
    command, up, code = SERVERS[name]
    with started(command, tmp_path, up) as (process, host):
        async with Client(f"ws://{host}/ws", within=WITHIN) as client:
            reply = await client.say("hello")
            assert reply.text == "You said: hello"
            async with httpx.AsyncClient(trust_env=False) as http:
                assert [(await http.get(f"http://{host}{path}")).status_code for path in paths] == [200, 200]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, WITHIN) == code


def test_systemd_and_the_container_start_the_server_as_the_page_says() -> None:
    said = shlex.split(block("uvicorn", "sh").text)
    unit = block("systemd", "ini").text
    [start] = re.findall(r"(?m)^ExecStart=\S+/bin/(.+)$", unit)
    assert shlex.split(start) == said
    [command] = re.findall(r"(?m)^CMD (.+)$", block("Container", "dockerfile").text)
    assert json.loads(command) == [word.replace("127.0.0.1", "0.0.0.0") for word in said]


def bound(extra: float) -> float:
    """Seconds from SIGTERM to the end of the process at most: uvicorn's, the worker's, and what comes before."""
    words = shlex.split(block("uvicorn", "sh").text)
    config = WorkerConfig(database_type="memory")
    ours = config.shutdown_grace + config.shutdown_timeout + 1
    return extra + float(words[words.index("--timeout-graceful-shutdown") + 1]) + ours


def test_everybody_waits_for_longer_than_a_worker_takes_to_close() -> None:
    [systemd] = re.findall(r"(?m)^TimeoutStopSec=(\d+)$", block("systemd", "ini").text)
    words = shlex.split(block("gunicorn", "sh").text)
    gunicorn = float(words[words.index("--graceful-timeout") + 1])
    compose = yaml.safe_load(block("Traefik", "yaml").text)["services"]["chat"]["stop_grace_period"]
    assert int(systemd) > bound(0)
    assert gunicorn > bound(0) - 3  # it does not use uvicorn's option
    assert int(compose.removesuffix("s")) > bound(0)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        return  # its form is looked at above; not every container has a systemd
    unit = tmp_path / "chat.service"
    text = block("systemd", "ini").text.replace("/srv/chat/.venv/bin/uvicorn", sys.executable)
    unit.write_text(text.replace("/srv/chat", str(tmp_path)).replace("User=chat", "User=root"))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in found.stderr.splitlines() if "chat.service" in line] == []


def test_kubernetes_asks_paths_that_there_are_and_gives_time_to_close() -> None:
    deployment, service = yaml.safe_load_all(block("Kubernetes", "yaml").text)
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    probes = {name: container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
        "startupProbe": "/ready",
        "readinessProbe": "/ready",
        "livenessProbe": "/health",
    }
    [port] = container["ports"]
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["containerPort"]} == {8000}
    assert service["spec"]["ports"][0]["targetPort"] == port["containerPort"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert probes["readinessProbe"]["timeoutSeconds"] > 5  # /ready may take so long
    waits = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > bound(waits) == 29


# ---------------------------------------------------------------- reverse proxies

# Says who the worker takes the client for, and streams long enough for a proxy that buffers to be found out.
PROXIED = """
import asyncio
from dooers import AuthRequest, Identity, WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="memory"))
go_on = asyncio.Event()

@worker.authenticate
async def authenticate(request: AuthRequest):
    return Identity(organization_id="org", workspace_id="main", user_id="alice", user_name=request.client[0])

async def pieces(message):
    yield "first "
    await go_on.wait()
    yield f"last, {len(message)}"

@worker.handler(order="parallel")
async def agent(incoming, send, identity):
    if incoming.message == "go on":
        go_on.set()
    yield send.run_start()
    yield send.text(identity.user_name)
    yield send.stream(pieces(incoming.message))
    yield send.run_end()

app = worker.asgi_app()
"""


def nginx(host: str, home: Path, port: int) -> list[str]:
    """nginx with the page's block; what stands around it in a distribution's own file is as little as it can be."""
    text = block("nginx", "nginx").text.replace("/etc/ssl/chat", str(home)).replace("127.0.0.1:8000", host)
    assert "listen 443 ssl;" in text
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;")
    temporary = " ".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    around = f"pid {home}/pid; error_log stderr notice; events {{}} http {{ access_log off; {temporary}\n{text} }}"
    (home / "nginx.conf").write_text(around)
    return ["-e", "stderr", "-p", str(home), "-c", str(home / "nginx.conf"), "-g", "daemon off;"]


def caddy(host: str, home: Path, port: int) -> list[str]:
    """Caddy with the page's block, and a certificate that is here."""
    text = block("Caddy", "text").text.replace("127.0.0.1:8000", host)
    assert text.startswith("chat.example.com {\n")
    head = f"{{\n admin off\n auto_https disable_redirects\n}}\nchat.example.com:{port} {{\n"
    text = text.replace(
        "chat.example.com {\n", f"{head} bind 127.0.0.1\n tls {home}/fullchain.pem {home}/privkey.pem\n"
    )
    (home / "Caddyfile").write_text(text)
    return ["run", "--adapter", "caddyfile", "--config", str(home / "Caddyfile")]


# nginx is part of CI; who has Caddy tries that too.
PROXIES: dict[str, tuple[Callable[[str, Path, int], list[str]], str]] = {"nginx": (nginx, "(start) worker process")}
if shutil.which("caddy"):
    PROXIES["caddy"] = (caddy, "(serving) initial configuration")


@contextmanager
def proxied(name: str, tmp_path: Path) -> Iterator[int]:
    """A worker under the page's uvicorn line, and the proxy in front of it: its port."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.skip(f"this test runs a proxy: apt-get install {name}-light")
    (tmp_path / "app.py").write_text(PROXIED)
    arguments, up = PROXIES[name]
    with started(line("uvicorn", port="0"), tmp_path, r"running on http://(\S+)") as (_, host):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        with started([program, *arguments(host, tmp_path, port)], tmp_path, up):
            yield port


async def until_text(chat: Chat, text: str) -> None:
    while not any(text in json.dumps(frame) for frame in chat.frames):
        chat.frames.append(json.loads(await chat.socket.recv()))


@pytest.mark.parametrize("name", PROXIES)
async def test_a_proxy_lets_the_chat_through_piece_by_piece_and_tells_who_it_is(name: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("chat.example.com")
    certificate.private_key_pem.write_to_path(str(tmp_path / "privkey.pem"))
    for part in certificate.cert_chain_pems:
        part.write_to_path(str(tmp_path / "fullchain.pem"), append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    where: dict[str, Any] = {"ssl": trusting, "server_hostname": "chat.example.com", "proxy": None}
    with proxied(name, tmp_path) as port:
        url = f"wss://chat.example.com:{port}/ws"
        # A client that says it is somewhere else is not believed.
        lies = {"X-Forwarded-For": "203.0.113.9"}
        async with asyncio.timeout(WITHIN):
            async with connect(url, host="127.0.0.1", port=port, additional_headers=lies, **where) as opened:
                chat = Chat(opened)
                await chat.send("connect", **WHO, client={"capabilities": ["deltas"]})
                await chat.until("ack", ack_id="connect", ok=True)
                event = {"content": [{"type": "text", "text": "x" * 100_000}]}
                await chat.send("event.create", event=event)
                # The first piece is here while the worker waits for another message: nothing keeps it back.
                await until_text(chat, "first ")
                [append] = [
                    one for one in chat.frames if "assistant" in json.dumps(one) and one["type"] == "event.append"
                ]
                assert append["payload"]["events"][0]["content"] == [{"type": "text", "text": "127.0.0.1"}]
                await chat.send("event.create", event={"content": [{"type": "text", "text": "go on"}]})
                await until_text(chat, "first last, 100000")
