"""The thread that drives an engine: requests come in from anywhere, events go out, deadlines pass."""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from glm_export.errors import GlmExportError, InputError
from glm_export.serving.engine import Engine
from glm_export.serving.metrics.histogram import BETWEEN_TOKENS_S, FIRST_TOKEN_S, REQUEST_S, Histogram
from glm_export.serving.metrics.pace import Pace
from glm_export.serving.request import Event, Request

Sink = Callable[[Event], None]


class QueueFullError(GlmExportError):
    """As many wait as may. ``retry_after_s``: by when one of them will have been answered, at the pace of the last."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class DrainingError(GlmExportError):
    """The server ends: what it has accepted is answered, and nothing more accepted."""

    def __init__(self) -> None:
        super().__init__("the server is going down and takes no new requests; try another one, or again later")


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request somebody waits for, in seconds of the worker's clock. ``begins_by``, ``ends_by``: None has no end.

    ``begun``: whether it had a row. ``last_token``: when it was written; None before the first.
    """

    request: Request
    sink: Sink
    begins_by: float | None
    ends_by: float | None
    arrived: float
    begun: bool = False
    last_token: float | None = None


@dataclass(slots=True)
class Counts:
    """What a worker has done since it began; read from any thread.

    ``first_token_s``: from a request's coming to its first token. ``between_tokens_s``: from one token of a row to the
    next. ``request_s``: to its end, whichever. ``queue_s``: to its first row. With vLLM's meanings.
    """

    requests: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    first_token_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))
    between_tokens_s: Histogram = field(default_factory=lambda: Histogram(BETWEEN_TOKENS_S))
    request_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))
    queue_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))


class Worker:
    """Owns an engine, in a thread of its own. A context manager: leaving it ends what is written.

    ``counts``: of all requests. ``alive``: whether the thread runs.
    """

    def __init__(
        self, engine: Engine, *, max_waiting: int = 256, clock: Callable[[], float] = time.monotonic, name: str = ""
    ) -> None:
        self.engine, self.counts = engine, Counts()
        self._max_waiting, self._clock = max_waiting, clock
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._asked: dict[str, _Asked] = {}
        self._lock = threading.Lock()
        self._open, self._draining, self._stopped = 0, False, False
        self._pace = Pace()
        self._thread = threading.Thread(target=self._run, name=f"engine {name}".strip(), daemon=True)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether somebody drives the engine."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return max(0, self._open - len(self.engine.scheduler.running))

    @property
    def running(self) -> int:
        """Rows that are written."""
        return len(self.engine.scheduler.running)

    @property
    def unread_tokens(self) -> int:
        """Of prompts, of rows and of requests that wait, and of rows that are written the one before the next."""
        scheduler = self.engine.scheduler
        return sum(place.unread for place in [*scheduler.waiting.values(), *scheduler.running.values()])

    def submit(self, request: Request, sink: Sink, *, wait_s: float | None = None, run_s: float | None = None) -> None:
        """Let a request be written. Its events go to ``sink``, in the engine's thread, the last with a reason.

        Args:
            request: with a key of its own.
            sink: must not wait for anything.
            wait_s: until it has a row, at most.
            run_s: until it ends, at most.

        Raises:
            QueueFullError: too many wait.
            DrainingError: the worker is to end.
        """
        now = self._clock()
        with self._lock:
            if self._draining or self._stopped:
                raise DrainingError
            if self._open >= self.engine.scheduler.options.max_rows + self._max_waiting:
                raise QueueFullError(self.waiting, self._pace.retry_after_s())
            self._open += 1
        asked = _Asked(
            request=request,
            sink=sink,
            begins_by=None if wait_s is None else now + wait_s,
            ends_by=None if run_s is None else now + run_s,
            arrived=now,
        )
        self._inbox.put(lambda: self._submit(asked))

    def cancel(self, key: str) -> None:
        """Nobody waits for a request any more; one that has ended already is left alone."""
        self._inbox.put(lambda: self._cancel(key, "cancelled"))

    def drain(self, timeout_s: float) -> bool:
        """Take nothing new, and wait until what was accepted is answered; returns whether it was."""
        with self._lock:
            self._draining = True
        end = time.monotonic() + timeout_s
        while self._open and time.monotonic() < end:
            time.sleep(0.02)
        return not self._open

    def stop(self) -> None:
        """End the thread; what is still written ends as cancelled."""
        with self._lock:
            self._draining = self._stopped = True
        self._inbox.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            self._take()
            if self.engine.idle:
                continue
            began = self._clock()
            try:
                events = self.engine.step()
            except Exception as error:  # a fault of ours must not end everybody's server
                told = "".join(traceback.format_exception(error)[-3:])
                logging.getLogger(__name__).exception("a step failed: %s", told)
                events = self.engine.give_up_all(error)
            self.counts.steps += 1
            for key in self.engine.admitted:
                self._begin(key, began)
            now = self._clock()
            for event in events:
                self._tell(event, now)
        for key in list(self._asked):
            self._cancel(key, "cancelled")

    def _take(self) -> None:
        """What has come since the last step; waits for something where there is nothing to do."""
        wait = self.engine.idle
        while True:
            try:
                action = self._inbox.get(timeout=0.5) if wait else self._inbox.get_nowait()
            except queue.Empty:
                break
            action()
            wait = False
        self._expire()

    def _expire(self) -> None:
        now = self._clock()
        for key, asked in list(self._asked.items()):
            late = asked.ends_by is not None and now > asked.ends_by
            waited = not asked.begun and asked.begins_by is not None and now > asked.begins_by
            if late or waited:
                self._cancel(key, "deadline")

    def _submit(self, asked: _Asked) -> None:
        key = asked.request.key
        if key in self._asked:
            self._end(asked, Event(key=key, finish_reason="error", error=InputError(f"key {key!r} is taken")))
            return
        try:
            self.engine.submit(asked.request)
        except GlmExportError as error:
            self._end(asked, Event(key=key, finish_reason="error", error=error))
            return
        self._asked[key] = asked

    def _cancel(self, key: str, reason: str) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None:
            self.engine.cancel(key)
            self._end(asked, Event(key=key, finish_reason=reason))

    def _begin(self, key: str, now: float) -> None:
        """A request has a row; one that lost it and has another had begun before."""
        asked = self._asked.get(key)
        if asked is not None and not asked.begun:
            asked.begun = True
            self.counts.queue_s.observe(now - asked.arrived)

    def _tell(self, event: Event, now: float) -> None:
        asked = self._asked[event.key]
        if asked.last_token is None and event.error is None:
            self.counts.prompt_tokens += len(asked.request.prompt.ids)
            self.counts.cached_tokens += event.cached_tokens
        if event.token is not None:
            self.counts.generated_tokens += 1
            if asked.last_token is None:
                self.counts.first_token_s.observe(now - asked.arrived)
            else:
                self.counts.between_tokens_s.observe(now - asked.last_token)
            asked.last_token = now
        if event.finish_reason is None:
            asked.sink(event)
            return
        del self._asked[event.key]
        self._end(asked, event, now)

    def _end(self, asked: _Asked, event: Event, now: float | None = None) -> None:
        reason, now = event.finish_reason or "", self._clock() if now is None else now
        self.counts.requests[reason] = self.counts.requests.get(reason, 0) + 1
        self.counts.request_s.observe(now - asked.arrived)
        self._pace.ended(now)
        with self._lock:
            self._open -= 1
        asked.sink(event)
