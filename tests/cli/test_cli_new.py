"""`dooers new`: the project that it makes, and the names that it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from serving import DOOERS, ROOT, WITHIN, dooers_run

from dooers import __version__
from dooers.cli import TargetError
from dooers.cli.new import FILES, make, new

QUIET = {**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "contrib")])}


def ran(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=QUIET, capture_output=True, encoding="utf-8", timeout=6 * WITHIN, check=False
    )


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    make("demo", tmp_path)
    return tmp_path / "demo"


def test_it_makes_a_project_and_says_what_comes_next(tmp_path: Path) -> None:
    done = ran(*DOOERS, "new", "demo", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "made demo/: the worker is in app.py, its tests are in tests/",
        "",
        "  cd demo",
        "  pytest                    test the worker, without a server",
        "  dooers run --open         serve it, and talk to it in the browser",
        "  dooers check              see what is missing",
    ]
    made = {str(path.relative_to(tmp_path / "demo")) for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    assert made == set(FILES)


def test_where_pytest_is_not_there_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dooers.cli.new.find_spec", lambda name: None)
    new("demo")
    # Not "... '.[dev]' install pytest": what is to be typed and what is said of it must not look like one command.
    assert "  pip install -e '.[dev]'   install pytest" in capsys.readouterr().out.splitlines()


def test_its_tests_pass_and_leave_nothing_behind(demo: Path) -> None:
    done = ran(sys.executable, "-m", "pytest", "-q", "-W", "error", cwd=demo)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert list(demo.glob("*.db")) == []


def test_it_is_well_formed_and_strictly_typed(demo: Path) -> None:
    for check in (
        ("ruff", "check", "--isolated", "--select", "E,F,W,I,B,UP,SIM,RUF,ASYNC,PT", "--line-length", "120", "."),
        ("ruff", "format", "--isolated", "--line-length", "120", "--check", "."),
        ("mypy", "--strict", "--cache-dir", os.devnull, "app.py", "tests"),
    ):
        done = ran(sys.executable, "-m", *check, cwd=demo)
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_says_what_it_is_and_needs(demo: Path) -> None:
    project = tomllib.loads((demo / "pyproject.toml").read_text())
    assert project["project"]["name"] == "demo"
    assert project["project"]["dependencies"] == [f"dooers-workers-server[cli]>={__version__}"]
    assert (demo / "README.md").read_text().startswith("# demo\n")
    assert "*.db" in (demo / ".gitignore").read_text().split()
    for path in FILES:
        assert "@" + "NAME" not in (demo / path).read_text()


def test_it_is_served_without_being_told_what(demo: Path) -> None:
    with dooers_run(None, demo) as running:
        said = ran("bash", "-c", f"echo 'What time is it?' | {' '.join(DOOERS)} chat {running.ws}", cwd=demo).stdout
        assert "clock" in said
        assert "You said: What time is it? It is" in said
        assert running.stop() == 0
    assert (demo / "worker.db").exists()


def test_every_file_of_the_skeleton_is_used() -> None:
    skeleton = ROOT / "dooers" / "cli" / "skeleton"
    assert {path.name for path in skeleton.iterdir() if path.is_file()} == set(FILES.values())


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["demo", "My-Agent_2.0", "a", "7", "x" * 64])
def test_a_name_that_a_package_may_have_is_taken(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    assert (tmp_path / name / "app.py").is_file()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("", "demo"),
        (".", "demo"),
        ("..", "demo"),
        ("../evil", "evil"),
        ("/tmp/evil", "evil"),
        ("my agent", "my-agent"),
        ("-x", "x"),
        ("demo/", "demo"),
        (".hidden", "hidden"),
        ("café au lait", "caf-au-lait"),
        ("[red]x", "red-x"),
        ("a\nb", "a-b"),
        ("x" * 65, "x" * 64),
        ("💥", "demo"),
    ],
)
def test_any_other_name_is_refused_with_one_that_fits(name: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError) as raised:
        make(name, tmp_path)
    assert str(raised.value).endswith(f"did you mean {meant!r}?")
    assert list(tmp_path.iterdir()) == []
    make(meant, tmp_path)


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    for name in ("app.py", "b", "c", "d"):
        (tmp_path / "full" / name).write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, says in (
        ("full", "full is not empty: it holds app.py, b, c and 1 more; choose another name, or empty it"),
        ("file", "file is there already, and is no directory; choose another name"),
        ("dangling", "dangling is there already, and is no directory; choose another name"),
    ):
        done = ran(*DOOERS, "new", name, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"dooers: {says}\n")
    assert (tmp_path / "full" / "app.py").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    make("empty", tmp_path)


def test_a_place_where_nobody_may_write_is_one_sentence(tmp_path: Path) -> None:
    done = ran(*DOOERS, "new", "demo", cwd=Path("/proc"))
    assert done.returncode == 1
    assert done.stderr.startswith("dooers: cannot make demo: ")
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- which worker, when nobody says


@pytest.mark.parametrize(
    ("project", "says"),
    [
        (None, "expected MODULE:NAME, e.g. app:worker; or name it once in pyproject.toml, as [tool.dooers] worker ="),
        ("[project]\nname = 'x'\n", "expected MODULE:NAME"),
        ("[tool.dooers]\nworker = 7\n", "expected MODULE:NAME"),
        ("tool = 7\n", "expected MODULE:NAME"),
        ("[tool]\ndooers = 'app:worker'\n", "expected MODULE:NAME"),
        ("[tool.dooers]\nworker = 'absent:worker'\n", "there is no module 'absent' here"),
        ("[tool", "pyproject.toml cannot be read: "),
    ],
)
def test_a_project_that_names_no_worker_is_told_how(project: str | None, says: str, tmp_path: Path) -> None:
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(project)
    for command in ("run", "migrate"):
        done = ran(*DOOERS, command, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"dooers: {says}"), done.stderr
        assert done.stderr.count("\n") == 1
