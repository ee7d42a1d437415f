"""Answers on their way: events of the engine become responses, in threads that may wait where the engine's may not."""

from __future__ import annotations

import logging
import queue
import threading
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
"""Between two looks at who has left; each asks Triton, which takes from a tenth of a millisecond a row to, on a busy
machine, 50: so it keeps nobody's response waiting."""
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

    ``stream``: piece by piece. ``echo``: text that goes before the answer.
    """

    request: Request
    sender: Sender
    text: WrittenText
    stream: bool
    echo: str = ""
    _new: str = ""
    _ids: list[int] = field(default_factory=list)
    _ended: bool = False
    _ending: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._new = self.echo

    def take(self, event: Event) -> None:
        """One event on; what can be told is sent."""
        if event.token is not None:
            self._ids.append(event.token)
            self._new += self.text.take()
        if event.finish_reason is not None:
            with self._ending:
                self._ended = True
                self._end(event, event.finish_reason)
        elif self.stream and self._new:
            self._send("", last=False)

    def _end(self, event: Event, reason: str) -> None:
        if event.error is not None:
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
        """Whether nobody waits any more; Triton must not be asked behind the last response, which frees the request."""
        with self._ending:
            return not self._ended and self.sender.is_cancelled()


class Answering:
    """Two threads between a worker and Triton: one sends, the other looks who has left.

    A context manager: leaving it tells what is left, then ends.

    Args:
        worker: is told of those who have left.
        observe: called now and then, in one thread; must not raise.
    """

    def __init__(self, worker: Worker, observe: Callable[[], None] = lambda: None) -> None:
        self._worker, self._observe = worker, observe
        self._events: queue.SimpleQueue[tuple[Row, Event] | None] = queue.SimpleQueue()
        self._open: dict[str, Row] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._tell_all, name="answering", daemon=True),
            threading.Thread(target=self._watch, name="watching", daemon=True),
        ]

    def __enter__(self) -> Answering:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._events.put(None)
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._observe()

    def submit(self, row: Row, *, wait_s: float, run_s: float) -> None:
        """Let a row be written, and tell of it.

        Raises:
            QueueFullError: too many wait.
            DrainingError: the worker is to end.
        """
        key = row.request.key
        with self._lock:
            self._open[key] = row
        try:
            self._worker.submit(row.request, lambda event: self._events.put((row, event)), wait_s=wait_s, run_s=run_s)
        except GlmExportError:
            self._close(key)
            raise

    def _close(self, key: str) -> None:
        with self._lock:
            self._open.pop(key, None)

    def _tell_all(self) -> None:
        while (item := self._events.get()) is not None:
            row, event = item
            try:
                row.take(event)
            except Exception:  # Triton gave up the request: nobody else is to lose by it
                LOG.exception("a response of %s could not be sent", row.request.key)
                self._worker.cancel(row.request.key)
            if event.finish_reason is not None:
                self._close(row.request.key)

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            with self._lock:
                rows = list(self._open.items())
            for key, row in rows:
                try:
                    left = row.has_left()
                except Exception:
                    LOG.exception("whether somebody waits for %s is not known", key)
                    left = False
                if left:
                    self._close(key)
                    self._worker.cancel(key)
            self._observe()
