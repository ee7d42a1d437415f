"""Quality: figures as computed by hand, on both ways of reading and in every padding; controls that must be worse."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from glm_export import api
from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.calibration.corpus.load import load_corpus
from glm_export.errors import ComparisonFailedError, InputError, NonFiniteError
from glm_export.evaluation import logits as batching, measure as measures
from glm_export.evaluation.budget import Budget
from glm_export.evaluation.logits import row_logits, rows_at_once
from glm_export.evaluation.report import QualityReport
from glm_export.evaluation.statistics import Estimate
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.sessions.onnxruntime.saturation import adds_in_16_bits
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Logits, Session
from glm_export.sessions.torch import TorchSession
from glm_export.terminal.quality import show_quality
from tests.helpers.altered_session import Altered

PROGRAMS: dict[str, dict[str, Any]] = {
    "onnx": {},
    "onnx, last logits": {"logits": "last"},
    "ort": {"dialect": "ort"},
    "ort, all logits": {"dialect": "ort", "logits": "all"},
    "static": {"dialect": "tensorrt", "logits": "last"},
    "int8": {"dialect": "ort", "recipe": "int8-weights"},
    "int8, all logits": {"dialect": "ort", "recipe": "int8-weights", "logits": "all"},
    "int8-dynamic": {"dialect": "ort", "recipe": "int8-dynamic"},
}
MODELS = {"demo": 150, "demo-glm": 92}  # tokens a static cache holds: those of the longest row below
READ = {
    "demo": ("torch", "onnx", "ort", "ort, all logits", "static"),
    "demo-glm": ("torch", "onnx", "onnx, last logits", "static"),
}
QUICK: dict[str, Any] = {"greedy_rows": 0, "tasks": 0}
Load = Callable[..., Session]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Sessions by name, each made once; "noisy" is the model with noise on its weights."""
    root, threads = tmp_path_factory.mktemp("quality"), torch.get_num_threads()
    # Where other processes run, two threads wait for each other in every one of these small products.
    torch.set_num_threads(1)
    with ExitStack() as stack:

        @cache
        def made(kind: str, model: str) -> Session:
            if kind in PROGRAMS:
                options = PROGRAMS[kind] | ({"max_length": MODELS[model]} if kind == "static" else {})
                return stack.enter_context(api.load_session(api.export(model, root / model / kind, **options)))
            session = stack.enter_context(api.load_session(model))
            assert isinstance(session, TorchSession)
            random = torch.Generator().manual_seed(0)
            for parameter in session.model.parameters() if kind == "noisy" else ():
                parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=random))
            return session

        yield lambda kind="onnx", model="demo": made(kind, model)
    torch.set_num_threads(threads)


def corpus_for(session: Session, samples: int = 6, source: str | Path = "poems", length: int = 64) -> Corpus:
    return load_corpus(source, session.tokenizer, session.config, sequence_length=length, max_samples=samples)


def by_hand(session: Session, sample: Sample) -> torch.Tensor:
    """Logits of what is counted, float64: the whole row in one call, alone."""
    logits = torch.from_numpy(session.prefill(prefill_feeds([sample.prompt], session.config))[0]).double()
    return logits[sample.counted_from - 1 : -1]


def predicted(report: QualityReport) -> dict[str, Any]:
    names = ("reference_perplexity", "candidate_perplexity", "kl", "kl_99", "kl_largest", "top1", "top5", "worst_kl")
    return {name: getattr(report, name) for name in names}


def figures(report: QualityReport, **changed: float) -> QualityReport:
    """The report with other numbers in its statistics."""
    estimates = {name: Estimate(value=value, error=0.0) for name, value in changed.items()}
    return replace(report, statistics=replace(report.statistics, **estimates))


@pytest.mark.parametrize("model", MODELS)
def test_figures_are_those_computed_by_hand(model: str, load: Load) -> None:
    reference, other = load("torch", model), load("noisy", model)
    corpus = corpus_for(reference, 24)
    report = measures.measure(reference, other, corpus, **QUICK)
    losses: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    kl, top1, top5 = [], [], []
    for sample in corpus.samples:
        ids = torch.tensor(sample.prompt.ids[sample.counted_from :])
        p, q = by_hand(reference, sample), by_hand(other, sample)
        for kept, logits in zip(losses, (p, q), strict=True):
            kept.append(torch.nn.functional.cross_entropy(logits, ids, reduction="none"))
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        kl.append(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
        top1 += (p.argmax(-1) == q.argmax(-1)).tolist()
        nearest = zip(p.topk(5).indices.tolist(), q.topk(5).indices.tolist(), strict=True)
        top5 += [len({*a} & {*b}) / 5 for a, b in nearest]
    every = torch.cat(kl)
    assert predicted(report) == pytest.approx(
        {
            "reference_perplexity": float(torch.cat(losses[0]).mean().exp()),
            "candidate_perplexity": float(torch.cat(losses[1]).mean().exp()), "kl": float(every.mean()),
            "kl_99": float(every.quantile(0.99, interpolation="linear")), "kl_largest": float(every.max()),
            "top1": sum(top1) / len(top1), "top5": sum(top5) / len(top5), "worst_kl": max(float(k.mean()) for k in kl),
        }, rel=1e-3, abs=1e-6,
    )  # fmt: skip
    assert (report.tokens, report.samples) == (len(every), 24)
    assert report.worst_sample == max(range(24), key=lambda index: float(kl[index].mean()))
    assert report.perplexity_ratio == report.candidate_perplexity / report.reference_perplexity
    assert report.kl > 1e-3
    assert report.top1 < 1


@pytest.mark.parametrize(("model", "kind"), [(model, kind) for model, kinds in READ.items() for kind in kinds])
def test_every_padding_and_both_ways_of_reading_give_the_rows_logits(model: str, kind: str, load: Load) -> None:
    """Rows of 2 to 150 tokens that are counted from different places, in batches, against one call each."""
    session, reference = load(kind, model), load("torch", model)
    samples = list(corpus_for(reference, 8, "default", 160).samples)
    if not session.config.prefix_mask:
        for place, sample in enumerate(samples):
            last = len(sample.prompt.ids) - 1
            samples[place] = replace(sample, counted_from=min(last, 1 + place * last // 6))
        samples.append(Sample(prompt=Prompt(ids=samples[0].prompt.ids[:2]), counted_from=1))
    if isinstance(session, OrtSession):
        assert session.program.signature.last_logits_only == (kind in ("onnx, last logits", "ort", "static"))
    first, lengths = [s.counted_from for s in samples], [len(s.prompt.ids) for s in samples]
    assert max(lengths) == MODELS[model]
    # In one batch, the longest beginning and the longest rest would be too many columns.
    assert max(first) + max(np.subtract(lengths, first)) > MODELS[model]
    rows = row_logits(session, [sample.prompt for sample in samples], first)
    for sample, logits in zip(samples, rows, strict=True):
        expected = by_hand(reference, sample).numpy()
        assert logits.dtype == np.float32
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("model", "at_once", "in_steps"),
    [("demo", "onnx", "ort"), ("demo-glm", "onnx", "onnx, last logits"), ("demo", "int8, all logits", "int8")],
)
def test_a_model_measures_alike_whatever_logits_it_gives(model: str, at_once: str, in_steps: str, load: Load) -> None:
    reference = load("torch", model)
    corpus = corpus_for(reference, 16)
    one, other = (measures.measure(reference, load(kind, model), corpus, **QUICK) for kind in (at_once, in_steps))
    # Activations are rounded as well in int8, and noise of 1e-6 sends some to the next integer.
    bound = 1e-4 if at_once == "onnx" else 3e-3
    figures_of_one, figures_of_other = predicted(one), predicted(other)
    if at_once != "onnx" and adds_in_16_bits():
        # Without VNNI steps fall elsewhere: 5.3e-3 of the largest KL, 6.2e-3 of a perplexity of 50.
        for name, granted in (("kl_largest", 6e-3), ("candidate_perplexity", 7e-3)):
            assert figures_of_one.pop(name) == pytest.approx(figures_of_other.pop(name), rel=0, abs=granted)
    assert figures_of_one == pytest.approx(figures_of_other, rel=1e-4, abs=bound)
    assert (one.kl > 1e-6) == (one.top5 < 1) == (at_once != "onnx")


def test_batches_change_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in MODELS:
        reference, other = load("torch", model), load("noisy", model)
        corpus = corpus_for(reference)
        together = measures.measure(reference, other, corpus, greedy_rows=3, tasks=3)
        with monkeypatch.context() as patch:
            patch.setattr(batching, "BATCH_ROWS", 1)
            patch.setattr(measures, "BLOCK_BYTES", 1)
            alone = measures.measure(reference, other, corpus, greedy_rows=3, tasks=3)
        assert predicted(together) == pytest.approx(predicted(alone), rel=1e-4)
        written = ("greedy_identical", "greedy_first_difference", "reference_exact", "candidate_exact", "worst_sample")
        assert [getattr(together, name) for name in written] == [getattr(alone, name) for name in written]


def test_a_batch_takes_no_more_memory_than_allowed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Altered(load(), lambda logits, _: logits)
    rows = corpus_for(session, 12, length=120).samples
    monkeypatch.setattr(batching, "BATCH_BYTES", limit := 150 * 4 * session.config.vocab_size)
    list(row_logits(session, [row.prompt for row in rows], [row.counted_from for row in rows]))
    batches = session.calls[1:]  # the first asks which logits there are
    assert sum(rows for rows, _ in batches) == 12
    assert all(4 * rows * width * session.config.vocab_size <= limit for rows, width in batches if rows > 1)
    assert {rows == 1 for rows, _ in batches} == {True, False}


def test_rows_that_change_each_other_are_read_alone(load: Load) -> None:
    session = load("int8-dynamic")
    assert [rows_at_once(load(kind)) for kind in ("torch", "onnx", "int8", "int8-dynamic")] == [64, 64, 64, 1]
    samples = corpus_for(load(), 4).samples
    prompts, first = [sample.prompt for sample in samples], [len(sample.prompt.ids) - 3 for sample in samples]
    for together, prompt, start in zip(row_logits(session, prompts, first), prompts, first, strict=True):
        (alone,) = row_logits(session, [prompt], [start])
        assert np.array_equal(together, alone)
    # The control: beside each other they are other rows.
    feeds = session.feeds(prompts)
    batch = feeds.last_logits(session.prefill(feeds))
    feeds = session.feeds(prompts[:1])
    assert not np.array_equal(batch[:1], feeds.last_logits(session.prefill(feeds)))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["torch", "onnx", "static"])
def test_nothing_separates_a_session_from_itself(model: str, kind: str, load: Load) -> None:
    session = load(kind, model)
    report = measures.measure(session, session, corpus_for(session))
    assert (report.kl, report.kl_99, report.kl_largest, report.worst_kl) == (0, 0, 0, 0)
    assert (report.top1, report.top5, report.perplexity_ratio, report.greedy_share, report.recall) == (1, 1, 1, 1, 1)
    assert report.greedy_first_difference is None
    assert (report.greedy_rows, report.tasks, report.reference_exact) == (6, report.tasks, report.candidate_exact)
    assert 4 <= report.tasks - 1 <= report.candidate_exact


def test_more_noise_is_farther(load: Load) -> None:
    reference, options = load(), {"greedy_rows": 0, "tasks": 8}
    corpus = corpus_for(reference, 16)
    exact, int8, noisy = (
        measures.measure(reference, load(kind), corpus, **options) for kind in ("ort", "int8", "noisy")
    )
    assert exact.kl < 1e-9 < 1e-6 < 10 * int8.kl < noisy.kl
    assert noisy.top1 < int8.top1 <= exact.top1 == 1
    assert noisy.recall is not None
    assert noisy.recall < exact.recall == 1


def test_texts_part_where_a_defect_says(load: Load) -> None:
    """Every logit of the third step, one place off: the third token is another one, and so no line is right."""
    session = load()
    shifted = Altered(session, lambda logits, step: np.roll(logits, 1, axis=-1) if step == 2 else logits)
    report = measures.measure(session, shifted, corpus_for(session), greedy_tokens=8)
    assert (report.greedy_identical, report.greedy_first_difference) == (0, 3)
    assert (report.tasks, report.reference_exact, report.candidate_exact) == (5, 5, 0)
    assert report.kl == 0  # prefill is sound
    assert measures.measure(session, shifted, corpus_for(session), greedy_tokens=2).greedy_share == 1
    # A text without a task is continued from its middle.
    plain = corpus_for(session, 1, "technical")
    measures.measure(session, shifted, plain, greedy_tokens=1)
    assert shifted.calls[-1] == (1, len(plain.samples[0].prompt.ids) // 2)


def test_a_task_is_done_when_all_its_lines_are_written(tmp_path: Path, load: Load) -> None:
    lines = ("千山鸟飞绝，万径人踪灭。", "孤舟蓑笠翁，独钓寒江雪。")
    rows = [
        {"prompt": lines[0], "completion": lines[1]}, {"prompt": lines[0], "completion": lines[0]},
        {"prompt": lines[0][:6], "completion": "万径人踪灭。\n" + lines[1]}, {"text": lines[0] * 20},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    report = measures.measure(load(), load("ort"), corpus_for(load(), 9, path, 512))
    assert (report.tasks, report.reference_exact, report.candidate_exact) == (3, 2, 2)
    assert (report.samples, report.greedy_rows, report.greedy_identical) == (4, 4, 4)
    assert measures.measure(load(), load("ort"), corpus_for(load(), 9, path, 512), greedy_rows=0, tasks=1).tasks == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["everywhere", "one token"])
def test_logits_that_are_no_numbers_end_the_measurement(value: float, where: str, load: Load) -> None:
    def change(logits: Logits, _: int) -> Logits:
        logits = logits.copy()
        logits[..., -2:, :] = value
        return np.full_like(logits, value) if where == "everywhere" else logits

    session = load()
    corpus, found = corpus_for(session), "NaN" if math.isnan(value) else "infinite"
    shortest = min(range(len(corpus.samples)), key=lambda index: len(corpus.samples[index].prompt.ids))
    sample = corpus.samples[shortest]
    token = sample.counted_from if where == "everywhere" else len(sample.prompt.ids) - 2
    place = rf"the program, sample {shortest}, its token {token}: logits should be numbers, found {found}"
    with pytest.raises(ComparisonFailedError, match=place):
        measures.measure(session, Altered(session, change), corpus)
    with pytest.raises(NonFiniteError, match=place.replace("program", "reference")):
        measures.measure(Altered(session, change), session, corpus, **QUICK)
    # And where only what it writes has none.
    late = Altered(session, lambda logits, step: np.full_like(logits, value) if step == 2 else logits)
    with pytest.raises(ComparisonFailedError, match=f"step 3, row 0: .* found {found}"):
        measures.measure(session, late, corpus)


def test_infinite_figures_are_said_in_json_too(load: Load) -> None:
    session = load()
    report = figures(measures.measure(session, session, corpus_for(session)), kl=math.inf, perplexity_ratio=math.inf)
    assert Budget.parse("kl=1e6,perplexity=1e6").broken(report) == [
        "KL inf nats a token, 1e+06 allowed", "perplexity inf times the reference's, 1e+06 allowed",
    ]  # fmt: skip
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["kl"] == values["perplexity_ratio"] == values["statistics"]["kl"]["value"] == "Infinity"


def test_tokens_that_neither_can_say_are_no_difference(load: Load) -> None:
    """Minus infinity is a probability of 0; where only the candidate has it, it is infinitely far."""

    def forbid(logits: Logits, _: int) -> Logits:
        return np.where(np.arange(logits.shape[-1]) < 3, -np.inf, logits).astype(np.float32)

    session = load()
    corpus = corpus_for(session)
    assert measures.measure(Altered(session, forbid), Altered(session, forbid), corpus, **QUICK).kl == 0
    assert 0 < measures.measure(Altered(session, forbid), session, corpus, **QUICK).kl < 1
    assert measures.measure(session, Altered(session, forbid), corpus, **QUICK).kl == math.inf


def test_what_cannot_be_measured(load: Load) -> None:
    session = load()
    corpus = corpus_for(session)
    with pytest.raises(InputError, match="one vocabulary, found 2816 and"):
        measures.measure(session, load("torch", "demo-glm"), corpus)
    with pytest.raises(InputError, match="greedy_tokens=0"):
        measures.measure(session, session, corpus, greedy_tokens=0)
    with pytest.raises(InputError, match="tasks=-1"):
        measures.measure(session, session, corpus, tasks=-1)
    empty = replace(corpus, samples=tuple(replace(s, counted_from=len(s.prompt.ids)) for s in corpus.samples))
    with pytest.raises(InputError, match="poems should have text to predict, found none"):
        measures.measure(session, session, empty)
    some = replace(corpus, samples=(*empty.samples[:4], *corpus.samples[4:]))
    assert measures.measure(session, session, some, **QUICK).samples == 2
    with pytest.raises(InputError, match="found 0 first; leave the row out"):
        next(row_logits(session, [corpus.samples[0].prompt], [0]))
    assert list(row_logits(session, [], [])) == []


@pytest.fixture(scope="module")
def report(load: Load) -> QualityReport:
    return measures.measure(load(), load("int8"), corpus_for(load(), 12))


def test_budgets(report: QualityReport) -> None:
    assert Budget.parse("kl=0.01, top1=.9").limits == Budget.parse(["kl=1e-2", "top1=0.9"]).limits
    near = replace(report, candidate_exact=11, reference_exact=12)
    near = figures(near, kl=0.0340001, same_top=0.95, perplexity_ratio=2.06 / 2.0)
    assert Budget.parse("kl=0.035,top1=0.95,top5=0.1,recall=0.9,perplexity=1.03").broken(near) == []
    assert Budget.parse("kl=0.01,top1=0.99,recall=0.99,perplexity=1.01,top5=1").broken(near) == [
        "KL 0.034 nats a token, 0.01 allowed", "top-1 agreement 0.95, 0.99 expected",
        "recall 0.917 of the reference's, 0.99 expected", "perplexity 1.03 times the reference's, 1.01 allowed",
        f"top-5 agreement {near.top5:.3g}, 1 expected",
    ]  # fmt: skip
    assert Budget.parse("kl=0.034").broken(near) == ["KL 0.0340001 nats a token, 0.034 allowed"]
    assert len(Budget.parse("kl=0.034").broken(figures(near, kl=math.nan))) == 1
    for tasks in (0, 7):
        with pytest.raises(InputError, match=f"needs tasks the reference does, found 0 of {tasks}"):
            Budget.parse("recall=0").broken(replace(report, tasks=tasks, reference_exact=0))


@pytest.mark.parametrize(
    "text",
    ["", "kl", "kl=", "kl=x", "kl=-1", "kl=inf", "kl=nan", "kl=1e7", "top1=1.01", "speed=1", "kl=1,kl=2", "kl=1,"],
)
def test_budgets_that_cannot_be(text: str) -> None:
    with pytest.raises(
        InputError, match=r"kl and perplexity .* top1, top5, recall .* found '.*write for example"
    ) as error:
        Budget.parse(text)
    assert len(str(error.value).splitlines()) == 1


def test_json_and_table(report: QualityReport, load: Load) -> None:
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    derived = {"perplexity_ratio", "greedy_share", "recall"} | (predicted(report).keys() - {"top5", "worst_kl"})
    assert set(values) == {field.name for field in fields(QualityReport)} | derived
    assert values["corpus"] == corpus_for(load(), 12).to_json()
    shown = {}
    for name, broken in (("none", None), ("kept", []), ("broken", ["KL 1 nats a token, 0.01 allowed"])):
        console = Console(width=100, file=io.StringIO())
        show_quality(console, report, "out/[int8]", broken)
        assert isinstance(console.file, io.StringIO)
        shown[name] = console.file.getvalue()
    assert "out/[int8] against its reference" in shown["none"]
    assert f"{report.candidate_exact} of {report.tasks}" in shown["none"]
    assert [text.splitlines()[-1] for text in (shown["kept"], shown["broken"])] == ["PASSED", "FAILED"]
    assert shown["kept"].removesuffix("PASSED\n") == shown["none"]
    assert "KL 1 nats a token, 0.01 allowed" in shown["broken"]


def test_exported_folders_are_measured_without_torch(load: Load) -> None:
    script = (
        "import sys\nfrom glm_export.api import load_session\n"
        "from glm_export.calibration.corpus.load import load_corpus\n"
        "from glm_export.evaluation.measure import measure\n"
        f"one, other = map(load_session, ({str(load('onnx').folder)!r}, {str(load('int8').folder)!r}))\n"
        "report = measure(one, other, load_corpus('poems', one.tokenizer, one.config, max_samples=4))\n"
        "sys.exit(', '.join({'torch', 'onnx', 'polygraphy'} & set(sys.modules)) or int(not 0 < report.kl < 0.01))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.strip()) == (0, "")
