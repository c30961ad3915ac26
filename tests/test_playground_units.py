"""The playground's modules that need no browser, tested where they are at home: in Node."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "playground"


def test_the_page_s_model_and_connection_do_what_they_say() -> None:
    node = shutil.which("node")
    if node is None:
        if os.environ.get("DOOERS_TEST_STRICT"):
            pytest.fail("node is needed: the playground's unit tests would be skipped")
        pytest.skip("node is not installed")
    files = sorted(str(path) for path in TESTS.glob("*.test.mjs"))
    assert files
    done = subprocess.run([node, "--test", *files], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
