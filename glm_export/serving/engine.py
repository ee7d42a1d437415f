"""Requests over one session, step by step: a core without clock or thread, which whoever drives it gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError
from glm_export.generation.drafted import draft_options
from glm_export.generation.drafts import MOST_DRAFTS, PromptLookup, drafts_beside
from glm_export.generation.finite import lost_rows, not_finite
from glm_export.generation.sampling import Sampler
from glm_export.serving.batch_rows import OwnLengthRows, batch_rows
from glm_export.serving.prefix_store import PrefixStore
from glm_export.serving.request import Event, Request, TokenLogprobs, logprobs_of
from glm_export.serving.scheduler import Scheduler, SchedulerOptions
from glm_export.sessions.session import Session

PREFIX_BYTES = 256 << 20


@dataclass(slots=True, kw_only=True)
class _Row:
    """A request, and what was written for it so far."""

    request: Request
    sampler: Sampler
    limit: int
    written: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached: int = 0
    drafts: list[int] = field(default_factory=list)
    lookup: PromptLookup | None = None

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer."""
        return [*self.request.prompt.ids, *self.written]


class Engine:
    """Writes many requests at once; each gets the tokens it would get alone.

    ``scheduler``: who waits, who runs. ``prefixes``: what was read before; None keeps nothing. ``calls``: how
    many tokens each row read in the last step, call by call. ``admitted``: requests that got a row in it.
    ``preemptions``: rows that made way for others so far. ``drafted``, ``accepted``: guesses read so far, and those of
    them that were what their row writes.
    """

    def __init__(
        self,
        session: Session,
        options: SchedulerOptions | None = None,
        *,
        prefix_bytes: int = PREFIX_BYTES,
        max_context: int | None = None,
        speculate: bool = False,
    ) -> None:
        """Take over a session's cache.

        Args:
            session: nobody else's from now on.
            options: of a step; rows at most those the session takes.
            prefix_bytes: of values kept for rows that begin alike; 0 keeps none.
            max_context: tokens of prompt and answer together; None leaves it to the session.
            speculate: guess what rows write out of what they say already; requests may bring guesses of their own.

        Raises:
            InputError: rows of the program round each other, a step cannot be as asked for, or guesses not be judged.
        """
        options = options or SchedulerOptions()
        rows = min(options.max_rows, session.max_rows or options.max_rows)
        if rows > 1 and not session.batch_invariance.usable:
            raise InputError(
                "rows of this recipe round each other, so one person's text would change another's answer; export with "
                "--recipe int8-token, or take one row at a time (--max-batch 1)"
            )
        self.session = session
        self.rows = batch_rows(session, rows)
        self.scheduler = Scheduler(replace(options, max_rows=rows, whole_prompts=self.rows.whole_prompts))
        # A row that begins with what another read has read in other pieces, which moves last bits.
        keeps = prefix_bytes and not options.exact and not session.config.prefix_mask
        self.prefixes = PrefixStore(prefix_bytes) if keeps else None
        self._max_context = max_context
        self.calls: list[dict[str, int]] = []
        self.admitted: tuple[str, ...] = ()
        self.preemptions = self.drafted = self.accepted = 0
        # Guesses are read in a call of several tokens a row, and judged by the logits of each.
        own = isinstance(self.rows, OwnLengthRows) and not options.exact
        self._verifies = own and not session.signature.last_logits_only
        self._drafting = draft_options(session) if speculate else None
        if speculate and not self._verifies:
            raise InputError(
                "guesses are read beside other tokens of a call, which --exact and rows that are padded together rule "
                "out; leave --speculate out, or --exact, or export with --dialect ort"
            )
        self._rows: dict[str, _Row] = {}

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody is written."""
        return not self._rows

    def submit(self, request: Request) -> None:
        """A request waits for its row.

        Raises:
            InputError: its prompt is empty, too long or of ids the model has not, its key is taken, or it asks for
                what the program cannot tell.
        """
        self.session.feeds([request.prompt])
        read, limit = len(request.prompt.ids), self.session.remaining_tokens(request.prompt)
        if self._max_context is not None:
            limit = min(limit, self._max_context - read)
            if limit < min(request.max_new_tokens, 1):
                raise InputError(
                    f"a prompt of {read} tokens leaves no place in a context of {self._max_context}; shorten it"
                )
        told = request.prompt_logprobs
        most = self.session.signature.most_logits if told else None
        if most is not None and self.rows.whole_prompts:
            raise InputError("log-probabilities of a prompt need a program of all logits; export with --logits all")
        self.scheduler.submit(request.key, read, priority=request.priority, most_piece=most)
        lookup = PromptLookup(self._drafting) if self._drafting is not None and request.drafts is None else None
        self._rows[request.key] = _Row(request=request, sampler=Sampler(request.sampling), limit=limit, lookup=lookup)

    def cancel(self, key: str) -> None:
        """Nobody waits for a request any more; its row is free at once."""
        if key in self._rows:
            self._forget(key)

    def give_up_all(self, error: Exception) -> list[Event]:
        """End everything with an error, and begin anew."""
        self.rows.clear()
        events = [Event(key=key, finish_reason="error", error=error) for key in self._rows]
        for key in list(self._rows):
            self.scheduler.forget(key)
        self._rows.clear()
        return events

    def step(self) -> list[Event]:
        """Let every row go on by what the scheduler gives it; a token for each that has read all it knows.

        A call that fails ends the requests in it, each with the error; the others are read again.
        """
        change = self.scheduler.change_rows()
        self.admitted = change.admitted
        self.preemptions += len(change.preempted)
        for key in change.preempted:
            self._keep(key)
            self.rows.remove(key)
        for key in change.admitted:
            self._admit(key)
        if self._verifies:
            self._draft()
        events: list[Event] = []
        self.calls = self.scheduler.calls()
        for call in self.calls:
            # A call before it may have ended rows, or lost them all.
            alive = {key: count for key, count in call.items() if key in self.scheduler.running}
            events += self._call(alive) if alive else []
        return events

    def _admit(self, key: str) -> None:
        row, found = self._rows[key], None
        if self.prefixes is not None and not row.request.prompt_logprobs:
            found = self.prefixes.find(row.request.tenant, row.tokens)
        self.rows.add(key, found.values if found is not None else None)
        if found is not None:
            self.scheduler.began_with(key, found.tokens)
            row.cached = row.cached or min(found.tokens, len(row.request.prompt.ids))

    def _draft(self) -> None:
        """What decoding rows will probably write, as far as they may."""
        size, rows = self.session.config.vocab_size, len(self.scheduler.running)
        # More than a step has room for would be cut, and the rest may be too few to guess at all.
        beside = min(
            drafts_beside(rows, packed=self.session.signature.ragged), self.scheduler.options.step_tokens - rows
        )
        for key, place in self.scheduler.running.items():
            row = self._rows[key]
            guess = row.request.drafts
            room = min(row.request.max_new_tokens, row.limit) - len(row.written) - 1
            row.drafts = []
            if place.unread == 1 and place.begun and room > 0:
                if row.lookup is not None:
                    row.drafts = row.lookup(row.tokens, min(room, beside))
                elif guess is not None:
                    known = takewhile(lambda token: 0 <= token < size, guess(row.tokens))
                    row.drafts = list(islice(known, min(room, MOST_DRAFTS)))
            self.scheduler.drafted(key, len(row.drafts))

    def _call(self, call: dict[str, int]) -> list[Event]:
        tokens, prompts = {}, {}
        for key, count in call.items():
            row, read = self._rows[key], self.scheduler.running[key].read
            known = row.tokens
            tokens[key] = [*known, *row.drafts][read : read + count]
            prompts[key] = replace(row.request.prompt, ids=tuple(known))
        try:
            logits = self.rows.advance(tokens, prompts)
        except Exception as error:  # whatever a runtime raises, the server lives
            return self._recover(call, error)
        return [event for key in call for event in self._advanced(key, call[key], logits[key])]

    def _advanced(self, key: str, count: int, logits_SV: NDArray[np.float32]) -> list[Event]:
        """What a row's call says: of its prompt, and of the next token where it has read all it knows."""
        row, place = self._rows[key], self.scheduler.running[key]
        first, read = place.read, min(count, place.unread)
        drafts = row.drafts[: count - read]
        self.scheduler.advanced(key, read)
        if lost_rows(logits_SV):
            lost = not_finite(self.session.describe(), f"request {key}, token {first + count}", logits_SV)
            return [self._finish(key, "error", error=lost)]
        if row.request.prompt_logprobs:
            self._tell_prompt(row, first, logits_SV)
        if place.unread:
            return []
        if drafts:
            return self._judge(key, drafts, logits_SV)
        return [self._choose(key, row, logits_SV[-1])]

    def _judge(self, key: str, drafts: list[int], logits_SV: NDArray[np.float32]) -> list[Event]:
        """A token behind the row's own, and behind each guess as long as they are what it writes; then it is cut."""
        row, place, events = self._rows[key], self.scheduler.running[key], list[Event]()
        self.drafted += len(drafts)
        for guess, logits_V in zip([*drafts, None], logits_SV, strict=True):
            events.append(self._choose(key, row, logits_V))
            if events[-1].finish_reason is not None:
                return events
            if events[-1].token != guess:
                break
            self.scheduler.advanced(key, 1)
            self.accepted += 1
        assert isinstance(self.rows, OwnLengthRows)
        self.rows.cut(key, place.read)
        return events

    def _tell_prompt(self, row: _Row, first: int, logits_SV: NDArray[np.float32]) -> None:
        ids, top = row.request.prompt.ids, row.request.top_logprobs or 0
        for index, logits_V in enumerate(logits_SV, first + 1):
            if len(row.prompt_logprobs) + 1 == index < len(ids):
                row.prompt_logprobs.append(logprobs_of(logits_V, ids[index], top))

    def _choose(self, key: str, row: _Row, logits_V: NDArray[np.float32]) -> Event:
        request = row.request
        if request.max_new_tokens == 0:
            return self._finish(key, "length")
        scores_V = self._scores(row, logits_V)
        token = row.sampler.choose(scores_V, row.tokens, row.written)
        if token in request.stop_ids:
            return self._finish(key, "stop")
        if request.matcher is not None:
            request.matcher.accept(token)
        row.written.append(token)
        self.scheduler.advanced(key, 0, written=1)
        told = None
        if request.top_logprobs is not None:
            told = logprobs_of(logits_V, token, request.top_logprobs)
        reason = self._reason(row, token)
        if reason is not None:
            return self._finish(key, reason, token=token, logprobs=told)
        first = len(row.written) == 1
        prompt_logprobs = tuple(row.prompt_logprobs) if first else ()
        return Event(key=key, token=token, logprobs=told, cached_tokens=row.cached, prompt_logprobs=prompt_logprobs)

    @staticmethod
    def _reason(row: _Row, token: int) -> str | None:
        request = row.request
        if request.ends is not None and request.ends(token):
            return "stop"
        if len(row.written) >= request.max_new_tokens:
            return "length"
        return "context" if len(row.written) >= row.limit else None

    @staticmethod
    def _scores(row: _Row, logits_V: NDArray[np.float32]) -> NDArray[Any]:
        """Logits with what was asked of them; as they are where nothing was."""
        request = row.request
        early = len(row.written) < request.min_new_tokens and request.matcher is None
        if request.matcher is None and not early:
            return logits_V
        scores_V: NDArray[Any] = logits_V.astype(np.float32)
        if early:
            scores_V[list(request.stop_ids)] = -np.inf
        if request.matcher is not None:
            scores_V[~request.matcher.allowed] = -np.inf
        return scores_V

    def _finish(
        self,
        key: str,
        reason: str,
        *,
        token: int | None = None,
        logprobs: TokenLogprobs | None = None,
        error: Exception | None = None,
    ) -> Event:
        row = self._rows[key]
        self._forget(key, keep=error is None)
        return Event(
            key=key,
            token=token,
            logprobs=logprobs,
            finish_reason=reason,
            error=error,
            cached_tokens=row.cached,
            prompt_logprobs=tuple(row.prompt_logprobs) if len(row.written) <= 1 else (),
        )

    def _forget(self, key: str, *, keep: bool = True) -> None:
        if key in self.scheduler.running:
            if keep:
                self._keep(key)
            self.rows.remove(key)
        self.scheduler.forget(key)
        del self._rows[key]

    def _keep(self, key: str) -> None:
        """What a row has read, for those that begin alike."""
        if self.prefixes is None or key not in self.rows.keys:
            return
        values = self.rows.values(key)
        read = values.length - values.prefix
        row, place = self._rows[key], self.scheduler.running.get(key)
        if place is not None and place.read < read:
            # Guesses lie behind what it wrote.
            read = place.read
            values = values.first(values.prefix + read)
        self.prefixes.put(row.request.tenant, row.tokens[:read], values)

    def _recover(self, call: dict[str, int], error: Exception) -> list[Event]:
        """After a call that failed nothing of the cache is trusted."""
        self.rows.clear()
        for key in list(self.scheduler.running):
            if key in call:
                self.scheduler.forget(key)
            else:
                self.scheduler.give_up(key)
        events = []
        for key in call:
            del self._rows[key]
            events.append(Event(key=key, finish_reason="error", error=error))
        return events
