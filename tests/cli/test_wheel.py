"""The first minute of somebody who installs dooers: the wheel in a fresh environment, a new project, its tests, and a first answer.

The environment holds what the wheel says that it needs, and pytest: nothing else of this one, so what is missing there is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import httpx
import pytest
from attrs import frozen
from packaging.requirements import Requirement
from serving import ROOT, WITHIN, dooers_run

SLOWLY = 3 * WITHIN


@frozen
class Fresh:
    """An environment that has the wheel, and the commands in it."""

    wheel: Path
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))
        }
        return {**kept, "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}

    def shell(self, script: str, cwd: Path) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=SLOWLY,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    here = tmp_path_factory.mktemp("fresh")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(here)]
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=SLOWLY, check=True)
    (wheel,) = here.glob("*.whl")
    folder = here / "venv"
    venv.create(folder, with_pip=False)
    install = ["install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), *install], timeout=SLOWLY, check=True
    )
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (own,) = packages.glob("dooers_workers_server-*.dist-info")
    for needed in {found.name: found for found in _needed([Distribution.at(own)], {"cli"})}.values():
        _link(needed, packages)
    for needed in _needed([distribution("pytest")], set()):
        _link(needed, packages)
    _link(distribution("pytest"), packages)
    script = folder / "bin" / "pytest"
    script.write_text(f"#!{folder / 'bin' / 'python'}\nimport sys, pytest\nsys.exit(pytest.console_main())\n")
    script.chmod(0o755)
    return Fresh(wheel, folder)


def _needed(roots: list[Distribution], extras: set[str]) -> Iterator[Distribution]:
    """What these say that they need, and what that needs, as far as it goes."""
    seen: set[tuple[str, str]] = set()
    todo = [(root, extra) for root in roots for extra in {"", *extras}]
    while todo:
        of, extra = todo.pop()
        for text in of.requires or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            for more in {"", *requirement.extras}:
                if (requirement.name.lower(), more) not in seen:
                    seen.add((requirement.name.lower(), more))
                    found = distribution(requirement.name)
                    todo.append((found, more))
                    yield found


def _link(needed: Distribution, packages: Path) -> None:
    for top in {file.parts[0] for file in needed.files or () if file.parts[0] not in ("..", "__pycache__")}:
        if not (packages / top).exists():
            (packages / top).symlink_to(str(needed.locate_file(top)))


def test_the_wheel_holds_every_file_of_the_package(fresh: Fresh) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "dooers"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    files = tracked or [str(path.relative_to(ROOT)) for path in (ROOT / "dooers").rglob("*.py")]
    with zipfile.ZipFile(fresh.wheel) as wheel:
        held = set(wheel.namelist())
    assert {file for file in files if (ROOT / file).exists()} <= held
    assert not [name for name in held if name.endswith((".db", ".pyc", ".log"))]


def test_the_environment_has_the_wheel_and_not_this_checkout(fresh: Fresh, tmp_path: Path) -> None:
    where = fresh.shell("python -c 'import dooers; print(dooers.__file__)'", tmp_path)
    assert Path(where.strip()).is_relative_to(fresh.folder)
    fresh.shell("! python -c 'import fastapi' 2> /dev/null", tmp_path)


def test_a_new_project_passes_its_tests_and_answers(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = fresh.shell("dooers new demo && cd demo && pytest", tmp_path)
    assert "3 passed" in said
    demo = tmp_path / "demo"
    fresh.shell("dooers check", demo)
    for name in set(os.environ) - set(fresh.env):
        monkeypatch.delenv(name)
    with dooers_run(None, demo, command=(str(fresh.folder / "bin" / "dooers"),)) as running:
        assert httpx.get(running.http, trust_env=False).headers["content-type"].startswith("text/html")
        assert "You said: hello" in fresh.shell(f"echo hello | dooers chat {running.ws} --user ana", demo)
        assert running.stop() == 0
    fresh.shell("dooers export --out threads.jsonl && WORKER_DATABASE_NAME=other.db dooers import threads.jsonl", demo)
    assert '"text":"hello"' in (demo / "threads.jsonl").read_text()
