"""How far a program is from its reference, on text: what quantizing cost.

Both read the same ids, each token given the true ones before it, and what they predict is compared token by token.
Then both write. Torch is not needed: an exported folder can be measured against another one.

Shapes: B batch, S tokens, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glm_export.calibration import recipes
from glm_export.calibration.corpus import Corpus, Sample, Task
from glm_export.calibration.recipe import ChannelWeights
from glm_export.errors import InputError
from glm_export.feeds import Prompt
from glm_export.generation import Stopping, generate_ids
from glm_export.progress import Advance, Progress, Silent
from glm_export.sessions import Logits, Session
from glm_export.tokenizers import Tokenizer, stop_ids

BATCH_BYTES = 256 << 20
"""Logits of one batch take no more, unless one row alone does."""
BATCH_ROWS = 64
BLOCK_BYTES = 32 << 20
LIKELIEST = 5
KL = 2
LIMITS = {
    "kl": "KL {found} nats a token, {limit} allowed",
    "perplexity": "perplexity {found} times the reference's, {limit} allowed",
    "top1": "top-1 agreement {found}, {limit} expected",
    "top5": "top-5 agreement {found}, {limit} expected",
    "recall": "recall {found} of the reference's, {limit} expected",
}
"""What a budget can limit, and the sentence where the limit is broken."""
SHARES = ("top1", "top5", "recall")
"""Limits to be reached, of 1; the others are not to be exceeded."""
HIGHEST = 1e6  # infinity would allow anything
NUMBER = re.compile(r"\d*\.?\d+([eE][-+]?\d+)?")

Figures = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """What separates a candidate from its reference.

    ``tokens`` were predicted, in ``samples``; figures are means over them. Perplexity: ``exp(mean(-log p(true
    token)))``. ``kl``: ``sum(p * (log p - log q))`` over the vocabulary, p the reference's distribution, q the
    candidate's, in nats (Kullback and Leibler 1951); ``kl_99``: its 99th percentile, by nearest rank. ``top1``: share
    of tokens where both find the same one likeliest. ``top5``: how many of the reference's five likeliest are among
    the candidate's, over five, in any order. ``worst_sample``: index in the corpus of the largest mean KL, which is
    ``worst_kl``. Where the candidate's logits are no numbers, its KL and perplexity are infinite and nothing agrees.

    ``greedy_rows`` prompts were continued by both, up to ``greedy_tokens`` tokens or the end of the text.
    ``greedy_identical`` came out alike; ``greedy_first_difference`` is the median step (the first token is step 1)
    where the others part, None where none does. ``tasks`` were asked, of which each side did so many exactly.
    """

    corpus: dict[str, Any]
    samples: int
    tokens: int
    reference_perplexity: float
    candidate_perplexity: float
    kl: float
    kl_99: float
    kl_largest: float
    top1: float
    top5: float
    worst_sample: int
    worst_kl: float
    greedy_rows: int
    greedy_tokens: int
    greedy_identical: int
    greedy_first_difference: float | None
    tasks: int
    reference_exact: int
    candidate_exact: int

    @property
    def perplexity_ratio(self) -> float:
        """The candidate's perplexity over the reference's."""
        return self.candidate_perplexity / self.reference_perplexity

    @property
    def greedy_share(self) -> float | None:
        """Share of greedy rows that are identical; None where none was written."""
        return self.greedy_identical / self.greedy_rows if self.greedy_rows else None

    @property
    def recall(self) -> float | None:
        """Tasks the candidate does exactly over those the reference does; None where it does none."""
        return self.candidate_exact / self.reference_exact if self.reference_exact else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, shares and ratios included; infinity, which JSON has not, as the text ``"Infinity"``."""
        values = asdict(self) | {name: getattr(self, name) for name in ("perplexity_ratio", "greedy_share", "recall")}
        return {name: "Infinity" if value == math.inf else value for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What quantizing may cost: names of :data:`LIMITS`, and for each the largest value, or the least share."""

    limits: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, texts: str | Sequence[str]) -> Budget:
        """Read ``kl=0.01,top1=0.99``, or several such texts.

        Raises:
            InputError: no limit, an unknown or repeated name, or a number the name does not take.
        """
        limits: dict[str, float] = {}
        for part in ",".join([texts] if isinstance(texts, str) else texts).split(","):
            name, _, text = (piece.strip() for piece in part.partition("="))
            number = float(text) if NUMBER.fullmatch(text) else math.inf
            if name not in LIMITS or name in limits or number > (1 if name in SHARES else HIGHEST):
                raise InputError(
                    f"a budget is NAME=NUMBER, each name once: kl and perplexity with at most {HIGHEST:g}, "
                    f"{', '.join(SHARES)} with at most 1; found {part.strip()!r}; write for example kl=0.01,top1=0.99"
                )
            limits[name] = number
        return cls(limits=tuple(limits.items()))

    def broken(self, report: QualityReport) -> list[str]:
        """One sentence for each limit that is exceeded; empty where the report keeps to the budget.

        Raises:
            InputError: recall is limited, and there was no task, or none that the reference did exactly.
        """
        sentences = []
        for name, limit in self.limits:
            found = getattr(report, "perplexity_ratio" if name == "perplexity" else name)
            if found is None:
                raise InputError(f"a recall budget needs tasks the reference does, found 0 of {report.tasks}; add some")
            # A figure that is no number keeps no limit.
            if not (found >= limit if name in SHARES else found <= limit):
                # As many digits as tell the two apart.
                digits = next((n for n in range(3, 17) if f"{found:.{n}g}" != f"{limit:.{n}g}"), 17)
                sentences.append(LIMITS[name].format(found=f"{found:.{digits}g}", limit=f"{limit:g}"))
        return sentences


class _Row(NamedTuple):
    """A prompt, what of it is read before the first prediction, and how many ids are predicted."""

    prompt: Prompt
    beginning: Prompt
    predicted: int


def row_logits(session: Session, prompts: Sequence[Prompt], first: Sequence[int]) -> Iterator[Logits]:
    """What a session predicts for each row's ids, given the true ones before each.

    A session with logits of all tokens reads a padded batch at once; one with those of the last token alone reads up
    to the first predicted id, and from there one id at a time. One batch is in memory, of :data:`BATCH_BYTES` at most;
    neighbours of like length need the least padding. In steps, what a recipe costs in reading prompts hardly shows:
    where it has another form for them, or one scale a call, measure a program with logits of all tokens as well.

    Args:
        session: its cache is taken over.
        prompts: of any lengths.
        first: for each the index of the first predicted id; for prefix families behind ``<sop>``.

    Yields:
        For each prompt float32 ``[S - first, V]``; row ``k`` predicts ``ids[first + k]``.

    Raises:
        InputError: an index that leaves nothing to read or to predict, or what the session refuses.
    """
    rows: list[_Row] = []
    for prompt, start in zip(prompts, first, strict=True):
        if not prompt.context_length < start < len(prompt.ids):
            raise InputError(
                f"some of {len(prompt.ids)} ids should be predicted, found {start} first; leave the row out"
            )
        rows.append(_Row(prompt, replace(prompt, ids=prompt.ids[:start]), len(prompt.ids) - start))
    if rows:
        # Two tokens tell what the session gives.
        two = replace(rows[0].prompt, ids=rows[0].prompt.ids[:2], context_length=0, mask_position=0)
        read = _read_at_once if session.prefill(session.feeds([two])).shape[1] > 1 else _read_in_steps
        for group in _groups(session, rows):
            yield from read(session, group)


def rows_at_once(session: Session) -> int:
    """How many rows may stand in a batch and not change each other's answers.

    Products with one scale for the whole tensor (recipe int8-dynamic) round a row by what stands beside it, and forms
    that change with the number of tokens (int4-int8-prompt) are another model in a batch. Alone is how one user runs.
    """
    program, most = getattr(session, "program", None), min(BATCH_ROWS, session.max_rows or BATCH_ROWS)
    if program is None or program.recipe is None:
        return most
    recipe = recipes.load(program.recipe).carried_by(program.dialect)
    forms = (recipe.layers, recipe.head, recipe.prompt)
    return 1 if any(isinstance(form, ChannelWeights) for form in forms) else most


def _groups(session: Session, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Neighbours that fit one batch, in bytes of logits and in columns of the cache."""
    most, group = rows_at_once(session), list(rows[:1])
    for row in rows[1:]:
        wanted = [*group, row]
        # The longest beginning and the longest rest may come from different rows.
        longest = max(one.predicted for one in wanted)
        columns = longest + max(len(one.beginning.ids) for one in wanted)
        small = 4 * len(wanted) * columns * session.config.vocab_size <= BATCH_BYTES
        if len(wanted) > most or not small or min(session.room(one.beginning) for one in wanted) < longest:
            yield group
            wanted = [row]
        group = wanted
    yield group


def _read_at_once(session: Session, rows: Sequence[_Row]) -> Iterator[Logits]:
    """The last id is only predicted."""
    feeds = session.feeds([replace(row.prompt, ids=row.prompt.ids[:-1]) for row in rows])
    logits_BSV = session.prefill(feeds)
    for row, logits_SV, last in zip(rows, logits_BSV, feeds.last_token_ids, strict=True):
        yield logits_SV[last + 1 - row.predicted : last + 1]


def _read_in_steps(session: Session, rows: Sequence[_Row]) -> Iterator[Logits]:
    """The whole batch before its first row is given out: whoever takes it may use the session in between."""
    feeds = session.feeds([row.beginning for row in rows])
    logits_BV = feeds.last_logits(session.prefill(feeds))
    found = [np.empty((row.predicted, logits_BV.shape[-1]), np.float32) for row in rows]
    longest, last_position = max(row.predicted for row in rows), max(len(row.prompt.ids) for row in rows) - 1
    for step in range(longest):
        for row, kept_SV, logits_V in zip(rows, found, logits_BV, strict=True):
            if step < row.predicted:
                kept_SV[step] = logits_V
        if step + 1 < longest:
            next_ids = [row.prompt.ids[min(step - row.predicted, -1)] for row in rows]
            feeds = feeds.followed_by(next_ids, last_position)
            logits_BV = feeds.last_logits(session.decode(feeds))
    yield from found


def _compare(reference_SV: Logits, candidate_SV: Logits, ids: Sequence[int]) -> Figures:
    """``[S, 5]``: negative log-likelihood for the reference, for the candidate, KL, top-1 and top-5 agreement."""
    # In blocks: float64 of a large vocabulary takes gigabytes.
    size = max(1, BLOCK_BYTES // (8 * reference_SV.shape[-1]))
    blocks = [slice(start, start + size) for start in range(0, len(ids), size)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([_compare_block(reference_SV[at], candidate_SV[at], np.array(ids[at])) for at in blocks])


def _compare_block(reference_SV: Logits, candidate_SV: Logits, ids_S: NDArray[np.int64]) -> Figures:
    log_p_SV, log_q_SV = _log_softmax(reference_SV), _log_softmax(candidate_SV)
    if np.isnan(log_p_SV).any():
        raise InputError("the reference's logits should be numbers, found NaN or infinity; check it, or its dtype")
    lost_S = np.isnan(log_q_SV).any(axis=-1)
    # Probability 0 for every token: infinitely far from any reference.
    log_q_SV[lost_S] = -np.inf
    p_SV = np.exp(log_p_SV)
    # What the reference never says adds nothing, even where the candidate's logarithm is infinite.
    kl_S = np.where(p_SV > 0, p_SV * (log_p_SV - log_q_SV), 0.0).sum(axis=-1)
    likeliest = min(LIKELIEST, log_p_SV.shape[-1])
    best_p, best_q = (np.argpartition(log_SV, -likeliest)[:, -likeliest:] for log_SV in (log_p_SV, log_q_SV))
    top1_S = log_p_SV.argmax(axis=-1) == log_q_SV.argmax(axis=-1)
    top5_S = (best_p[:, :, None] == best_q[:, None, :]).sum(axis=(1, 2)) / likeliest
    rows = np.arange(len(ids_S))
    # KL is below 0 only by rounding.
    columns = (-log_p_SV[rows, ids_S], -log_q_SV[rows, ids_S], np.maximum(kl_S, 0), top1_S * ~lost_S, top5_S * ~lost_S)
    return np.stack(columns, axis=-1)


def _log_softmax(logits_SV: Logits) -> Figures:
    """In float64; a row with NaN or plus infinity becomes NaN."""
    wide_SV = logits_SV.astype(np.float64)
    shifted_SV = wide_SV - wide_SV.max(axis=-1, keepdims=True)
    return shifted_SV - np.log(np.exp(shifted_SV).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


def measure(
    reference: Session,
    candidate: Session,
    corpus: Corpus,
    *,
    greedy_tokens: int = 64,
    greedy_rows: int = 16,
    tasks: int | None = None,
    progress: Progress | None = None,
) -> QualityReport:
    """Run both over a corpus and compare.

    Args:
        reference: in PyTorch, or a program that is not quantized; its tokenizer reads the answers.
        candidate: may be the same session.
        corpus: of the model's own ids; samples with nothing to predict are passed over.
        greedy_tokens: written after each greedy prompt, at most.
        greedy_rows: so many samples, evenly spaced; each is continued from its middle, or from its task's prompt.
        tasks: ask so many, evenly spaced; None asks all. An answer is exact if it begins with the completion's lines.
        progress: shows samples read and texts written.

    Raises:
        InputError: two vocabularies, nothing to predict, a sample one side has no room for, a negative count, or a
            reference whose logits are no numbers.
    """
    sizes = [session.config.vocab_size for session in (reference, candidate)]
    if sizes[0] != sizes[1]:
        raise InputError(f"both should have one vocabulary, found {sizes[0]} and {sizes[1]} tokens; compare one model")
    if min(greedy_tokens - 1, greedy_rows, tasks or 0) < 0:
        raise InputError(f"counts should not be negative, found {greedy_tokens=}, {greedy_rows=}, {tasks=}; raise them")
    samples = {index: one for index, one in enumerate(corpus.samples) if one.counted_from < len(one.prompt.ids)}
    if not samples:
        raise InputError(f"{corpus.name} should have text to predict, found none; take another corpus")
    known = [sample.task for sample in corpus.samples if sample.task]
    asked = [known[index] for index in _evenly_spaced(len(known), len(known) if tasks is None else tasks)]
    continued = [_opening([*samples.values()][index]) for index in _evenly_spaced(len(samples), greedy_rows)]
    progress = progress or Silent()
    predicted = _predicted(reference, candidate, samples, progress.task("samples read", len(samples)))
    advance = progress.task("texts written", 2 * (len(continued) + len(asked)))
    ends = frozenset(stop_ids(reference.config, reference.tokenizer))
    limits = [max(1, min(greedy_tokens, *(one.room(prompt) for one in (reference, candidate)))) for prompt in continued]
    texts = [_written(session, continued, limits, ends, advance) for session in (reference, candidate)]
    # First steps that differ; an equal row has none.
    steps = [[n for n, (a, b) in enumerate(zip_longest(*pair), 1) if a != b][:1] for pair in zip(*texts, strict=True)]
    partings = [step for found in steps for step in found]
    exact = [_exact(session, asked, reference.tokenizer, ends, advance) for session in (reference, candidate)]
    return QualityReport(
        corpus=corpus.to_json(), samples=len(samples), **predicted,
        greedy_rows=len(continued), greedy_tokens=greedy_tokens, greedy_identical=len(continued) - len(partings),
        greedy_first_difference=median(partings) if partings else None,
        tasks=len(asked), reference_exact=exact[0], candidate_exact=exact[1],
    )  # fmt: skip


def _evenly_spaced(count: int, most: int) -> list[int]:
    return [index * count // most for index in range(most)] if most < count else list(range(count))


def _predicted(reference: Session, candidate: Session, samples: dict[int, Sample], advance: Advance) -> dict[str, Any]:
    """The report's figures of tokens."""
    # Rows of like length side by side need the least padding.
    order = sorted(samples, key=lambda index: len(samples[index].prompt.ids))
    prompts, first = [samples[index].prompt for index in order], [samples[index].counted_from for index in order]
    figures: list[Figures] = []
    sides = (row_logits(session, prompts, first) for session in (reference, candidate))
    for prompt, start, one_SV, other_SV in zip(prompts, first, *sides, strict=True):
        figures.append(_compare(one_SV, other_SV, prompt.ids[start:]))
        advance(1)
    every = np.concatenate(figures)
    kl, kl_by_sample = np.sort(every[:, KL]), [float(one[:, KL].mean()) for one in figures]
    worst = max(range(len(order)), key=kl_by_sample.__getitem__)
    with np.errstate(over="ignore"):
        perplexities = np.exp(every[:, :KL].mean(axis=0)).tolist()
    mean_kl, top1, top5 = every[:, KL:].mean(axis=0).tolist()
    return {
        "tokens": len(every), "reference_perplexity": perplexities[0], "candidate_perplexity": perplexities[1],
        "kl": mean_kl, "kl_99": float(kl[math.ceil(0.99 * len(kl)) - 1]), "kl_largest": float(kl[-1]),
        "top1": top1, "top5": top5, "worst_sample": order[worst], "worst_kl": kl_by_sample[worst],
    }  # fmt: skip


def _opening(sample: Sample) -> Prompt:
    """What is given of a sample to be continued."""
    if sample.task:
        return sample.task.prompt
    ids = sample.prompt.ids
    return replace(sample.prompt, ids=ids[: max(sample.counted_from, len(ids) // 2)])


def _written(
    session: Session, prompts: Sequence[Prompt], limits: Sequence[int], ends: frozenset[int], advance: Advance
) -> list[list[int]]:
    """Greedy ids behind each prompt, as many as its limit."""
    size, rows = rows_at_once(session), []
    for start in range(0, len(prompts), size):
        group, most = prompts[start : start + size], max(limits[start : start + size])
        # A row that is full cannot wait for others in a static cache.
        batches = [group] if min(map(session.room, group)) >= most else [[prompt] for prompt in group]
        for batch in batches:
            rows += generate_ids(session, batch, stopping=Stopping(max_new_tokens=most, stop_ids=ends))
            advance(len(batch))
    return [row.ids[:limit] for row, limit in zip(rows, limits, strict=True)]


def _exact(session: Session, asked: list[Task], tokenizer: Tokenizer, ends: frozenset[int], advance: Advance) -> int:
    """How many answers begin with the completion, line by line."""
    rows = _written(session, [task.prompt for task in asked], [task.longest for task in asked], ends, advance)
    exact = 0
    for task, ids in zip(asked, rows, strict=True):
        answer, expected = (text.strip().split("\n") for text in (tokenizer.decode(ids), task.completion))
        exact += [line.strip() for line in answer[: len(expected)]] == [line.strip() for line in expected]
    return exact
