"""The errors a user can act on: one line each, with the exit code of the command line."""

from __future__ import annotations

from typing import Any

MESSAGE_CHARACTERS = 600
"""Of a message, behind which its middle is left out: it begins with what is wrong and ends with what to do."""
SHOWN_CHARACTERS = 80
"""Of a value that a message quotes."""


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
    """What an input holds, for a message: as Python writes it, on one line, cut where it is long."""
    if isinstance(value, str) and len(value) > most:
        # What is left out need not be written first.
        value = value[:most] + value[-most:]
    return cut(one_line(repr(value)), most)


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
