"""The playground as it is served: off unless asked for, its own files and no others, and what browsers are told to forbid."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import evolve
from fakes import chat, serving
from fastapi import FastAPI
from snippets import ROOT
from starlette.applications import Starlette
from starlette.routing import Mount

from dooers import Identity, WorkerConfig, WorkerServer, __version__
from dooers.playground import PAGE, assets

URLS = ("/", "/playground/main.js", "/playground/config.json")


@pytest.fixture
async def worker(worker_config: WorkerConfig) -> AsyncIterator[WorkerServer]:
    worker = WorkerServer(worker_config)
    yield worker
    await worker.close()


@asynccontextmanager
async def browsing(app: Any, root_path: str = "") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def test_it_is_off_unless_asked_for(worker: WorkerServer) -> None:
    async with browsing(worker.asgi_app()) as http:
        assert [(await http.get(url)).status_code for url in URLS] == [404, 404, 404]


async def test_the_page_and_what_it_is_made_of_are_served(worker: WorkerServer) -> None:
    async with browsing(worker.asgi_app(playground=True)) as http:
        page = await http.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert "playground/main.js" in linked
        for url in linked:
            assert (await http.get(f"/{url}")).status_code == 200, url

        kinds = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
        served = [path for path in PAGE.rglob("*") if path.suffix in kinds]
        assert {path.suffix for path in served} == set(kinds)
        for path in served:
            answer = await http.get(f"/playground/{path.relative_to(PAGE).as_posix()}")
            assert answer.content == path.read_bytes()
            assert answer.headers["content-type"].startswith(kinds[path.suffix])


def test_every_module_that_is_imported_is_there() -> None:
    """A wrong path in an `import` is a page that stays white."""
    for name, asset in assets().items():
        if name.endswith(("js", "mjs")):
            text = asset.body.decode()
            imported = re.findall(r"""(?:^|[;}\s])(?:import|export)\b[^'"`;()]*?from\s*["']([^"']+)["']""", text)
            imported += re.findall(r"""(?:^|;)import\s*["']([^"']+)["']""", text)
            for target in imported:
                assert target.startswith(("./", "../")), f"{name} imports {target}: there is nobody to resolve that"
                assert (PAGE / name).parent.joinpath(target).is_file(), f"{name} imports {target}"


async def test_every_answer_says_what_the_page_must_not_do(worker: WorkerServer) -> None:
    async with browsing(worker.asgi_app(playground=True)) as http:
        for url in (*URLS, "/playground/nothing.js"):
            headers = (await http.get(url)).headers
            policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
            assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["require-trusted-types-for"] == "'script'"
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cross-origin-opener-policy"] == "same-origin"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "camera=()" in headers["permissions-policy"]
            assert headers["cache-control"] == "no-cache"


async def test_what_the_page_has_not_changed_is_not_sent_again(worker: WorkerServer) -> None:
    async with browsing(worker.asgi_app(playground=True)) as http:
        for url in URLS:
            first = await http.get(url)
            tag = first.headers["etag"]
            for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
                again = await http.get(url, headers={"If-None-Match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
                assert "content-security-policy" in again.headers
            for stale in ('"other"', tag[:-2] + '"', ""):
                assert (await http.get(url, headers={"If-None-Match": stale})).content == first.content


async def test_head_is_get_without_a_body_and_nothing_else_is_answered(worker: WorkerServer) -> None:
    async with browsing(worker.asgi_app(playground=True)) as http:
        for url in URLS:
            got, head = await http.get(url), await http.head(url)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers == got.headers
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
                assert (await http.request(method, url)).status_code == 405


# As they are, over a socket: a client library would tidy them up first.
ELSEWHERE = [
    "/playground/",
    "/playground/../__init__.py",
    "/playground/../../config.py",
    "/playground/..%2f__init__.py",
    "/playground/%2e%2e/__init__.py",
    "/playground/..%5c__init__.py",
    "/playground/....//__init__.py",
    "/playground//etc/passwd",
    "/playground/%2fetc%2fpasswd",
    "/playground/./main.js",
    "/playground/style/../main.js",
    "/playground/main.js/",
    "/playground/main.js%00",
    "/playground/main.js%00.css",
    "/playground/MAIN.JS",
    "/playground/vendor/README.md",
    "/playground/vendor/SHA256SUMS",
    "/playground/vendor",
    "/playground/" + "a/" * 5000,
    "/playground/%ff%fe",
    "/playground/%E2%80%A8",
]


async def test_no_path_leads_anywhere_else(worker: WorkerServer) -> None:
    async with serving(worker.asgi_app(playground=True)) as address:
        for path in ELSEWHERE:
            reader, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await reader.read()).decode("latin-1").partition("\r\n\r\n")
            writer.close()
            await writer.wait_closed()
            assert (path, head.split(" ", 2)[1], body) == (path, "404", "not found")


async def test_it_tells_the_page_of_its_worker_and_nothing_more(worker_config: WorkerConfig) -> None:
    name = "</script><b>Ma\u2028x"
    worker = WorkerServer(evolve(worker_config, worker_id="w-1", assistant_name=name, max_frame_bytes=4096))
    async with browsing(worker.asgi_app(playground=True)) as http:
        answer = await http.get("/playground/config.json")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "worker_id": "w-1",
            "assistant_name": name,
            "version": __version__,
            "max_frame_bytes": 4096,
            "max_data_url_bytes": worker_config.max_data_url_bytes,
            "authenticated": False,
        }

        @worker.authenticate
        async def nobody(claims: Identity) -> None:
            return None

        assert (await http.get("/playground/config.json")).json()["authenticated"] is True
    assert not Path(worker_config.database_name).exists(), "looking at the page opens nothing"


@pytest.mark.parametrize("host", [FastAPI, Starlette])
async def test_below_a_prefix_everything_is_where_the_page_looks_for_it(worker: WorkerServer, host: Any) -> None:
    app = host()
    app.router.routes.append(Mount("/deep/worker", worker.asgi_app(playground=True)))
    async with serving(app) as address, httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http:
        moved = await http.get("/deep/worker")
        assert moved.status_code in (307, 308)
        base = httpx.URL(f"http://{address}").join(moved.headers["location"])
        assert base == f"http://{address}/deep/worker/"
        page = await http.get(base)
        assert page.status_code == 200
        for url in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert (await http.get(base.join(url))).status_code == 200
        assert (await http.get(base.join("playground/config.json"))).json()["worker_id"] == "worker"
        assert (await http.get("/")).status_code == 404
        who = {"worker_id": "worker", "organization_id": "o", "workspace_id": "w", "user_id": "u"}
        async with chat(f"ws://{address}/deep/worker/ws", **who):
            pass


async def test_a_host_that_says_where_it_is_mounted_is_understood(worker: WorkerServer) -> None:
    """A proxy that passes the prefix on, and a server told of it with `root_path`."""
    async with browsing(worker.asgi_app(playground=True), root_path="/app") as http:
        assert (await http.get("/app/")).status_code == 200
        assert (await http.get("/app/playground/main.js")).status_code == 200
        moved = await http.get("/app")
        assert (moved.status_code, moved.headers["location"]) == (307, "http://test/app/")


# ---------------------------------------------------------------- what is shipped


def test_everything_is_in_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as built:
        shipped = {name: built.read(name) for name in built.namelist() if name.startswith("dooers/playground/page/")}
    here = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in PAGE.rglob("*") if path.is_file()}
    assert shipped == here


def test_what_is_not_ours_is_unchanged_and_named_with_its_licence() -> None:
    vendor = PAGE / "vendor"
    lines = (vendor / "SHA256SUMS").read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    found = {
        path.relative_to(vendor).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.rglob("*")
        if path.is_file() and path.parent != vendor
    }
    assert found == recorded
    rows = re.findall(
        r"^\| (\S+)/ \| (\S+) \| (\d+\.\d+\.\d+) \| ([^|]+) \| .+ \|$", (vendor / "README.md").read_text(), re.M
    )
    assert {folder for folder, *_ in rows} == {path.name for path in vendor.iterdir() if path.is_dir()}
    assert all((vendor / folder / "LICENSE").is_file() for folder, *_ in rows)
