"""`dooers run` in a process of its own, for the tests that need a real server. Not a test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parent.parent
WITHIN = 30.0
DOOERS = (sys.executable, "-m", "dooers")


@frozen
class Served:
    """A serving process: where it is, what it has said so far, and how to end it."""

    process: subprocess.Popen[bytes]
    log: Path
    host: str

    @property
    def ws(self) -> str:
        return f"ws://{self.host}/ws"

    @property
    def http(self) -> str:
        return f"http://{self.host}"

    @property
    def said(self) -> str:
        return self.log.read_text()

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(sign)
        return self.process.wait(WITHIN)


@contextmanager
def dooers_run(target: str | None, cwd: Path, *options: str, command: Sequence[str] = DOOERS) -> Iterator[Served]:
    """`dooers run TARGET` (or what the project in `cwd` names) on a free port, in `cwd`; killed at the end whatever happens."""
    log = cwd / "served.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "run", *([] if target is None else [target]), "--port", "0", *options],
            cwd=cwd,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts can be ended with it
        )
    try:
        yield Served(process, log, _host(process, log))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(WITHIN)


def _host(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + WITHIN
    while process.poll() is None and time.monotonic() < until:
        if found := re.search(r"dooers chat ws://(\S+)/ws", log.read_text()):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"`dooers run` did not come up:\n{log.read_text()}")
