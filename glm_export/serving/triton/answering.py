"""Answers on their way: events of the engine become responses, in a thread that may wait where the engine may not."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from glm_export.errors import GlmExportError, InputError, message
from glm_export.serving.request import Event, Request
from glm_export.serving.triton.tensors import IDS_OUT, READ, REASON, TEXT_OUT, WRITTEN
from glm_export.serving.worker import DrainingError, QueueFullError, Worker
from glm_export.serving.written_text import WrittenText

LOG = logging.getLogger(__name__)
POLL_S = 0.05
"""Between two looks at who has left; each asks Triton, which takes a tenth of a millisecond a row."""
Values = dict[str, Any]


class Sender(Protocol):
    """Where a request's responses go."""

    def send(self, values: Values, *, last: bool) -> None:
        """One response: text, ids and counts by the name of their output."""

    def fail(self, told: str, code: str) -> None:
        """The last response, an error. ``code``: a name of Triton's ``TritonError``."""

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""


def code_of(error: BaseException) -> str:
    """Triton's word for what went wrong."""
    if isinstance(error, QueueFullError | DrainingError):
        return "UNAVAILABLE"
    return "INVALID_ARG" if isinstance(error, InputError) else "INTERNAL"


def told_of(error: BaseException) -> str:
    """One line on what went wrong; of what nobody foresaw its kind alone."""
    return message(str(error)) if isinstance(error, GlmExportError) else f"the model failed: {type(error).__name__}"


@dataclass(slots=True, kw_only=True)
class Row:
    """One request and what is told of it.

    ``stream``: piece by piece. ``echo``: text that goes before the answer. ``ended``: whether its last event has come.
    """

    request: Request
    sender: Sender
    text: WrittenText
    stream: bool
    echo: str = ""
    ended: bool = False
    _new: str = ""
    _ids: list[int] = field(default_factory=list)
    _left: bool = False

    def __post_init__(self) -> None:
        self._new = self.echo

    def take(self, event: Event) -> None:
        """One event on; what can be told is sent."""
        if event.token is not None:
            self._ids.append(event.token)
            self._new += self.text.take()
        reason = event.finish_reason
        if reason is None:
            if self.stream and self._new:
                self._send("", last=False)
        elif event.error is not None:
            self.sender.fail(told_of(event.error), code_of(event.error))
        elif reason == "deadline":
            self.sender.fail("the request took longer than it may; ask for less, or try again later", "UNAVAILABLE")
        elif reason == "cancelled":
            self.sender.fail("the request was cancelled", "CANCELLED")
        else:
            self._new += self.text.finish()
            # vLLM and TensorRT-LLM know no other word for a text that fills the context.
            self._send("length" if reason == "context" else reason, last=True)

    def _send(self, reason: str, *, last: bool) -> None:
        read = len(self.request.prompt.ids)
        values = {TEXT_OUT: self._new, REASON: reason, IDS_OUT: self._ids, READ: read, WRITTEN: len(self._ids)}
        self._new, self._ids = "", []
        self.sender.send(values, last=last)

    def has_left(self) -> bool:
        """Whether nobody waits for it since now."""
        if not self._left and self.sender.is_cancelled():
            self._left = True
            return True
        return False


class Answering:
    """The thread between a worker and Triton. A context manager: leaving it tells what is left, then ends.

    Args:
        worker: is told of those who have left.
        observe: called now and then, and at each request's end; must not raise.
    """

    def __init__(self, worker: Worker, observe: Callable[[], None] = lambda: None) -> None:
        self._worker, self._observe = worker, observe
        self._queue: queue.SimpleQueue[tuple[Row, Event | None] | None] = queue.SimpleQueue()
        self._rows: dict[str, Row] = {}
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def submit(self, row: Row, *, wait_s: float, run_s: float) -> None:
        """Let a row be written, and tell of it.

        Raises:
            QueueFullError: too many wait.
            DrainingError: the worker is to end.
        """

        def sink(event: Event) -> None:
            self._queue.put((row, event))

        self._worker.submit(row.request, sink, wait_s=wait_s, run_s=run_s)
        self._queue.put((row, None))

    def _run(self) -> None:
        looked = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=POLL_S if self._rows else None)
                if item is None:
                    return
                self._tell(*item)
            except queue.Empty:
                pass
            if time.monotonic() - looked > POLL_S:
                self._look()
                looked = time.monotonic()

    def _tell(self, row: Row, event: Event | None) -> None:
        key = row.request.key
        if event is None:
            # Its end may have come before this did.
            if not row.ended:
                self._rows[key] = row
            return
        try:
            row.take(event)
        except Exception:  # Triton gave up the request: nobody else is to lose by it
            LOG.exception("a response of %s could not be sent", key)
            self._worker.cancel(key)
        if event.finish_reason is not None:
            row.ended = True
            self._rows.pop(key, None)
            self._observe()

    def _look(self) -> None:
        """Free the rows of those who have left."""
        for key, row in self._rows.items():
            try:
                left = row.has_left()
            except Exception:
                LOG.exception("whether somebody waits for %s is not known", key)
                continue
            if left:
                self._worker.cancel(key)
        self._observe()
