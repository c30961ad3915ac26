"""docs/command-line.md, the help texts and every other `dooers ...` that is written somewhere: each is a command that there is."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from serving import ROOT, WITHIN
from snippets import Block, blocks
from typer.testing import CliRunner

from dooers.cli import app
from dooers.cli.intake import Intake
from dooers.models import EventQuery
from dooers.stores.memory import MemoryStore

PAGE = "docs/command-line.md"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PLACES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")),
    "dooers/cli/skeleton/README.md.in",
    "dooers/cli/skeleton/app.py",
]
# What else is written like that: an application_name in PostgreSQL, for one.
NO_COMMANDS = {"dooers broker", "dooers server"}


def written() -> Iterator[tuple[str, str]]:
    """Every command line, and where it stands: in the help, and in pages as code."""
    for name, command in COMMANDS.items():
        for code in re.findall(r"`([^`]+)`", f"{command.epilog} {command.help}"):
            yield f"dooers {name} --help", code
    for place in PLACES:
        text = (ROOT / place).read_text(encoding="utf-8")
        if place.endswith(".py"):
            codes = text.splitlines()
        else:
            fenced = [block.text for block in blocks(place) if block.language == "sh"]
            codes = [*re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text), *"".join(fenced).splitlines()]
        for code in codes:
            yield place, code


def examples() -> Iterator[tuple[str, list[str]]]:
    """Each `dooers ...` in these, as words."""
    for place, code in written():
        code = re.sub(r"\$\([^)]*\)", "something", code)
        for part in re.split(r"&&|\||;|\s#|\s{3,}", code):
            words = re.sub(r"^([A-Z_]+=\S+ )*(\.venv/bin/|python3? -m )?", "", part.strip())
            if re.match(r"dooers [a-z]", words) and words not in NO_COMMANDS:
                yield place, shlex.split(words)


FOUND = [pytest.param(place, words, id=f"{place}: {' '.join(words)}") for place, words in examples() if len(words) > 1]


@pytest.mark.parametrize(("place", "words"), FOUND)
def test_what_is_written_is_a_command_that_there_is(place: str, words: list[str]) -> None:
    assert words[1] in COMMANDS, place
    # A command that is only named needs nothing more; what follows it has to be what it takes.
    if len(words) > 2 and "--help" not in words:
        COMMANDS[words[1]].make_context(f"dooers {words[1]}", [word for word in words[2:] if word != "..."])


def test_there_are_examples_of_every_command_in_its_help_and_on_its_page() -> None:
    places = {(param.values[0], param.values[1][1]) for param in FOUND}  # type: ignore[index]
    for name in COMMANDS:
        assert (f"dooers {name} --help", name) in places
        assert (PAGE, name) in places


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_teaches_with_an_example(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"dooers {name}" in done.stdout.partition("Example")[2]


def test_the_first_help_shows_every_command_and_what_to_try() -> None:
    done = CliRunner().invoke(app, [], env={"COLUMNS": "200"})
    for name in COMMANDS:
        assert re.search(rf"^│ {name} ", done.stdout, re.MULTILINE), name
    assert "dooers new demo" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "right"), [("rnu", "run"), ("exprt", "export"), ("migrat", "migrate"), ("chekc", "check")]
)
def test_a_command_that_there_is_not_suggests_the_nearest(wrong: str, right: str) -> None:
    done = CliRunner().invoke(app, [wrong], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert f"No such command '{wrong}'. Did you mean '{right}'?" in done.output


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"migrate"}))
def test_the_page_has_every_option(name: str) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8").partition(f"## dooers {name}\n")[2].partition("\n## ")[0]
    for option in COMMANDS[name].params:
        for flag in [*option.opts, *option.secondary_opts]:
            if flag.startswith("--"):
                assert flag in text, flag


# ---------------------------------------------------------------- the page, run


def run_here(block: Block) -> bool:
    """Whether it is a block of commands that end by themselves, and need nobody to talk to."""
    return block.language == "sh" and not re.search(r"dooers (run|chat|rotate-keys)", block.text)


def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    """One after the other, as a reader would: in the project that the first of them makes."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "dooers"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dooers "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "contrib")]),
        "COLUMNS": "200",
    }
    found = [block for block in blocks(PAGE) if run_here(block)]
    assert [block.heading for block in found] == [
        "dooers new",
        "dooers check",
        "dooers migrate",
        "dooers export",
        "dooers import",
    ]
    cwd = tmp_path
    for block in found:
        # An import has something to bring in that is not there yet.
        before = (
            "WORKER_DATABASE_NAME=other.db dooers migrate; export WORKER_DATABASE_NAME=other.db; "
            if block.heading == "dooers import"
            else ""
        )
        script = f"set -euo pipefail; {before}{block.text}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=3 * WITHIN, check=False
        )
        assert done.returncode == 0, f"{block.place}\n{done.stdout}\n{done.stderr}"
        cwd = tmp_path / "demo"
    assert (cwd / "threads.jsonl").exists()


async def test_the_example_of_the_format_can_be_imported() -> None:
    (example,) = [block for block in blocks(PAGE) if block.language == "json"]
    store = MemoryStore()
    await store.open()
    intake = Intake(store, io.BytesIO(example.text.encode()))
    intake.begin()
    outcome = await intake.run()
    assert (outcome.threads, outcome.runs, outcome.events, outcome.faults) == (1, 1, 2, [])
    assert [event.text for event in await store.events(EventQuery(thread_id="t-1"))] == ["hello", "You said: hello"]
