"""Who reads how many tokens in the next step: a state machine without clock, thread or model.

Rows that decode read their one token in every step. What is left of a step's budget goes to prompts, in order, a chunk
each, and then to guesses of what decoding rows will write. A request that waits takes a free row, or that of one of
lower priority, which waits again and is read anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from glm_export.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """What a step may be.

    ``max_rows``: at once. ``step_tokens``: read in a step at most, one a row that decodes and the rest of prompts.
    ``chunk_tokens``: of one prompt in a step at most. ``whole_prompts``: the runtime reads a prompt at once, one a
    step. ``exact``: what a row's calls are depends on nobody else: it decodes in calls of one token a row, reads its
    prompt in calls of its own and in the same pieces always, and gives its row up to nobody.
    """

    max_rows: int = 8
    step_tokens: int = 256
    chunk_tokens: int = 128
    whole_prompts: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        least = self.max_rows + (self.chunk_tokens if self.exact else 1)
        if self.max_rows < 1 or self.chunk_tokens < 1 or self.step_tokens < least:
            raise InputError(
                f"a step wants at least a row, a token of a prompt, and {least} tokens in all; found "
                f"{self.max_rows} rows, chunks of {self.chunk_tokens}, {self.step_tokens} tokens a step"
            )


@dataclass(slots=True, kw_only=True)
class Place:
    """Where a request stands. ``known``: tokens of prompt and answer; ``read``: of those, in the cache.

    ``begun``: whether it has read anything since it got its row, apart from what it began with. ``most_piece``: tokens
    of its prompt in a step at most, as who asks for the prompt's log-probabilities needs it; None: as many as of
    others. ``drafted``: guesses behind its last token, to be read with it where a step has room.
    """

    key: str
    order: int
    known: int
    priority: int = 0
    read: int = 0
    begun: bool = False
    most_piece: int | None = None
    drafted: int = 0

    @property
    def unread(self) -> int:
        """Tokens before the next one can be chosen."""
        return self.known - self.read

    @property
    def rank(self) -> tuple[int, int]:
        """What comes first is smallest: higher priority, then who came earlier."""
        return -self.priority, self.order


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Who gives up a row before the next step, and who gets one."""

    preempted: tuple[str, ...]
    admitted: tuple[str, ...]


@dataclass(slots=True)
class Scheduler:
    """Requests that wait and those that have a row, by key."""

    options: SchedulerOptions
    waiting: dict[str, Place] = field(default_factory=dict)
    running: dict[str, Place] = field(default_factory=dict)
    _orders: int = 0

    def submit(self, key: str, known: int, *, priority: int = 0, most_piece: int | None = None) -> None:
        """A request with so many tokens waits.

        Raises:
            InputError: there is one of this key.
        """
        if key in self.waiting or key in self.running:
            raise InputError(f"there is a request {key!r} already; give each a key of its own")
        self.waiting[key] = Place(key=key, order=self._orders, known=known, priority=priority, most_piece=most_piece)
        self._orders += 1

    def forget(self, key: str) -> None:
        """A request is done, or nobody waits for it any more."""
        self.waiting.pop(key, None)
        self.running.pop(key, None)

    def give_up(self, key: str) -> None:
        """A running request loses its row and waits, before those that came later."""
        place = self.running.pop(key)
        place.read, place.begun = 0, False
        self.waiting[key] = place

    def change_rows(self) -> Change:
        """Before a step: who waits may get a row."""
        preempted = self._preempt()
        return Change(preempted=preempted, admitted=self._admit())

    def began_with(self, key: str, read: int) -> None:
        """A row that was admitted has this many tokens in the cache already; one is left to read at least."""
        place = self.running[key]
        place.read = min(read, place.known - 1)

    def advanced(self, key: str, read: int, *, written: int = 0) -> None:
        """A row read so many tokens, and as many were written behind it."""
        place = self.running[key]
        place.read += read
        place.known += written
        place.begun = True

    def drafted(self, key: str, count: int) -> None:
        """So many guesses lie behind a running row's last token, for the next step."""
        self.running[key].drafted = count

    def calls(self) -> list[dict[str, int]]:
        """The next step's calls: how many tokens each row reads. Rows that decode come first where they are apart."""
        options = self.options
        rows = sorted(self.running.values(), key=lambda place: place.rank)
        # A prompt of one token, or all but one of whose tokens were read before, is a prompt where those come alone.
        decoding = {place.key: 1 for place in rows if place.unread == 1 and (place.begun or not options.whole_prompts)}
        left, prompts = options.step_tokens - len(decoding), {}
        for place in rows:
            if place.key in decoding or left <= 0:
                continue
            piece = min(place.unread, place.most_piece or options.chunk_tokens, options.chunk_tokens)
            count = place.unread if options.whole_prompts else min(piece, left)
            if options.exact and not options.whole_prompts and count < piece:
                continue
            prompts[place.key] = count
            left = 0 if options.whole_prompts else left - count
        for place in rows if not options.exact and not options.whole_prompts else ():
            if place.key in decoding:
                decoding[place.key] += max(0, min(place.drafted, left))
                left -= decoding[place.key] - 1
        if options.exact:
            return [*filter(None, [decoding]), *({key: count} for key, count in prompts.items())]
        return list(filter(None, [decoding, prompts] if options.whole_prompts else [decoding | prompts]))

    def _preempt(self) -> tuple[str, ...]:
        """Rows of lower priority make way, the last of them first; never for an equal."""
        given_up: list[str] = []
        if self.options.exact:
            return ()
        waiting = sorted(self.waiting.values(), key=lambda place: place.rank)
        for place in waiting[self.options.max_rows - len(self.running) :]:
            last = max(self.running.values(), key=lambda row: row.rank, default=None)
            if last is None or last.priority >= place.priority:
                break
            self.give_up(last.key)
            given_up.append(last.key)
        return tuple(given_up)

    def _admit(self) -> tuple[str, ...]:
        free = self.options.max_rows - len(self.running)
        chosen = sorted(self.waiting.values(), key=lambda place: place.rank)[:free]
        for place in chosen:
            self.running[place.key] = self.waiting.pop(place.key)
        return tuple(place.key for place in chosen)
