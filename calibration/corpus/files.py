"""A corpus file's bytes -> its paragraphs or its rows: plain or gzipped, a row a line or one array of them."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glm_export.errors import InputError
from glm_export.model_folder import parse_json, read_bounded

GZIP = b"\x1f\x8b"
ENDINGS = (".txt", ".jsonl", ".json")
MOST_BYTES, PIECE_BYTES = 2 << 30, 1 << 20
"""Of text in a gzipped file: a few hundred rows calibrate a model, and a small file can hold terabytes of blanks."""


def is_prose(path: Path) -> bool:
    """Whether a file holds paragraphs, not rows."""
    return _ending(path) == ".txt"


def read_bytes(path: Path, known: str) -> bytes:
    """The file's bytes as they lie on the disk.

    Args:
        path: the file.
        known: what else a corpus can be, for the error.

    Raises:
        InputError: there is no such file, or its name is of no known kind.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file; give a .txt, .jsonl or .json file (or one of them gzipped), or {known}")
    if _ending(path) not in ENDINGS:
        raise InputError(
            f"{path} should end in .txt, .jsonl or .json, with .gz behind it where it is gzipped, found "
            f"{path.suffix!r}; rename it after what it holds"
        )
    try:
        return read_bounded(path, MOST_BYTES)
    except ValueError as error:
        raise InputError(f"{path}: {error}; a corpus of a few hundred rows suffices") from error


def text_of(path: Path, data: bytes) -> str:
    """The text in a file's bytes, unpacked where they are gzipped, whatever the name says.

    Raises:
        InputError: it is empty, binary, damaged, not UTF-8, or unpacks to more than :data:`MOST_BYTES`.
    """
    if data.startswith(GZIP):
        data = _unpacked(path, data)
    if not data.strip():
        raise InputError(f"{path} is empty; a corpus needs some text")
    if 0 in data:
        number = data[: data.index(0)].count(b"\n") + 1
        raise InputError(
            f"line {number} of {path} has a NUL byte; plain UTF-8 text is expected, is this a binary file?"
        )
    try:
        return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise InputError(f"line {number} of {path} is not UTF-8 ({error.reason}); save the file as UTF-8") from error


def rows_of(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place: ``line 3 of rows.jsonl``, or ``row 3 of …`` in an array.

    Raises:
        InputError: a row is no JSON object; the message begins with its place.
    """
    array = _array(path, text) if text.lstrip().startswith("[") else None
    if array is not None:
        for number, row in enumerate(array, start=1):
            yield f"row {number} of {path}", _object(row, f"row {number} of {path}")
        return
    # Not splitlines: a JSON string may hold what Unicode counts as line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number} of {path}", _parsed(line, f"line {number} of {path}")


def _ending(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _unpacked(path: Path, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            # Piece by piece: Python makes room for what is asked for.
            found = bytearray()
            while len(found) <= MOST_BYTES and (piece := file.read(PIECE_BYTES)):
                found += piece
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); pack it again") from error
    if len(found) > MOST_BYTES:
        raise InputError(f"{path} unpacks to more than {MOST_BYTES >> 30} GB; a corpus of a few hundred rows suffices")
    return bytes(found)


def _array(path: Path, text: str) -> list[Any] | None:
    """The rows of one JSON array; None where each line is a value of its own."""
    try:
        values = parse_json(text, MOST_BYTES)
    except ValueError as error:
        if _is_json(text.lstrip().partition("\n")[0]):
            return None
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "line 1"
        raise InputError(f"{where} of {path}: an array of JSON objects is expected ({error}); mend it here") from error
    return values if isinstance(values, list) else None


def _is_json(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _parsed(line: str, place: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        reason = str(error).split(":")[0]  # behind it stands a line number, within this line
        raise InputError(
            f"{place}: a JSON object is expected, found {line[:40]!r} ({reason}); write one a line, or one array"
        ) from error
    return _object(row, place)


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{place}: a JSON object is expected, found {type(row).__name__}; write one a line")
    return row
