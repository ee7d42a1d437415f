"""Tokens to tokens over any session, with its cache; batches of prompts of different lengths, streaming."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from glm_export.errors import InputError
from glm_export.generation.drafted import drafted_tokens
from glm_export.generation.drafts import DraftOptions
from glm_export.generation.finite import not_finite_by_name, place_of, require_finite
from glm_export.generation.sampling import Sampler, Sampling
from glm_export.generation.stopping import Decode, Stopping
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.sessions.loop_request import LOST, LoopRequest
from glm_export.sessions.session import Session


@dataclass(slots=True, kw_only=True)
class Generation:
    """One row's result. ``finish_reason`` is stop, length or context."""

    prompt: Prompt
    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""


def generate_steps(
    session: Session,
    prompts: Sequence[Sequence[int] | Prompt],
    *,
    stopping: Stopping,
    sampling: Sampling | None = None,
    decode: Decode | None = None,
    drafts: DraftOptions | None = None,
) -> Generator[list[Generation], None, None]:
    """Generate, handing out the state of all rows after each step.

    The session is this stream's from the first step on until it has ended, is closed or forgotten; its steps may be
    read in any thread.

    Args:
        session: its cache is taken over.
        prompts: token ids, or prompts, one a row.
        stopping: when rows end. Stop strings need ``decode``.
        sampling: greedy when absent. Each row draws from its own stream, seeded ``seed + row``.
        decode: ids to text.
        drafts: guess what rows go on with; a step may then write several tokens of a row.

    Raises:
        InputError: an empty or too long prompt, stop strings without ``decode``, or guesses that cannot be judged.
        SessionBusyError: the session has another user; :meth:`Session.exclusive` waits for it.
        NonFiniteError: logits of a row still written are NaN or infinite; rows written so far were handed out.
    """
    if stopping.stop_strings and decode is None:
        raise InputError("stop strings need a tokenizer to decode with")
    built = [prompt if isinstance(prompt, Prompt) else session.prompt(prompt) for prompt in prompts]
    feeds = session.feeds(built)
    limits = [min(session.remaining_tokens(prompt), _shared_remaining_tokens(session, feeds)) for prompt in built]
    rows = [Generation(prompt=prompt) for prompt in built]
    asked = _Asked(rows=rows, limits=limits, stopping=stopping, sampling=sampling or Sampling(), drafts=drafts)
    with session.stream() as turn, closing(_tokens(session, feeds, asked)) as tokens:
        for ids in tokens:
            for row, new, limit in zip(rows, ids, limits, strict=True):
                for token in new:
                    if not row.finish_reason:
                        _take(row, token, stopping, limit, decode)
            if all(row.finish_reason for row in rows):
                break
            turn.pause()
            yield rows
            turn.resume()
    # Whoever stops reading here leaves the session free.
    yield rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What rows are written for, and how; whoever reads the tokens says in ``rows`` which have ended."""

    rows: list[Generation]
    limits: list[int]
    stopping: Stopping
    sampling: Sampling
    drafts: DraftOptions | None = None

    def left(self, row: int) -> int:
        """Tokens that may still be written of a row."""
        written = self.rows[row]
        if written.finish_reason:
            return 0
        return min(self.stopping.max_new_tokens, self.limits[row]) - len(written.ids)

    @property
    def needs_no_text(self) -> bool:
        """Whether a device can go on alone, from its own ids."""
        return not self.stopping.stop_strings and not self.sampling.changes_scores and self.sampling.min_p == 0

    def request(self, pad_token_id: int, last_position: int) -> LoopRequest:
        """What a device needs to know to go on from where rows are."""
        most = self.stopping.max_new_tokens
        left = [min(most, limit) - len(row.ids) for row, limit in zip(self.rows, self.limits, strict=True)]
        return LoopRequest(
            remaining_B=np.array(left, np.int64),
            finished_B=np.array([bool(row.finish_reason) for row in self.rows]),
            stop_ids=self.stopping.stop_ids,
            pad_token_id=pad_token_id,
            last_position=last_position,
            temperature=self.sampling.temperature,
            top_k=int(self.sampling.top_k),
            top_p=float(self.sampling.top_p),
        )


def _tokens(session: Session, feeds: Feeds, asked: _Asked) -> Generator[list[Sequence[int]], None, None]:
    """Ids for each row, step by step; of one that has ended its padding. The host chooses, or the device by itself."""
    samplers = [Sampler(_row_sampling(asked.sampling, index)) for index in range(len(asked.rows))]
    last_position = session.last_position(feeds)
    logits_BV = feeds.last_logits(session.prefill(feeds))
    for step in count(1):
        living = [at for at, row in enumerate(asked.rows) if not row.finish_reason]
        require_finite(session, logits_BV, step, living)
        ids = [session.config.pad_token_id] * len(asked.rows)
        for at in living:
            row = asked.rows[at]
            ids[at] = samplers[at].choose(logits_BV[at], [*row.prompt.ids, *row.ids], row.ids)
        yield [[token] for token in ids]
        if asked.drafts is not None:
            yield from drafted_tokens(session, feeds, asked, samplers, asked.drafts)
            return
        feeds = feeds.next_step(ids, last_position)
        if session.chooses_tokens and asked.needs_no_text:
            yield from _device_tokens(session, feeds, asked, samplers)
            return
        logits_BV = feeds.last_logits(session.decode(feeds))


def _device_tokens(
    session: Session, feeds: Feeds, asked: _Asked, samplers: Sequence[Sampler]
) -> Generator[list[Sequence[int]], None, None]:
    """As :func:`_tokens` from the second token on, chosen on the device."""
    request = asked.request(session.config.pad_token_id, session.last_position(feeds))
    draws_BN = None
    if not asked.sampling.greedy:
        draws_BN = np.stack([sampler.draws(request.steps) for sampler in samplers])
    written = 0
    while request.steps:
        left = draws_BN[:, written:] if draws_BN is not None else None
        loop = session.token_loop(feeds, replace(request, draws_BN=left))
        read: list[list[int]] = []
        with closing(session.read_loop(loop, request.last_position)) as tokens:
            for ids in tokens:
                _require_chosen(session, ids, written + len(read) + 2)
                read.append(ids)
                yield [[token] for token in ids]
        # The cache is full, and another loop has more room.
        for ids in read:
            feeds = feeds.next_step(ids, request.last_position)
        written += len(read)
        request = asked.request(request.pad_token_id, request.last_position)


def _require_chosen(session: Session, ids: list[int], step: int) -> None:
    for row, token in enumerate(ids):
        if token < 0:
            raise not_finite_by_name(session.describe(), place_of(step, row), LOST[token])


def _shared_remaining_tokens(session: Session, feeds: Feeds) -> int:
    """Tokens that can be written where rows, padded together, fill the same columns of a cache that has an end."""
    if session.capacity is None or isinstance(feeds, RightPaddedFeeds):
        return session.config.max_positions
    return session.capacity - feeds.columns


def _row_sampling(sampling: Sampling, index: int) -> Sampling:
    seed = None if sampling.seed is None else sampling.seed + index
    return replace(sampling, seed=seed)


def _take(row: Generation, token: int, stopping: Stopping, limit: int, decode: Decode | None) -> None:
    if token in stopping.stop_ids:
        row.finish_reason = "stop"
        return
    row.ids.append(token)
    if decode is not None and stopping.stop_strings:
        text = decode(row.ids)
        if any(stop in text for stop in stopping.stop_strings):
            row.finish_reason = "stop"
            return
    if len(row.ids) >= stopping.max_new_tokens:
        row.finish_reason = "length"
    elif len(row.ids) >= limit:
        row.finish_reason = "context"


def generate_ids(
    session: Session,
    prompts: Sequence[Sequence[int] | Prompt],
    *,
    stopping: Stopping,
    sampling: Sampling | None = None,
    decode: Decode | None = None,
    drafts: DraftOptions | None = None,
) -> list[Generation]:
    """As :func:`generate_steps`, but only the finished rows."""
    steps = generate_steps(session, prompts, stopping=stopping, sampling=sampling, decode=decode, drafts=drafts)
    (rows,) = deque(steps, maxlen=1)
    return rows
