"""The `dooers` command as people use it: in processes of its own, against a really served worker."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from rich.console import Console
from samples import T0
from serving import DOOERS, WITHIN, Served, dooers_run
from typer.testing import CliRunner

from dooers import ContentPart, TextPart, ThreadEvent, WorkerConfig
from dooers.chat import Chat, printable
from dooers.cli import TargetError, app, load
from dooers.client import Appended, Client, Delta
from dooers.stores.migrations import HEAD
from dooers.stores.sqlite import SqliteStore

WORKER = """
import asyncio
from dooers import WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="memory", assistant_name="Robot\\x1b[31m"))

@worker.handler
async def agent(incoming, send):
    yield send.run_start()
    if incoming.message == "fail":
        raise RuntimeError("not for clients")
    if incoming.message == "evil":
        yield send.update_thread(title="\\x1b]0;owned\\x07title")
        yield send.tool_call("rm\\x1b[2J", {"path": "\\x9b31m/"}, id="1")
        yield send.tool_result("rm", "\\x1b[5n", id="1")
        yield send.text("red \\x1b[31m &#27;[31m \\x9b31m [b]not markup[/b] \\x07\\r\\b|tab\\t|\\nnext [link](http://example.org/a)")
    elif incoming.message == "stubborn":
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(3)
    elif incoming.message in ("count", "endless"):
        yield send.stream(words(5 if incoming.message == "count" else 1000))
    else:
        yield send.text(f"**{incoming.message}** to you")
    yield send.run_end()

async def words(how_many):
    for number in range(how_many):
        yield f"n{number} "
        await asyncio.sleep(0.1)

class Shape:
    pass

def sync(scope, receive, send): ...

async def asgi(scope, receive, send): ...
"""
FILES = {
    "bot.py": WORKER,
    "needy.py": "import a_module_nobody_has\n",
    "broken.py": "x = 1\ny = 1 / 0\n",
    "keyless.py": "import os\nkey = os.environ['A_KEY_NOBODY_HAS']\n",
    "garbled.py": "def f(:\n",
    "leaver.py": "raise SystemExit(4)\n",
    "empty.py": "",
    "shelf/inner.py": "",
}


def files(here: Path) -> Path:
    for name, text in FILES.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    return here


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with dooers_run("bot:worker", files(tmp_path_factory.mktemp("served"))) as running:
        yield running


def dooers(*words: str, stdin: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DOOERS, *words],
        input=stdin,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", **env},
        capture_output=True,
        encoding="utf-8",
        timeout=WITHIN,
        check=False,
    )


def chat(served: Served, *lines: str, **options: Any) -> str:
    done = dooers("chat", served.ws, "--user", "ana", stdin="\n".join(lines), **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("words", "example"),
    [
        ((), "dooers new demo"),
        (("run",), "dooers run app:worker --port 8001 --reload"),
        (("chat",), "echo hello | dooers chat"),
        (("migrate",), "dooers migrate app:worker --check"),
        (("rotate-keys",), "dooers rotate-keys app:worker"),
    ],
)
def test_help_teaches_with_an_example(words: tuple[str, ...], example: str) -> None:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert example in done.stdout
    assert "examples." not in done.stdout, "who has installed the package has no examples"


def test_without_the_extra_one_line_says_what_to_install() -> None:
    code = "import sys, dooers; sys.modules['typer'] = None; from dooers.cli import main"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WITHIN, check=False)
    assert (done.returncode, done.stderr) == (1, "pip install 'dooers-workers-server[cli]'\n")


def test_the_package_alone_needs_nothing_of_the_extra() -> None:
    blocked = "sys.modules.update(dict.fromkeys(['typer', 'rich', 'uvicorn', 'websockets']))"
    subprocess.run([sys.executable, "-c", f"import sys; {blocked}; import dooers"], timeout=WITHIN, check=True)


# ---------------------------------------------------------------- run: what to serve


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("bto:worker", "no module 'bto'; did you mean bot:worker?"),
        ("shelf.iner:worker", "no module 'shelf.iner'; did you mean shelf.inner:worker?"),
        ("shlf.inner:worker", "no module 'shlf'; did you mean shelf.inner:worker?"),
        ("bot.worker:app", "no module 'bot.worker' here"),
        ("something_else:worker", "no module 'something_else' here; run this in the directory that holds it"),
        ("bot:wroker", "bot has no 'wroker'; did you mean bot:worker?"),
        ("empty:worker", "empty has no 'worker'"),
        ("bot:agent", "bot:agent is a function, not a WorkerServer or an ASGI application; did you mean bot:worker?"),
        ("bot:sync", "bot:sync is a function"),
        ("bot:Shape", "bot:Shape is a class"),
        ("bot", "expected MODULE:NAME, got 'bot'; did you mean bot:worker?"),
        ("./shelf/inner.py", "did you mean shelf.inner:worker?"),
        ("shelf/inner.py:app", "did you mean shelf.inner:app?"),
        ("", "expected MODULE:NAME"),
        ("needy:worker", "needy needs the module 'a_module_nobody_has', which is not installed"),
        ("broken:worker", "broken cannot be imported: ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("keyless:worker", "keyless cannot be imported: KeyError: 'A_KEY_NOBODY_HAS' (keyless.py, line 2)"),
        ("garbled:worker", "garbled cannot be imported: SyntaxError: invalid syntax (garbled.py, line 1)"),
        ("leaver:worker", "leaver cannot be imported: SystemExit: 4"),
        ("..bot:worker", "..bot cannot be imported: TypeError"),
    ],
)
def test_a_wrong_target_is_one_sentence_with_a_suggestion(
    target: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TargetError) as raised:
        load(target)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    for name in [name for name in sys.modules if f"{name.partition('.')[0]}.py" in FILES or name.startswith("shelf")]:
        del sys.modules[name]


def test_a_worker_and_any_asgi_application_can_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    monkeypatch.syspath_prepend(files(tmp_path))
    assert type(load("bot:worker")).__name__ == "WorkerServer"
    assert load("bot:asgi").__name__ == "asgi"
    assert type(load("examples.fastapi_basic:app")).__name__ == "FastAPI"
    del sys.modules["bot"]


def test_a_wrong_target_ends_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = dooers("run", "bto:worker", cwd=files(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "dooers: there is no module 'bto'; did you mean bot:worker?\n"


def test_a_taken_port_is_one_sentence(served: Served, tmp_path: Path) -> None:
    port = served.host.rpartition(":")[2]
    done = dooers("run", "bot:worker", "--port", port, cwd=files(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"dooers: cannot listen on 127.0.0.1:{port}: Address already in use; try --port")


# ---------------------------------------------------------------- run: how it ends


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_cleanly_with_a_client_connected(sign: signal.Signals, tmp_path: Path) -> None:
    with dooers_run("bot:worker", files(tmp_path)) as running:
        async with Client(running.ws) as client:
            assert await client.ask("ping") == {}
            assert running.stop(sign) == 0
        assert "Traceback" not in running.said
        _until(lambda: not _anybody_left(running))


def test_reload_serves_again_after_a_change_and_survives_a_mistake(tmp_path: Path) -> None:
    source = files(tmp_path) / "bot.py"
    with dooers_run("bot:worker", tmp_path, "--reload") as running:
        _change(source, "def f(:")
        _until(lambda: "dooers: bot cannot be imported: SyntaxError" in running.said)
        _change(source, WORKER.replace("to you", "for you"))
        _until(lambda: running.said.count("talk to it:") == 2)
        assert "hi for you" in chat(running, "hi")
        assert running.stop() == 0
        assert "Traceback" not in running.said
        _until(lambda: not _anybody_left(running))


def _change(source: Path, text: str) -> None:
    """Write so that a watcher sees it, also on a file system whose times are coarse."""
    later = source.stat().st_mtime + 2
    source.write_text(text)
    os.utime(source, (later, later))


def _anybody_left(running: Served) -> bool:
    """Whether a process of its group still lives; Python's own resource tracker takes a moment to see that it may go."""
    try:
        os.killpg(running.process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


# ---------------------------------------------------------------- migrate

KEPT = """
from dooers import WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="worker.db", database_auto_migrate=False))
wrong = WorkerServer(WorkerConfig(database_type="sqlite", database_name="nowhere/worker.db"))
fleeting = WorkerServer(WorkerConfig(database_type="memory"))

async def asgi(scope, receive, send): ...
"""
PREDECESSOR = """
CREATE TABLE worker_threads (id, worker_id, organization_id, workspace_id, user_id, title, created_at, updated_at, last_event_at);
CREATE TABLE worker_events
    (id, thread_id, run_id, type, actor, author, user_id, user_name, user_email, content, data, created_at);
CREATE TABLE worker_runs (id, thread_id, agent_id, status, started_at, ended_at, error);
CREATE TABLE worker_settings (worker_id, "values", created_at, updated_at);
INSERT INTO worker_threads (id, created_at) VALUES ('t', '2026-01-01T00:00:00+00:00');
INSERT INTO worker_events (id, thread_id, created_at) VALUES ('e', 't', '2026-01-01T00:00:00+00:00');
"""


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs `dooers migrate`: how it ended, what it said, and what it complained about."""
    (tmp_path / "kept.py").write_text(KEPT)

    def migrate(*options: str, target: str = "kept:worker") -> tuple[int, str, str]:
        done = dooers("migrate", target, *options, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return migrate


def in_file(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def test_migrating_says_what_was_done(tmp_path: Path, kept: Callable[..., tuple[int, str, str]]) -> None:
    assert kept("--check") == (1, f"not up to date: found no schema version, needed schema version {HEAD}\n", "")
    assert not (tmp_path / "worker.db").exists()
    assert kept() == (0, f"made the tables: schema version {HEAD}\n", "")
    assert kept() == (0, f"the database was up to date: schema version {HEAD}\n", "")
    assert kept("--check") == (0, f"up to date: schema version {HEAD}\n", "")
    assert kept("--sql") == (0, f"-- up to date: schema version {HEAD}\n", "")


def test_a_database_of_the_predecessor_is_seen_and_adopted(
    tmp_path: Path, kept: Callable[..., tuple[int, str, str]]
) -> None:
    in_file(tmp_path / "worker.db", PREDECESSOR)
    found = "the tables of the predecessor, without a schema version"
    assert kept("--check") == (1, f"not up to date: found {found}, needed schema version {HEAD}\n", "")
    code, script, _ = kept("--sql")
    assert code == 0
    assert script.startswith("BEGIN;")
    assert kept("--check")[0] == 1  # nothing was done so far
    assert kept() == (
        0,
        f"adopted the tables of the predecessor (1 thread, 1 event, 0 runs, 0 settings): now schema version {HEAD}\n",
        "",
    )
    # The script that was shown does the same.
    (tmp_path / "worker.db").unlink()
    in_file(tmp_path / "worker.db", PREDECESSOR)
    in_file(tmp_path / "worker.db", script)
    assert kept("--check")[0] == 0


def test_what_cannot_be_migrated_is_one_sentence(tmp_path: Path, kept: Callable[..., tuple[int, str, str]]) -> None:
    kept()
    in_file(tmp_path / "worker.db", "UPDATE worker_schema_version SET version_num = '9999'")
    for options, status in (((), 1), (("--sql",), 1), (("--check",), 2)):
        code, said, wrong = kept(*options)
        assert (code, said) == (status, "")
        assert wrong.startswith("dooers: the database has schema version 9999, this code knows versions up to")
        assert wrong.count("\n") == 1
    code, said, wrong = kept(target="kept:wrong")
    assert (code, said) == (1, "")
    assert "nowhere/worker.db" in wrong
    assert kept("--check", target="kept:asgi")[0] == kept("--check", target="kept:absent")[0] == 2
    assert kept("--check", "--sql") == (2, "", "dooers: expected --check or --sql, got both\n")


def test_a_database_in_memory_is_always_up_to_date(kept: Callable[..., tuple[int, str, str]]) -> None:
    what = "the conversations are kept in memory: there is no schema\n"
    assert kept(target="kept:fleeting") == (0, what, "")
    assert kept("--check", target="kept:fleeting") == (0, f"up to date: {what}", "")
    assert kept("--sql", target="kept:fleeting") == (0, f"-- up to date: {what}", "")


# ---------------------------------------------------------------- rotate-keys

LOCKED = """
from dataclasses import dataclass
from dooers import Secret, WorkerConfig, WorkerServer

worker = WorkerServer(WorkerConfig(database_type="sqlite", database_name="worker.db"))

@worker.settings
@dataclass
class Settings:
    api_key: Secret = Secret("")
    pin: Secret = Secret("")

async def asgi(scope, receive, send): ...
"""


async def test_rotating_the_keys_says_how_many_were_sealed_anew(tmp_path: Path) -> None:
    (tmp_path / "locked.py").write_text(LOCKED)
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()

    def rotate(*keys: str, target: str = "locked:worker") -> tuple[int, str, str]:
        keyed = {"WORKER_SETTINGS_ENCRYPTION_KEY": ",".join(keys)}
        done = dooers("rotate-keys", target, cwd=tmp_path, **keyed)
        return done.returncode, done.stdout, done.stderr

    store = SqliteStore(WorkerConfig(database_type="sqlite", database_name=str(tmp_path / "worker.db")))
    await store.open()
    try:
        await store.set_settings("ann", {"api_key": "sk-1", "pin": "1234"}, T0)
        await store.set_settings("bob", {"api_key": "sk-2", "pin": ""}, T0)
        assert rotate(old) == (0, "sealed anew with the newest key: 3\n", "")
        assert rotate(new, old) == (0, "sealed anew with the newest key: 3\n", "")
        assert rotate(new) == (0, "sealed anew with the newest key: 0\n", "")
    finally:
        await store.close()
    code, said, wrong = rotate(old)
    assert (code, said) == (1, "")
    assert "0 settings were sealed anew, but these cannot be opened: 'api_key' of worker 'ann', 'pin' of" in wrong
    assert "Traceback" not in wrong
    code, _, wrong = rotate()
    assert (code, wrong.partition(":")[0]) == (1, "dooers")
    assert "a rotation needs settings_encryption_key" in wrong
    code, _, wrong = rotate(old, target="locked:asgi")
    assert (code, wrong) == (
        2,
        "dooers: locked:asgi is an ASGI application; expected the WorkerServer itself\n",
    )


# ---------------------------------------------------------------- chat


def test_piped_lines_are_answered_one_by_one_until_the_input_ends(served: Served) -> None:
    said = chat(served, "first", "", "second")
    assert said.index("first to you") < said.index("second to you")
    assert said.count("succeeded in") == 2


def test_threads_are_listed_opened_and_begun_anew(served: Served) -> None:
    said = chat(served, "about a cat", "/new", "about a dog", "/threads", "/open 2", "again", "/quit", "never said")
    assert "a new conversation" in said
    listing, opened = said.split("(no title) ──")[0], said.split("(no title) ──")[1]
    assert "  2  (no title)" in listing
    assert "you > about a cat" in opened
    assert "about a cat to you" in opened
    assert "again to you" in opened
    assert "about a dog" not in opened
    assert "never" not in said


def test_a_thread_is_opened_by_its_id_with_its_history(served: Served) -> None:
    listed = chat(served, "remember this", "/threads")
    thread_id = next(line.split()[-1] for line in listed.splitlines() if line.startswith(">"))
    done = dooers("chat", served.ws, "--user", "ana", "--thread", thread_id)
    assert done.returncode == 0
    assert "you > remember this" in done.stdout
    assert "remember this to you" in done.stdout


def test_piped_a_streamed_answer_is_written_once_and_whole(served: Served) -> None:
    said = chat(served, "count")
    assert said.count("n0") == said.count("n0 n1 n2 n3 n4") == 1


def test_stop_is_a_command_too(served: Served) -> None:
    said = chat(served, "/stop", "hello", "/stop", "still there")
    assert said.index("nothing to stop") < said.index("stopped; what was written stays")
    assert "still there to you" in said


class Terminal:
    """`dooers chat` with a terminal of its own in front of it."""

    def __init__(self, served: Served) -> None:
        self._ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        command = [*DOOERS, "chat", served.ws, "--user", "ana"]
        # A session of its own, so that no Ctrl-C of this test run reaches it.
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)
        self.said = ""

    def until(self, text: str) -> None:
        """Read on until this is on the screen; what is left to read begins behind it."""
        end = time.monotonic() + WITHIN
        while text not in self.said:
            assert time.monotonic() < end, (text, self.said)
            if select.select([self._ours], [], [], 0.1)[0]:
                self.said += os.read(self._ours, 65536).decode(errors="replace")
        self.said = self.said.partition(text)[2]

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(WITHIN)
        os.close(self._ours)


@pytest.fixture
def terminal(served: Served) -> Iterator[Terminal]:
    opened = Terminal(served)
    try:
        opened.until("you > ")
        yield opened
    finally:
        opened.close()


def test_on_a_terminal_an_answer_is_seen_while_it_is_written(terminal: Terminal) -> None:
    terminal.type("count")
    terminal.until("n1")
    assert "n4" not in terminal.said
    terminal.until("n0 n1 n2 n3 n4")
    terminal.until("succeeded in")


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(terminal: Terminal) -> None:
    terminal.type("endless")
    terminal.until("n2")
    terminal.interrupt()
    terminal.until("stopping; Ctrl-C again leaves")
    terminal.until("(cut off here)")
    terminal.until("canceled in")
    terminal.until("you > ")
    terminal.type("still there")
    terminal.until("to you")
    terminal.until("succeeded in")
    terminal.until("you > ")
    terminal.type("/quit")
    terminal.until("to come back to this conversation")
    assert terminal.process.wait(WITHIN) == 0


def test_a_second_ctrl_c_leaves(terminal: Terminal) -> None:
    terminal.type("stubborn")
    time.sleep(1)
    terminal.interrupt()
    terminal.until("stopping; Ctrl-C again leaves")
    terminal.interrupt()
    terminal.until("to come back to this conversation")
    assert terminal.process.wait(WITHIN) == 0


def test_open_shows_what_is_being_written_and_ctrl_c_stops_it(served: Served, terminal: Terminal) -> None:
    other = Terminal(served)
    try:
        other.type("endless")
        other.until("n1")
        terminal.type("/threads")
        terminal.until("  1  ")
        terminal.type("/open 1")
        terminal.until("n0 n1 n2")
        terminal.interrupt()
        terminal.until("canceled in")
        other.until("canceled in")
    finally:
        other.close()


def test_mistakes_are_told_and_the_conversation_goes_on(served: Served) -> None:
    said = chat(served, "/opne 1", "/open", "/open 99999", "/open no-such-id", "/help", "fail", "still there")
    assert "there is no /opne" in said
    assert "which one?" in said
    assert "there is no number 99999" in said
    assert "(NOT_FOUND)" in said
    assert "/threads     your conversations" in said
    assert said.count("Something went wrong") == 1
    assert "not for clients" not in said
    assert "still there to you" in said


def test_what_a_worker_says_cannot_drive_the_terminal(served: Served) -> None:
    said = chat(served, "evil", "/threads", "/open 1", FORCE_COLOR="1", TERM="xterm-256color")
    # Colours of our own are there, as with every terminal; nothing that came from the wire is.
    assert "\x1b[" in said
    for foreign in ("\x1b[31m &", "\x1b[2J", "\x1b[5n", "\x1b]", "\x07", "\x9b", "\x08"):
        assert foreign not in said
    for plain in ("[31m", "]0;ownedtitle", "rm[2J", "[b]not markup[/b]", "http://example.org/a"):
        assert plain in said


def test_printable_keeps_all_but_what_a_terminal_obeys() -> None:
    kept = "tab\t newline\n ünï→😀 \u00a0"
    assert printable(kept) == kept
    controls = "".join(chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)])
    assert printable(controls) == "\t\n"


def test_nobody_there_is_one_sentence_and_1() -> None:
    done = dooers("chat", "ws://127.0.0.1:9/ws")
    assert done.returncode == 1
    assert done.stderr.startswith("dooers: cannot connect to ws://127.0.0.1:9/ws")
    assert "is a worker running there?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_thread_that_is_not_there_ends_with_1(served: Served) -> None:
    done = dooers("chat", served.ws, "--thread", "nope")
    assert done.returncode == 1
    assert "NOT_FOUND" in done.stderr


def test_a_worker_that_goes_away_ends_the_chat_with_1(tmp_path: Path) -> None:
    with dooers_run("bot:worker", files(tmp_path)) as running:
        talking = subprocess.Popen(
            [*DOOERS, "chat", running.ws], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert talking.stdin is not None
            assert talking.stdout is not None
            talking.stdin.write(b"hi\n")
            talking.stdin.flush()
            while b"succeeded" not in talking.stdout.readline():
                pass
            running.stop()
            _, error = talking.communicate(b"are you there?\n", timeout=WITHIN)
        finally:
            talking.kill()
            talking.wait(WITHIN)
    assert talking.returncode == 1
    assert b"dooers: the connection was closed (1012" in error
    assert b"Traceback" not in error


def test_a_chat_survives_a_server_that_restarts(tmp_path: Path) -> None:
    with dooers_run("bot:worker", files(tmp_path)) as first:
        terminal = Terminal(first)
        try:
            terminal.until("you > ")
            terminal.type("before")
            terminal.until("to you")
            terminal.until("succeeded in")
            first.stop()
            terminal.until("the connection is lost")
            with dooers_run("bot:worker", tmp_path, "--port", first.host.rpartition(":")[2]):
                terminal.until("reconnected")
                terminal.type("/new")
                terminal.until("a new conversation")
                terminal.type("after")
                terminal.until("to you")
        finally:
            terminal.close()


def test_a_message_grows_on_the_screen_and_stays_once_it_is_whole() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    talk = Chat(console, None, None, "ana")  # type: ignore[arg-type]  # nothing here asks the worker
    for text, whole in (("Hel", "Hel"), ("lo \x1b[31m", "Hello \x1b[31m")):
        talk.show(Delta("t", "e", text, whole, "r"))
    assert talk.growing == {"e": "Hello \x1b[31m"}
    content: list[ContentPart] = [TextPart("Hello")]
    event = ThreadEvent(id="e", thread_id="t", type="message", actor="assistant", created_at=T0, content=content)
    talk.show(Appended(event))
    assert talk.growing == {}
    assert "Hello" in screen.getvalue()
    assert "\x1b[31m" not in screen.getvalue()
