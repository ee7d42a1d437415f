"""Whose a session is: one user at a time, from a prompt to the last token written behind it.

A session has one cache. Were two to use it, each would read on from what the other wrote, and nothing would look wrong.
So a user takes a turn, and whoever comes meanwhile is refused in one line, or waits. Users are threads, and streams,
which are users of their own: two streams read in turn by one thread are two users of one cache as well.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from glm_export.errors import InputError, SessionBusyError

LOOKED_AGAIN_S = 1.0
"""A stream that the garbage collector ends may be told of between a look and the wait for the next."""


class Turn:
    """One user's time with a session; a context manager. Turns nest within those of the same thread.

    ``stream``: what is written is read step by step. It is whoever's thread that reads the next step, and nobody's in
    between: :meth:`pause` before a step is handed out, :meth:`resume` behind it.
    """

    def __init__(self, turns: Turns, *, stream: bool, wait: bool) -> None:
        self._turns, self._stream, self._wait = turns, stream, wait
        self.thread: int | None = None
        self.read_by: int | None = None
        self.outer: Turn | None = None
        self.ended = False

    @property
    def user(self) -> Turn | int | None:
        """Whose the cache is that is filled within."""
        if self._stream:
            return self
        return self.outer.user if self.outer is not None else self.thread

    def pause(self) -> None:
        """Nobody may use the session until :meth:`resume`."""
        self.thread = None

    def resume(self) -> None:
        """Go on, in whichever thread this is."""
        self.thread = self.read_by = threading.get_ident()

    def __enter__(self) -> Self:
        self._turns.begin(self, wait=self._wait)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.end(self)


class Call:
    """One call of a session; a context manager, the same for all calls of a kind."""

    def __init__(self, turns: Turns, *, begins: bool = False, continues: bool = False) -> None:
        self._turns, self._begins, self._continues = turns, begins, continues

    def __enter__(self) -> None:
        self._turns.enter(begins=self._begins, continues=self._continues)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.leave()


class Turns:
    """Who uses a session, whose prompt its cache holds, and whether it is closed.

    ``begins``: calls that fill the cache anew. ``continues``: those that go on from it. ``single``: those that keep
    nothing.
    """

    def __init__(self) -> None:
        # Re-entrant: the garbage collector may end a forgotten stream in the middle of anything.
        self._changed = threading.Condition(threading.RLock())
        self._current: Turn | None = None
        self._filled_by: Turn | int | None = None
        self._calls, self._caller = 0, 0
        self._closed = False
        self.begins = Call(self, begins=True)
        self.continues = Call(self, continues=True)
        self.single = Call(self)

    def turn(self, *, stream: bool, wait: bool = False) -> Turn:
        """A turn, which begins when it is entered.

        Entering raises:
            SessionBusyError: another user has the session, and ``wait`` is false or would never end.
            InputError: the session is closed.
        """
        return Turn(self, stream=stream, wait=wait)

    def begin(self, turn: Turn, *, wait: bool) -> None:
        """Begin a turn; see :meth:`turn`."""
        thread = threading.get_ident()
        with self._changed:
            while not self._is_free_for(thread):
                if not wait or self._is_waiting_for_itself(thread):
                    raise self._busy(thread)
                self._changed.wait(LOOKED_AGAIN_S)
            turn.outer, self._current = self._current, turn
            turn.thread = turn.read_by = thread

    def end(self, turn: Turn) -> None:
        """End a turn; the one around it goes on, unless it ended before."""
        # First of all: where Ctrl-C interrupts what follows, whoever comes next does it.
        turn.ended = True
        with self._changed:
            self._drop_ended()
            self._changed.notify_all()

    def enter(self, *, begins: bool, continues: bool) -> None:
        """Begin a call.

        Raises:
            SessionBusyError: another user has the session.
            InputError: the session is closed, or it is to go on from a cache that another user has filled since.
        """
        thread = threading.get_ident()
        with self._changed:
            if not self._is_free_for(thread):
                raise self._busy(thread)
            user = self._current.user if self._current is not None else thread
            if begins or (continues and self._filled_by is None):
                self._filled_by = user
            elif continues and self._filled_by != user:
                raise SessionBusyError(
                    "the session's cache holds another user's prompt by now; call prefill again, and keep the session "
                    "from there to the last decode: with session.exclusive():"
                )
            self._calls, self._caller = self._calls + 1, thread

    def leave(self) -> None:
        """End a call."""
        with self._changed:
            self._calls -= 1
            if not self._calls:
                self._changed.notify_all()

    def close(self) -> bool:
        """Refuse all calls from now on, and wait for the one that runs. False where it was closed before."""
        with self._changed:
            if self._closed:
                return False
            self._closed = True
            while self._calls and self._caller != threading.get_ident():
                self._changed.wait(LOOKED_AGAIN_S)
            return True

    @staticmethod
    def closed_error() -> InputError:
        """What a closed session answers."""
        return InputError("the session is closed, and its model is freed; load it again with load_session")

    def _drop_ended(self) -> None:
        while self._current is not None and self._current.ended:
            self._current = self._current.outer

    def _is_free_for(self, thread: int) -> bool:
        if self._closed:
            raise self.closed_error()
        self._drop_ended()
        if self._calls and self._caller != thread:
            return False
        return self._current is None or self._current.thread == thread

    def _is_waiting_for_itself(self, thread: int) -> bool:
        """Whether a thread waits for a stream that it reads itself."""
        return self._current is not None and self._current.thread is None and self._current.read_by == thread

    def _busy(self, thread: int) -> SessionBusyError:
        if self._is_waiting_for_itself(thread):
            return SessionBusyError(
                "the session is busy with a stream that is not read to its end; read or close it first, or load a "
                "session for each stream"
            )
        return SessionBusyError(
            "the session is busy with another thread's work; load a session for each thread, or wait for this one: "
            "with session.exclusive(wait=True):"
        )
