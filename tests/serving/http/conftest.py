"""The embedded models behind a real server, started once, and behind an app in this process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ADDRESS = re.compile(r"at (http://\S+)/v1")
Started = tuple[str, subprocess.Popen[str]]


@contextmanager
def started(*words: str) -> Iterator[Started]:
    """A server's address and process; it is killed where it does not end by itself."""
    command = [sys.executable, "-m", "glm_export.cli", "serve", *words, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": "200"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while not (found := ADDRESS.search(said)):
            line = process.stderr.readline()
            assert line, f"the server ended with {process.wait()}: {said}"
            said += line
        yield found[1], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="session")
def start() -> Callable[..., object]:
    """Start a server of one's own."""
    return started


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of one for all tests that leave it as it is."""
    with started("demo", "demo-glm", "--max-batch", "4") as (address, _):
        yield address
