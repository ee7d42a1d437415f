"""llama.cpp's columns, and flips: against numpy in float64 from definitions; controls that must not agree."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.corpus.corpus import Corpus
from glm_export.calibration.corpus.load import load_corpus
from glm_export.evaluation import measure as measures
from glm_export.evaluation.logits import row_logits
from glm_export.evaluation.report import QualityReport, QualityVerdict
from glm_export.evaluation.statistics import (
    PERCENTILES,
    Distribution,
    Estimate,
    Flips,
    PredictionStatistics,
    estimate,
    flips_of,
    statistics_of,
)
from glm_export.reports.records import Table
from glm_export.reports.run import Subject
from glm_export.reports.verbs.quality import quality_report
from glm_export.sessions.session import Session
from glm_export.terminal.quality import show_quality
from tests.helpers.altered_session import Altered
from tests.reports.examples import RUN

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
SHARES = (1, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0)


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1))[:, None]


def kl_of(reference: Array, candidate: Array) -> Array:
    base, q = log_softmax(reference), log_softmax(candidate)
    return (np.exp(base) * (base - q)).sum(-1)


def by_definition(reference: Array, candidate: Array, ids: Ids) -> dict[str, Any]:
    """Every figure from both sides' logits ``[S, V]``, as llama.cpp's kl_divergence() adds them up: sums of squares."""
    base, q, count = log_softmax(reference), log_softmax(candidate), len(ids)
    nll_base, nll = -base[range(count), ids], -q[range(count), ids]
    kld = kl_of(reference, candidate)
    shift = np.exp(q[range(count), ids]) - np.exp(base[range(count), ids])

    def mean_and_uncertainty(values: Array) -> tuple[float, float]:
        mean = values.sum() / count
        return mean, math.sqrt(((values**2).sum() / count - mean**2) / (count - 1))

    ln, ln_base = mean_and_uncertainty(nll), mean_and_uncertainty(nll_base)
    covariance = ((nll * nll_base).sum() / count - ln[0] * ln_base[0]) / (count - 1)
    ratio = ln[0] - ln_base[0], math.sqrt(ln[1] ** 2 + ln_base[1] ** 2 - 2 * covariance)
    ppl, ppl_base = math.exp(ln[0]), math.exp(ln_base[0])
    spread = (ppl * ln[1]) ** 2 + (ppl_base * ln_base[1]) ** 2 - 2 * ppl * ppl_base * covariance
    square = mean_and_uncertainty(shift**2)
    same = (base.argmax(-1) == q.argmax(-1)).mean()
    before, after = base.argmax(-1) == ids, q.argmax(-1) == ids
    return {
        "candidate_perplexity": (ppl, ppl * ln[1]), "reference_perplexity": (ppl_base, ppl_base * ln_base[1]),
        "perplexity_correlation": covariance / (ln[1] * ln_base[1]), "log_perplexity_ratio": ratio,
        "perplexity_ratio": (math.exp(ratio[0]), math.exp(ratio[0]) * ratio[1]),
        "perplexity_difference": (ppl - ppl_base, math.sqrt(spread)), "kl": mean_and_uncertainty(kld),
        "kl_distribution": np.quantile(kld, SHARES), "delta_p": mean_and_uncertainty(shift),
        "delta_p_distribution": np.quantile(shift, SHARES),
        "delta_p_rms": (math.sqrt(square[0]), 0.5 / math.sqrt(square[0]) * square[1]),
        "same_top": (same, math.sqrt(same * (1 - same) / (count - 1))),
        "flips": (int((before & ~after).sum()), int((~before & after).sum()),
                  int((~before & ~after & (base.argmax(-1) != q.argmax(-1))).sum())),
    }  # fmt: skip


def told(found: PredictionStatistics) -> dict[str, Any]:
    """The same figures, as the library has them."""
    values = {name: getattr(found, name) for name in PredictionStatistics.__dataclass_fields__}
    for name, one in values.items():
        if isinstance(one, Distribution):
            values[name] = [getattr(one, part) for part in PERCENTILES]
        elif isinstance(one, Flips):
            values[name] = (one.right_to_wrong, one.wrong_to_right, one.wrong_to_wrong)
        elif not isinstance(one, float):
            values[name] = (one.value, one.error)
    return values


def apart(found: dict[str, Any], expected: dict[str, Any]) -> set[str]:
    """Names of figures that are not the expected ones."""
    return {name for name in expected if not np.allclose(found[name], expected[name], rtol=1e-8, atol=1e-12)}


@pytest.fixture(scope="module")
def sides(demo_program: OnnxProgram) -> Iterator[tuple[Session, Session]]:
    """The embedded model, and itself with noise on its logits: enough for flips of every kind."""
    with api.load_session(demo_program) as session:
        noise_V = np.random.default_rng(0).normal(0, 4, session.config.vocab_size).astype(np.float32)
        yield session, Altered(session, lambda logits, _: logits + noise_V)


@pytest.fixture(scope="module")
def corpus(sides: tuple[Session, Session]) -> Corpus:
    session = sides[0]
    return load_corpus("poems", session.tokenizer, session.config, sequence_length=64, max_samples=48)


@pytest.fixture(scope="module")
def given(sides: tuple[Session, Session], corpus: Corpus) -> tuple[Array, Array, Ids]:
    """All logits of both sides, float64 ``[S, V]``, and the true ids."""
    samples = sorted(corpus.samples, key=lambda sample: len(sample.prompt.ids))
    prompts, first = [sample.prompt for sample in samples], [sample.counted_from for sample in samples]
    p, q = (np.concatenate([*row_logits(side, prompts, first)]).astype(np.float64) for side in sides)
    return p, q, np.concatenate([np.array(prompt.ids[start:]) for prompt, start in zip(prompts, first, strict=True)])


@pytest.fixture(scope="module")
def report(sides: tuple[Session, Session], corpus: Corpus) -> QualityReport:
    return measures.measure(*sides, corpus, greedy_rows=0, tasks=24)


def test_every_figure_is_its_definition(report: QualityReport, given: tuple[Array, Array, Ids]) -> None:
    expected, found = by_definition(*given), told(report.statistics)
    assert report.tokens == len(given[2]) > 1000
    assert found.keys() == expected.keys()
    assert min(expected["flips"]) > 0
    assert apart(found, expected) == set()
    assert (report.kl_99, report.kl_largest) == (report.statistics.kl_distribution.p99, found["kl_distribution"][0])
    p, q, ids = given
    # Controls: the sides exchanged, texts one token off, and another rule for percentiles are all seen.
    assert apart(found, by_definition(q, p, ids)) == set(expected) - {
        "perplexity_correlation",
        "same_top",
        "delta_p_rms",
    }
    assert apart(found, by_definition(p, q, np.roll(ids, 1))) >= set(expected) - {"kl", "kl_distribution", "same_top"}
    nearest = {"kl_distribution": np.quantile(kl_of(p, q), SHARES, method="higher")}
    assert apart(found, nearest) == {"kl_distribution"}


def test_answers_that_flip_are_counted(report: QualityReport) -> None:
    flips = report.answer_flips
    assert report.tasks == 24
    assert report.reference_exact - report.candidate_exact == flips.right_to_wrong - flips.wrong_to_right > 0
    answers = [(True, True, True)] * 5 + [(False, True, False)] * 3 + [(False, False, True)] * 2
    found = flips_of([*answers, (False, False, False), (True, False, False)])
    assert found == Flips(right_to_wrong=3, wrong_to_right=2, wrong_to_wrong=1)
    assert (found.flips, found.changed) == (5, 6)
    assert flips_of([]) == Flips(right_to_wrong=0, wrong_to_right=0, wrong_to_wrong=0)


def test_nothing_apart_has_no_error(sides: tuple[Session, Session], corpus: Corpus) -> None:
    found = measures.measure(sides[0], sides[0], corpus, greedy_rows=0, tasks=0).statistics
    assert {found.kl.error, found.delta_p.error, found.delta_p_rms.error, found.log_perplexity_ratio.error} == {0.0}
    assert found.perplexity_correlation == pytest.approx(1)
    assert found.flips.changed == 0
    assert found.reference_perplexity == found.candidate_perplexity
    assert found.reference_perplexity.error is not None
    assert found.reference_perplexity.error > 0


def test_few_and_infinite_tokens() -> None:
    """One token has no error; infinity stays infinite, is no NaN, and leaves the percentiles below it alone."""
    one = statistics_of(np.array([1.0]), np.array([2.0]), np.array([0.5]), np.array([[True, False, False]]))
    assert (one.kl.value, one.kl.error, one.same_top.error, one.perplexity_correlation) == (0.5, None, None, None)
    assert (one.kl_distribution.maximum, one.kl_distribution.p1, one.kl_distribution.minimum) == (0.5, 0.5, 0.5)
    losses = np.array([1.0, 2.0, 3.0, np.inf])
    far = statistics_of(np.arange(4.0), losses, losses, np.ones((4, 3), bool))
    assert math.inf == far.kl.value == far.kl.error == far.candidate_perplexity.value == far.candidate_perplexity.error
    assert math.inf == far.perplexity_ratio.value == far.perplexity_ratio.error == far.perplexity_difference.error
    assert far.perplexity_correlation is None
    assert (far.kl_distribution.maximum, far.kl_distribution.median, far.kl_distribution.minimum) == (math.inf, 2.5, 1)
    assert math.isfinite(far.delta_p.value)
    assert Distribution.of(np.arange(1001.0)[::-1]).p99_9 == 999
    assert estimate(np.array([1.0, 3.0])) == Estimate(value=2.0, error=1.0)


def test_the_same_numbers_everywhere(report: QualityReport) -> None:
    """On the terminal, in JSON, and on the page of a report."""
    found = report.statistics
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["statistics"]["kl"] == {"value": found.kl.value, "error": found.kl.error}
    assert values["statistics"]["kl_distribution"]["p99_9"] == found.kl_distribution.p99_9
    assert values["statistics"]["flips"]["flips"] == found.flips.flips
    assert values["answer_flips"]["right_to_wrong"] == report.answer_flips.right_to_wrong
    console = Console(width=120, file=io.StringIO())
    show_quality(console, report, "out", None)
    assert isinstance(console.file, io.StringIO)
    shown = re.sub(r" +", " ", console.file.getvalue())
    assert f"mean {found.kl.value:.2e} ± {found.kl.error:.2e}" in shown
    assert f"99.9 % {found.kl_distribution.p99_9:.2e} {100 * found.delta_p_distribution.p99_9:.3f}" in shown
    assert f"{found.flips.right_to_wrong:,} right to wrong" in shown
    verdict = QualityVerdict(report=report, corpus={"name": "poems"})
    section = quality_report(verdict, None, Subject(name="program", against="checkpoint"), RUN).sections[0]
    tables = {item.title: item for item in section.items if isinstance(item, Table)}
    by_name = {row[0]: row for row in tables["As llama.cpp prints it"].rows}
    assert by_name["Mean KLD"][1:3] == (found.kl.value, found.kl.error)
    assert by_name["RMS Δp"][1] == 100 * found.delta_p_rms.value
    assert len(by_name) == 10
    percentiles = {row[0]: row[1:] for row in tables["Percentiles of tokens"].rows}
    assert percentiles["99.9 %"] == (found.kl_distribution.p99_9, 100 * found.delta_p_distribution.p99_9)
