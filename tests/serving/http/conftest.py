"""The embedded models behind a real server, started once, and behind an app in this process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from glm_export.serving.http.app import create_app
from glm_export.serving.http.asking import RowOptions
from glm_export.serving.http.conversation import prepared
from glm_export.serving.http.served import opened
from glm_export.serving.options import ServeOptions
from glm_export.sessions.session import Session
from tests.helpers.golden_data import Golden

ADDRESS = re.compile(r"at (http://\S+)/v1")
Started = tuple[str, subprocess.Popen[str]]


@contextmanager
def started(*words: str, columns: int = 200) -> Iterator[Started]:
    """A server's address and process; it is killed where it does not end by itself."""
    command = [sys.executable, "-m", "glm_export.cli", "serve", *words, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": str(columns)}
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


class Dictated:
    """A matcher that lets a row write one text, and then end."""

    def __init__(self, ids: list[int], end: int, size: int) -> None:
        self._ids, self._size = [*ids, end], size

    @property
    def allowed(self) -> NDArray[np.bool_]:
        mask = np.zeros(self._size, bool)
        mask[self._ids[0]] = True
        return mask

    def accept(self, token: int) -> None:
        assert token == self._ids.pop(0)


@dataclass
class Dictation:
    """A server in this process over a ChatGLM3 of random weights, which knows tools; it writes what it is told to."""

    session: Session
    address: str = ""
    text: str = ""

    def row_options(self, **options: Any) -> RowOptions:
        """A door's own, with the text to be written."""
        tokenizer, config = self.session.tokenizer, self.session.config
        ids, end = tokenizer.encode_plain(self.text), config.eos_token_ids[0]
        return RowOptions(**options | {"matcher": lambda: Dictated(ids, end, config.vocab_size)})


@pytest.fixture(scope="module")
def dictation() -> Iterator[Dictation]:
    """Its ``text`` is what rows write from then on; of a module, since every door of this process dictates."""
    options = ServeOptions(max_batch=2)
    with opened([str(Golden("chatglm3").folder)], options) as models, pytest.MonkeyPatch.context() as patch:
        made = Dictation(models["chatglm3"].session)
        patch.setattr(prepared, "RowOptions", made.row_options)
        config = uvicorn.Config(create_app(models, options, frozenset()), port=0, log_config=None, lifespan="off")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        made.address = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
        yield made
        running.should_exit = True
        thread.join()
