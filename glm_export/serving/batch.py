"""A file of requests, answered by the server's doors in this process: OpenAI's batch format, a line each.

Answers are appended line by line as they are ready, so a run that was killed goes on where it stopped: lines that are
answered are left out, and a last line that was torn is cut off.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm_export.errors import InputError
from glm_export.model_folder import parse_json
from glm_export.progress import NullProgress, Progress
from glm_export.serving.in_process import App, Call, answered
from glm_export.serving.options import MEGABYTE, ServeOptions
from glm_export.serving.server import require_packages

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/infill", "/v1/score", "/v1/responses", "/v1/messages")
"""Doors that a line may ask."""
AHEAD = 2
"""Lines under way for each row: one that ends is followed at once."""
Line = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class BatchReport:
    """What came of a file. ``before``: lines that an earlier run answered. ``failed``: errors, of all answers."""

    lines: int
    before: int = 0
    failed: int = 0


Answers = Callable[[Iterator[Line], Callable[[Line], None]], None]
"""What answers lines: it takes those that are left, and tells each answer as it is ready."""


def answer_batch(
    answering: Answers, requests: Path, answers: Path, options: ServeOptions, progress: Progress | None = None
) -> BatchReport:
    """Answer every line of a file that has no answer yet.

    Args:
        answering: an engine here (:func:`by_engine`), or several (:mod:`glm_export.serving.ray.batch`).
        requests: a line of JSON each: ``custom_id``, ``method``, ``url``, ``body``.
        answers: is appended to: ``id``, ``custom_id``, ``response``, ``error``.
        options: how long a line may be.
        progress: told of each line.

    Raises:
        GlmExportError: the model cannot be loaded, a line is no request, or the answers are of other requests.
    """
    require_packages()
    longest = options.max_body_megabytes * MEGABYTE
    ids = {line["custom_id"] for line in _lines(requests, longest)}
    with _answers(requests, answers) as file:
        done = _answered(file, answers, ids)
        report = BatchReport(lines=len(ids), before=len(done), failed=sum(done.values()))
        if len(done) == len(ids):
            return report
        advance = (progress or NullProgress()).task("requests", len(ids) - len(done))

        def take(told: Line) -> None:
            # One call a line: what a kill leaves is a line or a torn one, and only the last.
            _write(file, json.dumps(told, ensure_ascii=False).encode() + b"\n")
            report.failed += told["error"] is not None
            advance(1)

        answering((line for line in _lines(requests, longest) if line["custom_id"] not in done), take)
    return report


def by_engine(source: str, options: ServeOptions) -> Answers:
    """An engine in this process; it is loaded when there is a line to answer.

    Args:
        source: an exported folder, engine, checkpoint or embedded model.
        options: of the engine; nothing listens, and nothing waits too long.

    Raises:
        GlmExportError: when lines are to be answered: the model cannot be loaded.
    """

    def answering(lines: Iterator[Line], take: Callable[[Line], None]) -> None:
        with application(source, options) as app:
            asyncio.run(answer_lines(app, lines, take, AHEAD * options.max_batch))

    return answering


@contextmanager
def application(source: str, options: ServeOptions) -> Iterator[App]:
    """The server's application over one model, where nobody waits too long.

    Raises:
        GlmExportError: the model cannot be loaded.
    """
    from glm_export.serving.http.app import create_app
    from glm_export.serving.http.served import opened

    options = replace(options, queue=1 << 30, wait_seconds=math.inf, deadline=math.inf)
    with opened([source], options) as models:
        yield create_app(models, options, frozenset())


def _lines(requests: Path, longest: int) -> Iterator[Line]:
    """The requests of a file, each with a name of its own.

    Raises:
        InputError: the file is missing, or a line is no request; nothing was answered then.
    """
    if not requests.is_file():
        raise InputError(f"--input {requests} is no file; give one with a request a line")
    known: set[str] = set()
    with requests.open("rb") as file:
        number = 0
        while text := file.readline(longest + 1):
            number += 1
            where = f"line {number} of {requests}"
            if len(text) > longest:
                raise InputError(f"{where} is longer than {longest} bytes; send less, or raise --max-body-megabytes")
            if not text.strip():
                continue
            try:
                line = parse_json(text.decode("utf-8-sig"))
            except ValueError as error:
                raise InputError(f"{where} is no JSON: {error}") from error
            name = line.get("custom_id") if isinstance(line, dict) else None
            if not isinstance(name, str) or not name:
                raise InputError(f'{where} should be an object with a custom_id, as {{"custom_id": "1", "url": …}}')
            if name in known:
                raise InputError(f"{where} has the custom_id {name[:80]!r} of a line before; give each its own")
            known.add(name)
            yield line
    if not known:
        raise InputError(f"--input {requests} holds no request; write one a line")


@contextmanager
def _answers(requests: Path, answers: Path) -> Iterator[int]:
    """The file of answers, this run's alone.

    Raises:
        InputError: another run writes to it, or it is no place for answers.
    """
    if answers.exists() and (not answers.is_file() or answers.samefile(requests)):
        raise InputError(f"--output {answers} cannot hold the answers; name another file")
    if not answers.absolute().parent.is_dir():
        raise InputError(f"--output {answers} lies in no folder; make {answers.absolute().parent} first")
    file = os.open(answers, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another run writes to {answers}; wait for it, or name another --output") from error
        yield file
    finally:
        os.close(file)


def _answered(file: int, answers: Path, ids: set[str]) -> dict[str, bool]:
    """Names of requests that have their answer, and whether it is an error; a torn last line is cut off.

    Raises:
        InputError: a line is no answer, or one of another file's requests.
    """
    done: dict[str, bool] = {}
    whole = 0
    with open(file, "rb", closefd=False) as lines:
        for number, text in enumerate(lines, 1):
            if not text.endswith(b"\n"):
                break
            whole += len(text)
            try:
                line = json.loads(text)
                name, failed = line["custom_id"], line["error"] is not None
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise InputError(f"line {number} of {answers} is no answer; name another --output") from error
            if name not in ids or name in done:
                raise InputError(
                    f"line {number} of {answers} answers {str(name)[:80]!r}, which is no request of the input, or has "
                    "its answer before; name another --output"
                )
            done[name] = failed
    os.ftruncate(file, whole)
    return done


async def answer_lines(app: App, lines: Iterable[Line], take: Callable[[Line], None], at_once: int) -> None:
    """Answer lines, some at a time.

    Args:
        app: the server's application.
        lines: requests.
        take: is told each answer when it is ready.
        at_once: how many are under way.
    """
    left = iter(lines)

    async def go_on() -> None:
        for line in left:
            take(await _answer(app, line))

    await asyncio.gather(*(go_on() for _ in range(at_once)))


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


async def _answer(app: App, line: Line) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line["custom_id"],
        "response": None,
        "error": None,
    }
    wrong = _wrong(line)
    if wrong is not None:
        return told | {"error": {"code": wrong[0], "message": wrong[1]}}
    answer = await answered(app, Call(path=line["url"], body=json.dumps(line["body"]).encode()))
    body = json.loads(answer.body)
    told["response"] = {"status_code": answer.status, "request_id": answer.header("x-request-id"), "body": body}
    if answer.status >= 400:
        error = body["error"]
        told["error"] = {"code": error.get("code") or error["type"], "message": error["message"]}
    return told


def _wrong(line: Line) -> tuple[str, str] | None:
    """Code and message of what keeps a line from being asked; None for nothing."""
    if line.get("method") != "POST":
        return "invalid_method", f"the method is POST, found {str(line.get('method'))[:40]!r}"
    if line.get("url") not in URLS:
        return "invalid_url", f"the url is one of {', '.join(URLS)}; found {str(line.get('url'))[:80]!r}"
    if not isinstance(line.get("body"), dict):
        return "invalid_body", "the body is an object, what would be sent to the url"
    if line["body"].get("stream"):
        return "invalid_body", "a line is answered whole; leave stream out"
    return None
