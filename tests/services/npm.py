"""The npm packages of package.json, installed beside this file: once, from the lock file."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["MODULES", "install"]

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"


def install(needed: str) -> None:
    """Have them installed; the test that needs `needed` is skipped, with the reason, where that cannot be."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{needed} needs {program} (Node 20), which is not installed")
    lock, done = HERE / "package-lock.json", MODULES / ".installed"
    with lock.open() as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # several test runs may begin at once
        if done.is_file() and done.read_text() == lock.read_text():
            return
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(HERE)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"{needed} could not be installed by npm: {made.stderr.strip()[-300:]}")
        done.write_text(lock.read_text())
