"""The fixtures that come with the package, in real pytest runs: found by their entry point, free where nobody asks for them."""

from __future__ import annotations

import os
import tomllib
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
from snippets import blocks

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
MODES = {"anyio": ["anyio_mode=auto"]}
if find_spec("pytest_asyncio"):
    MODES["asyncio"] = ["asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function"]


AGENT = """
from dooers import WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="real.db"))

@worker.provide
def ask():
    async def ask(messages):
        raise AssertionError("the real model was asked")
    return ask

@worker.handler
async def agent(incoming, memory, ask):
    return f"{len(await memory.get_history())}: {await ask(incoming.message)}"
"""
CONFTEST = """
import pytest
from agent import worker as agents_worker

@pytest.fixture
def worker():
    return agents_worker
"""
THREE_LINES = """
from dooers.testing import FakeModel

async def test_it_answers(worker, worker_client):
    with worker.override(ask=FakeModel("Hello.")):
        assert (await worker_client.say("hi")).text == "1: Hello."

async def test_it_answers_again_and_remembers_nothing(worker, worker_client):
    with worker.override(ask=FakeModel("Hello.")):
        assert (await worker_client.say("hi")).text == "1: Hello."
        async with worker_client.as_(user_id="bob") as bob:
            assert [thread.owner.user_id for thread in (await bob.threads()).items] == ["user-1"]
"""


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A place in which dooers is installed, as pip would leave it, and a project that uses it."""
    about = pytester.path / "site" / "dooers_under_test-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: dooers-under-test\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[pytest11]\ndooers = dooers_contrib.pytest_plugin\n")
    path = [str(about.parent), str(ROOT), str(ROOT / "contrib"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return pytester


def run(pytester: pytest.Pytester, *options: str, mode: str = "anyio") -> pytest.RunResult:
    more = [one for option in MODES[mode] for one in ("-o", option)]
    more += [] if mode == "asyncio" else ["-p", "no:asyncio"]  # one of the two
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *more, *options)


@pytest.mark.parametrize("mode", MODES)
def test_three_lines_test_a_worker_and_leave_its_database_alone(installed: pytest.Pytester, mode: str) -> None:
    installed.makepyfile(agent=AGENT, conftest=CONFTEST, test_agent=THREE_LINES)
    run(installed, mode=mode).assert_outcomes(passed=2)
    assert not (installed.path / "real.db").exists()


def test_a_worker_made_for_the_test_keeps_the_database_it_was_given(installed: pytest.Pytester) -> None:
    installed.makepyfile(
        """
        import pytest
        from dooers import WorkerServer

        @pytest.fixture
        def worker(worker_config):
            worker = WorkerServer(worker_config)

            @worker.handler
            async def agent(incoming):
                return "hello"

            return worker

        async def test_it_is_a_file(worker, worker_client, tmp_path):
            await worker_client.say("hi")
            assert worker.config.database_type == "sqlite"
            assert (tmp_path / "worker.db").exists()
        """
    )
    run(installed).assert_outcomes(passed=1)


def test_without_a_worker_it_says_what_to_define(installed: pytest.Pytester) -> None:
    installed.makepyfile("async def test_it(worker_client): ...")
    result = run(installed)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*define a fixture `worker` that gives the WorkerServer to test*"])


def test_it_costs_nothing_where_nobody_asks_for_it(installed: pytest.Pytester) -> None:
    installed.makepyfile(
        """
        import sys

        def test_nothing_was_imported(request):
            assert request.config.pluginmanager.has_plugin("dooers")
            assert [name for name in sys.modules if name.partition(".")[0] == "dooers"] == []
            assert "dooers_contrib.jwt" not in sys.modules
        """
    )
    run(installed).assert_outcomes(passed=1)


def test_it_can_be_left_out(installed: pytest.Pytester) -> None:
    installed.makepyfile("def test_it(worker_config): ...")
    result = run(installed, "-p", "no:dooers")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'worker_config' not found*"])


def test_a_projects_own_fixtures_go_before_it(installed: pytest.Pytester) -> None:
    installed.makepyfile(
        conftest="import pytest\n@pytest.fixture\ndef worker_config(): return 'ours'\n",
        test_ours="def test_it(worker_config): assert worker_config == 'ours'",
    )
    run(installed).assert_outcomes(passed=1)


def test_a_failure_shows_what_came_and_what_was_expected(installed: pytest.Pytester) -> None:
    installed.makepyfile(
        agent=AGENT,
        conftest=CONFTEST,
        test_agent="""
        from dooers.testing import FakeModel, assert_events, assert_succeeded

        async def test_events(worker, worker_client):
            with worker.override(ask=FakeModel("Hello.")):
                assert_events(await worker_client.say("hi"), ["Good morning."])

        async def test_success(worker, worker_client):
            assert_succeeded(await worker_client.say("hi"))
        """,
    )
    result = run(installed)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*- text 'Good morning.'", "*+ text '1: Hello.'    <- text: expected 'Good morning.', got '1: Hello.'"]
    )
    result.stdout.fnmatch_lines(["*the turn failed: Something went wrong.*"])


def test_the_page_about_testing_is_a_project_whose_tests_pass(
    installed: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each Python block of docs/testing.md says in its first line which file it is a part of."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    files: dict[str, str] = {}
    for block in blocks("docs/testing.md"):
        if block.language == "python":
            name, _, rest = block.text.partition("\n")
            assert name.startswith("# "), block.place
            files[name[2:]] = files.get(name[2:], "") + rest
    for name, source in files.items():
        (installed.path / name).write_text(source)
    result = run(installed)
    told = sum(source.count("async def test_") for source in files.values())
    result.assert_outcomes(passed=told)
    assert not (installed.path / "agent.db").exists()


def test_the_package_names_it_as_its_plugin() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert named == {"dooers": "dooers_contrib.pytest_plugin"}
    assert [one.value for one in entry_points(group="pytest11", name="dooers")] in ([], list(named.values()))
