"""Chat templates of checkpoints, rendered in a process that may take so long, so much memory, and write so much.

Jinja's sandbox keeps a template from files and from Python's insides. It does not keep one from computing for ever:
neither loops within loops nor ``'x' * 10**12`` leave time to look at a clock, so somebody else must hold it. The
process starts with the first template (a tenth of a second), is used again, and ends with this one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.tokenizers.chat import environment

SECONDS = 5.0
"""Of computing, for one prompt. Released templates take milliseconds."""
DEADLINE_SECONDS = 60.0
"""By the clock, for the process to start or to answer, where the system cannot count what it computes."""
MOST_CHARACTERS = 1 << 24
"""Of one prompt: several times the longest context there is, a million tokens."""


class TemplateFailedError(InputError):
    """A template did not render; it may, with the same conversation in another form."""


class _Process:
    """The server of :mod:`glm_export.tokenizers.chat.environment`."""

    def __init__(self) -> None:
        found = [str(Path(module.__file__ or "").parents[1]) for module in (jinja2, markupsafe)]
        command = [sys.executable, "-P", environment.__file__, *found]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="ascii"
            )
        except (OSError, ValueError) as error:
            raise EnvironmentMissingError(
                f"chat templates run in a process of their own, and {sys.executable!r} does not start one: {error}"
            ) from error
        self.owner = os.getpid()
        if self._line(DEADLINE_SECONDS) is None:
            raise EnvironmentMissingError(
                f"chat templates run in a process of their own, and {' '.join(command)} ends at once; run it to see why"
            )

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None where none came in time, or the process died of it."""
        assert self._process.stdin is not None
        line = None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._line(DEADLINE_SECONDS)
        return json.loads(line) if line else None

    def _line(self, seconds: float) -> str | None:
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            self.close()
            return None
        return line

    def close(self) -> None:
        """End it."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()


_lock = threading.Lock()
_running: list[_Process] = []


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of the running process, or of a new one."""
    with _lock:
        # A fork shares the pipes with its parent; the answers would get mixed up.
        if _running and _running[0].owner != os.getpid():
            _running.clear()
        if not _running:
            _running.append(_Process())
        answer = _running[0].ask({**request, "seconds": SECONDS})
        if answer is None:
            _running.clear()
            raise InputError(
                f"the checkpoint's chat template does not end within {SECONDS:g} s of computing, or dies; use another "
                "template"
            )
    if "error" in answer:
        raise TemplateFailedError(f"the checkpoint's chat template cannot render this conversation: {answer['error']}")
    return answer


def _stop() -> None:
    with _lock:
        for process in _running:
            if process.owner == os.getpid():
                process.close()
        _running.clear()


atexit.register(_stop)


def render_apart(template: str, values: dict[str, Any]) -> str:
    """A prompt's text.

    Args:
        template: Jinja, of a checkpoint.
        values: JSON's values by the template's names.

    Raises:
        TemplateFailedError: it refuses the conversation, is broken, takes too much memory or writes too much.
        InputError: it takes too long.
    """
    text: str = _ask({"template": template, "values": values, "most_characters": MOST_CHARACTERS})["text"]
    return text
