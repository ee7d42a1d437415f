"""The errors a user can act on: one line each, with the exit code of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

MESSAGE_CHARACTERS = 600
"""Of a message, behind which its middle is left out: it begins with what is wrong and ends with what to do."""
SHOWN_CHARACTERS = 80
"""Of a value that a message quotes."""
SEVERAL: dict[type, str] = {list: "list", tuple: "list", set: "set", frozenset: "set"}
DEEPEST = 8
"""Lists in lists that are written in words."""


def one_line(text: str) -> str:
    r"""Text as one line that no terminal acts on: what does not print is written as its escape (``\n``)."""
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped)


def cut(text: str, most: int) -> str:
    """Text of at most so many characters; of a longer one the middle is left out."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 3]} … {text[-end:]}"


def shown(value: Any, most: int = SHOWN_CHARACTERS) -> str:
    """What an input holds, for a message: in words, on one line, cut where it is long.

    Texts stand in quotes, objects are written as JSON, and None is nothing: ``a list of 'a', 2``.
    """
    if isinstance(value, str) and len(value) > most:
        # What is left out need not be written first.
        value = value[:most] + value[-most:]
    return cut(one_line(_worded(value)), most)


def listed(values: Iterable[Any], most: int = SHOWN_CHARACTERS) -> str:
    """Several things, each as :func:`shown` has it: ``'a', 2``; ``none`` where there are none."""
    return cut(one_line(", ".join(map(_worded, values))), most) or "none"


def alternatives(values: Iterable[object]) -> str:
    """What a value may be, for a message: ``16, 32 or 64``; there is at least one."""
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


def reason(error: BaseException) -> str:
    """Why what others wrote does not fit, for a message: a key that is missing by its name, else the error's words."""
    if isinstance(error, KeyError):
        return f"it has no {listed(error.args)}"
    return one_line(str(error)) or type(error).__name__


def _worded(value: Any, depth: int = 0) -> str:
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, PurePath):
        return repr(str(value))
    if isinstance(value, dict):
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return repr(value)
    if type(value) not in SEVERAL or depth == DEEPEST:
        return repr(value)
    each = [_worded(one, depth + 1) for one in value]
    inner = ", ".join(sorted(each) if isinstance(value, frozenset | set) else each)
    if depth:
        return f"[{inner}]"
    return f"a {SEVERAL[type(value)]} of {inner}" if each else f"an empty {SEVERAL[type(value)]}"


def message(text: str) -> str:
    """What is said of an input: one line, cut where it is long."""
    return cut(one_line(text), MESSAGE_CHARACTERS)


class GlmExportError(Exception):
    """Base of every error glm-export raises on purpose.

    The message is one line, whatever an input put into it: what was expected, what was found, what to do.
    """

    exit_code = 2

    def __init__(self, told: str = "") -> None:
        super().__init__(message(told))


class ConfigError(GlmExportError):
    """``config.json`` says something no family understands, or sizes contradict each other."""


class CheckpointError(GlmExportError):
    """A weight file or tensor is missing, damaged, unsafe or of the wrong shape."""


class InputError(GlmExportError):
    """A prompt, an option or an output folder cannot be used as given."""


class SessionBusyError(GlmExportError):
    """A session has another user, and one cache: wait for it, or use a session for each."""


class NonFiniteError(GlmExportError):
    """A model's logits are no distribution: its dtype cannot hold what it computes, or its weights are damaged.

    The program or checkpoint cannot be used as it is, hence exit code 2; where two are compared and the one that is
    judged is at fault, the comparison fails (1).
    """


class ComparisonFailedError(GlmExportError):
    """Two runs were compared and differ by more than the tolerance."""

    exit_code = 1


class EnvironmentMissingError(GlmExportError):
    """This machine lacks something: a package, disk space, a device, a kernel."""

    exit_code = 3
