"""Calls into tokenizer libraries, whose errors are of many kinds: one line, whatever they raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glm_export.errors import CheckpointError, GlmExportError

RUST_PANIC = "PanicException"
"""A class that nobody can import, outside ``Exception``: a library of Rust gave up."""


def is_library_error(error: BaseException) -> bool:
    """Whether a library raised it, and nobody who wants the process to end."""
    return isinstance(error, Exception) or type(error).__name__ == RUST_PANIC


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Read a file with a library.

    Raises:
        CheckpointError: the library raises or panics; ``kind`` says what the file is none of.
    """
    try:
        yield
    except GlmExportError:
        raise
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise CheckpointError(f"{path} is no {kind}: {first_line(error)}; download it again") from error
