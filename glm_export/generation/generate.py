"""Tokens to tokens over any session, with its cache; batches of prompts of different lengths, streaming."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from glm_export.errors import InputError
from glm_export.generation.finite import require_finite
from glm_export.generation.sampling import Sampler, Sampling
from glm_export.generation.stopping import Decode, Stopping
from glm_export.inputs.feeds import Feeds, RightPaddedFeeds
from glm_export.inputs.prompts import Prompt
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
) -> Generator[list[Generation], None, None]:
    """Generate, handing out the state of all rows after each step.

    The session is this stream's from the first step on until it has ended, is closed or forgotten; its steps may be
    read in any thread.

    Args:
        session: its cache is taken over.
        prompts: token ids, or prompts, one a row; padded on the left together.
        stopping: when rows end. Stop strings need ``decode``.
        sampling: greedy when absent. Each row draws from its own stream, seeded ``seed + row``.
        decode: ids to text.

    Raises:
        InputError: an empty or too long prompt, or stop strings without ``decode``.
        SessionBusyError: the session has another user; :meth:`Session.exclusive` waits for it.
        NonFiniteError: logits of a row still written are NaN or infinite; rows written so far were handed out.
    """
    if stopping.stop_strings and decode is None:
        raise InputError("stop strings need a tokenizer to decode with")
    built = [prompt if isinstance(prompt, Prompt) else session.prompt(prompt) for prompt in prompts]
    feeds = session.feeds(built)
    limits = [min(session.remaining_tokens(prompt), _shared_remaining_tokens(session, feeds)) for prompt in built]
    last_position = session.last_position(feeds)
    sampling = sampling or Sampling()
    rows = [Generation(prompt=prompt) for prompt in built]
    samplers = [Sampler(_row_sampling(sampling, index)) for index in range(len(rows))]
    with session.stream() as turn:
        logits_BV = feeds.last_logits(session.prefill(feeds))
        for step in count(1):
            require_finite(session, logits_BV, step, [at for at, row in enumerate(rows) if not row.finish_reason])
            next_ids = []
            for index, (row, sampler, limit) in enumerate(zip(rows, samplers, limits, strict=True)):
                if row.finish_reason:
                    next_ids.append(session.config.pad_token_id)
                    continue
                token = sampler.choose(logits_BV[index], [*row.prompt.ids, *row.ids])
                next_ids.append(token)
                _take(row, token, stopping, limit, decode)
            if all(row.finish_reason for row in rows):
                break
            turn.pause()
            yield rows
            turn.resume()
            feeds = feeds.next_step(next_ids, last_position)
            logits_BV = feeds.last_logits(session.decode(feeds))
    # Whoever stops reading here leaves the session free.
    yield rows


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
) -> list[Generation]:
    """As :func:`generate_steps`, but only the finished rows."""
    (rows,) = deque(generate_steps(session, prompts, stopping=stopping, sampling=sampling, decode=decode), maxlen=1)
    return rows
