"""How far a program is from its reference, on text: what quantizing cost.

Both read the same ids, each token given the true ones before it, and what they predict is compared token by token.
Then both write. Torch is not needed: an exported folder can be measured against another one.

Shapes: B batch, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.calibration.corpus.corpus import Corpus, Sample, Task
from glm_export.errors import ComparisonFailedError, InputError, NonFiniteError
from glm_export.evaluation.logits import row_logits, rows_at_once
from glm_export.evaluation.report import QualityReport
from glm_export.evaluation.statistics import flips_of, statistics_of
from glm_export.generation.finite import lost_rows, not_finite
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.sessions.session import Logits, Session, SessionDescription
from glm_export.tokenizers import Tokenizer, stop_ids

BLOCK_BYTES = 32 << 20
LIKELIEST = 5
KL, TOP5 = 2, 3
"""Columns of :func:`compare_predictions`."""

Figures = NDArray[np.float64]


def compare_predictions(reference_SV: Logits, candidate_SV: Logits, ids: Sequence[int]) -> Figures:
    """``[S, 7]``: negative log-likelihood for the reference, for the candidate, KL, top-5 agreement, three of 0 or 1.

    Those say whether both have the same likeliest token, whether the reference's is the true one, and the candidate's.

    Args:
        reference_SV: logits, finite but for minus infinity.
        candidate_SV: the same.
        ids: the true tokens, S of them.
    """
    # In blocks: float64 of a large vocabulary takes gigabytes.
    size = max(1, BLOCK_BYTES // (8 * reference_SV.shape[-1]))
    blocks = [slice(start, start + size) for start in range(0, len(ids), size)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([_compare_block(reference_SV[at], candidate_SV[at], np.array(ids[at])) for at in blocks])


def _compare_block(reference_SV: Logits, candidate_SV: Logits, ids_S: NDArray[np.int64]) -> Figures:
    log_p_SV, log_q_SV = _log_softmax(reference_SV), _log_softmax(candidate_SV)
    p_SV = np.exp(log_p_SV)
    # What the reference never says adds nothing, even where the candidate's logarithm is infinite.
    kl_S = np.where(p_SV > 0, p_SV * (log_p_SV - log_q_SV), 0.0).sum(axis=-1)
    likeliest = min(LIKELIEST, log_p_SV.shape[-1])
    best_p, best_q = (np.argpartition(log_SV, -likeliest)[:, -likeliest:] for log_SV in (log_p_SV, log_q_SV))
    first_p_S, first_q_S = log_p_SV.argmax(axis=-1), log_q_SV.argmax(axis=-1)
    top5_S = (best_p[:, :, None] == best_q[:, None, :]).sum(axis=(1, 2)) / likeliest
    rows = np.arange(len(ids_S))
    # KL is below 0 only by rounding.
    columns = (-log_p_SV[rows, ids_S], -log_q_SV[rows, ids_S], np.maximum(kl_S, 0), top5_S)
    best = (first_p_S == first_q_S, first_p_S == ids_S, first_q_S == ids_S)
    return np.stack((*columns, *best), axis=-1)


def _log_softmax(logits_SV: Logits) -> Figures:
    """In float64; minus infinity stays what it is."""
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
        InputError: two vocabularies, nothing to predict, a sample one side has no room for, or a negative count.
        NonFiniteError: the reference's logits are NaN or infinite.
        ComparisonFailedError: the candidate's are.
    """
    sizes = [session.config.vocab_size for session in (reference, candidate)]
    if sizes[0] != sizes[1]:
        raise InputError(f"both should have one vocabulary, found {sizes[0]} and {sizes[1]} tokens; compare one model")
    if min(greedy_tokens - 1, greedy_rows, tasks or 0) < 0:
        raise InputError(f"counts should not be negative, found {greedy_tokens=}, {greedy_rows=}, {tasks=}; raise them")
    samples = predicted_samples(corpus)
    known = [sample.task for sample in corpus.samples if sample.task]
    asked = [known[index] for index in _evenly_spaced(len(known), len(known) if tasks is None else tasks)]
    continued = [_opening([*samples.values()][index]) for index in _evenly_spaced(len(samples), greedy_rows)]
    progress = progress or NullProgress()
    predicted = _predicted(reference, candidate, samples, progress.task("samples read", len(samples)))
    advance = progress.task("texts written", 2 * (len(continued) + len(asked)))
    ends = frozenset(stop_ids(reference.config, reference.tokenizer))
    partings = _partings(reference, candidate, continued, greedy_tokens, ends, advance)
    before = _answered(reference, asked, reference.tokenizer, ends, advance)
    with judged():
        after = _answered(candidate, asked, reference.tokenizer, ends, advance)
    return QualityReport(
        corpus=corpus.to_json(), samples=len(samples), **predicted,
        greedy_rows=len(continued), greedy_tokens=greedy_tokens, greedy_identical=len(continued) - len(partings),
        greedy_first_difference=median(partings) if partings else None,
        tasks=len(asked), reference_exact=sum(right for _, right in before),
        candidate_exact=sum(right for _, right in after),
        answer_flips=flips_of([(a == b, right, now) for (a, right), (b, now) in zip(before, after, strict=True)]),
    )  # fmt: skip


def predicted_samples(corpus: Corpus) -> dict[int, Sample]:
    """Samples with something to predict, by their number.

    Raises:
        InputError: there is none.
    """
    samples = {index: one for index, one in enumerate(corpus.samples) if one.counted_from < len(one.prompt.ids)}
    if not samples:
        raise InputError(f"{corpus.name} should have text to predict, found none; take another corpus")
    return samples


def _partings(
    reference: Session,
    candidate: Session,
    continued: Sequence[Prompt],
    greedy_tokens: int,
    ends: frozenset[int],
    advance: Advance,
) -> list[int]:
    """The first step at which greedy texts differ, of each prompt where they do."""
    limits = [
        max(1, min(greedy_tokens, *(one.remaining_tokens(prompt) for one in (reference, candidate))))
        for prompt in continued
    ]
    texts = [_written(reference, continued, limits, ends, advance)]
    with judged():
        texts.append(_written(candidate, continued, limits, ends, advance))
    # First steps that differ; an equal row has none.
    steps = [[n for n, (a, b) in enumerate(zip_longest(*pair), 1) if a != b][:1] for pair in zip(*texts, strict=True)]
    return [step for found in steps for step in found]


def _evenly_spaced(count: int, most: int) -> list[int]:
    return [index * count // most for index in range(most)] if most < count else list(range(count))


def _predicted(reference: Session, candidate: Session, samples: dict[int, Sample], advance: Advance) -> dict[str, Any]:
    """The report's figures of tokens."""
    # Rows of like length side by side need the least padding.
    order = sorted(samples, key=lambda index: len(samples[index].prompt.ids))
    prompts, first = [samples[index].prompt for index in order], [samples[index].counted_from for index in order]
    figures: list[Figures] = []
    sides = (row_logits(session, prompts, first) for session in (reference, candidate))
    for number, prompt, start, one_SV, other_SV in zip(order, prompts, first, *sides, strict=True):
        require_numbers(reference.describe(), one_SV, f"the reference, sample {number}", start)
        with judged():
            require_numbers(candidate.describe(), other_SV, f"the program, sample {number}", start)
        figures.append(compare_predictions(one_SV, other_SV, prompt.ids[start:]))
        advance(1)
    return summed_up(figures, order)


def summed_up(figures: Sequence[Figures], numbers: Sequence[int]) -> dict[str, Any]:
    """The report's figures of tokens.

    Args:
        figures: of each sample, from :func:`compare_predictions`.
        numbers: of the samples, in the corpus.
    """
    every = np.concatenate(figures)
    kl_by_sample = [float(one[:, KL].mean()) for one in figures]
    worst = max(range(len(numbers)), key=kl_by_sample.__getitem__)
    losses = every[:, :KL].T
    return {
        "tokens": len(every), "top5": float(every[:, TOP5].mean()),
        "statistics": statistics_of(losses[0], losses[1], every[:, KL], every[:, TOP5 + 1 :].astype(bool)),
        "worst_sample": numbers[worst], "worst_kl": kl_by_sample[worst],
    }  # fmt: skip


@contextmanager
def judged() -> Iterator[None]:
    """Within, the candidate runs: one that computes no numbers has failed the comparison."""
    try:
        yield
    except NonFiniteError as error:
        raise ComparisonFailedError(str(error)) from error


def require_numbers(described: SessionDescription, logits_SV: Logits, place: str, start: int) -> None:
    """See that predictions are distributions; ``start``: the first predicted id's place.

    Raises:
        NonFiniteError: naming the token.
    """
    lost = lost_rows(logits_SV)
    if lost:
        raise not_finite(described, f"{place}, its token {start + lost[0]}", logits_SV[lost[0]])


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
        batches = [group] if min(map(session.remaining_tokens, group)) >= most else [[prompt] for prompt in group]
        for batch in batches:
            rows += generate_ids(session, batch, stopping=Stopping(max_new_tokens=most, stop_ids=ends))
            advance(len(batch))
    return [row.ids[:limit] for row, limit in zip(rows, limits, strict=True)]


def _answered(
    session: Session, asked: list[Task], tokenizer: Tokenizer, ends: frozenset[int], advance: Advance
) -> list[tuple[list[str], bool]]:
    """Each answer's lines, as many as the completion has, and whether they are the completion's."""
    rows = _written(session, [task.prompt for task in asked], [task.longest for task in asked], ends, advance)
    answers = []
    for task, ids in zip(asked, rows, strict=True):
        answer, expected = (text.strip().split("\n") for text in (tokenizer.decode(ids), task.completion))
        lines = [line.strip() for line in answer[: len(expected)]]
        answers.append((lines, lines == [line.strip() for line in expected]))
    return answers
