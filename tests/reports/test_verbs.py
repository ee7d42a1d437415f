"""What each verb's report says is what the verb found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from glm_export import api
from glm_export.artifacts.manifest import SIGNATURE
from glm_export.artifacts.program import OnnxProgram
from glm_export.evaluation.budget import Budget
from glm_export.evaluation.layer_costs import LayerCost
from glm_export.evaluation.report import QualityReport, QualityVerdict
from glm_export.evaluation.statistics import Distribution, Estimate, flips_of, statistics_of
from glm_export.proof.check import CheckReport
from glm_export.proof.compare import PLANTED, REASONS, TOLERANCES, Reading
from glm_export.proof.measures.greedy import GreedyReport, GreedyText
from glm_export.reports.page import page
from glm_export.reports.records import Bars, HeatMap, Lines, Report, Spans, Texts
from glm_export.reports.run import Subject, program_subject, signature_of
from glm_export.reports.verbs.check import check_report
from glm_export.reports.verbs.layers import layers_section, layers_values
from glm_export.reports.verbs.quality import quality_report
from glm_export.terminal.check import show_parity
from tests.helpers.golden_data import Golden
from tests.helpers.planted import plant
from tests.reports.examples import HOSTILE, RUN
from tests.terminal.test_cli import run

SUBJECT = Subject(name="program", against="checkpoint")
CASES = {"prefill", "chunk on a past", "decode", "padded batch", "batch decode", "end of context"}


@pytest.fixture(scope="module")
def passing(exported: Callable[[str], OnnxProgram]) -> CheckReport:
    return api.check(exported("chatglm2"), Golden("chatglm2").folder)


@pytest.fixture(scope="module")
def failing(exported: Callable[[str], OnnxProgram], tmp_path_factory: pytest.TempPathFactory) -> CheckReport:
    program = plant(exported("chatglm2"), "half-split rotary", tmp_path_factory.mktemp("p") / "planted")
    return api.check(program, Golden("chatglm2").folder)


def test_a_passing_check(passing: CheckReport) -> None:
    report = check_report(passing, SUBJECT, RUN)
    claims = {claim.name: claim for claim in report.claims}
    assert claims.keys() == CASES | {"greedy texts", "a row in company"}
    assert report.passed
    assert all(claim.passed for claim in report.claims)
    for name in CASES:
        found = max(o.required_tolerance for o in passing.parity.outputs if o.case == name)
        assert (claims[name].measured, claims[name].bound) == (found, TOLERANCES["float32"])
        # A bound that cannot tell the mildest defect from rounding would show here.
        assert (claims[name].planted or 0) > 10 * TOLERANCES["float32"]
    assert claims["greedy texts"].measured_text == "192 of 192"
    assert REASONS["float32"] in report.about[0]
    assert [section.key for section in report.sections] == ["where", "outputs", "predictions", "texts"]
    heat = [item for item in report.sections[0].items if isinstance(item, HeatMap)]
    assert {item.title.removeprefix("Layer by position: ") for item in heat} == CASES
    assert [item.folded for item in heat] == [False] + 5 * [True]
    (prefill,) = [item for item in heat if item.title.endswith("prefill")]
    assert (len(prefill.values), {len(row) for row in prefill.values}) == (len(prefill.rows), {33})
    (decode,) = [item for item in heat if item.title.endswith(": decode")]
    assert decode.columns == ("33",)
    assert "no cell is beyond the bound" in prefill.alt


def test_a_failing_check_says_where(failing: CheckReport) -> None:
    report = check_report(failing, SUBJECT, RUN)
    assert report.passed is False
    assert {claim.name for claim in report.claims if claim.passed is False} == CASES | {"greedy texts"}
    assert "present.0.key in case prefill" in report.sentence or "logits in case prefill" in report.sentence
    layers, where = report.sections[:2]
    assert (layers.key, where.key) == ("layers", "where")
    assert layers.text[0].startswith("First guilty: layers.0, by its own error")
    (heat, *_) = [item for item in where.items if isinstance(item, HeatMap) and not item.folded]
    assert "layer 0 is the first beyond the bound" in heat.alt
    assert heat.table.marked == set(range(len(heat.rows)))
    texts = [item for item in report.sections[-1].items if isinstance(item, Texts)]
    parted = [text for text in texts if text.parted is not None]
    assert parted == texts[: len(parted)] != []
    assert "They part at token" in parted[0].note


def test_every_case_of_a_cache_of_fixed_size_has_a_meaning(tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "p", dialect="tensorrt", max_length=64)
    report = check_report(api.check(program, "demo"), SUBJECT, RUN)
    assert report.passed
    page(report)


def test_a_flip_at_a_tie_is_said_to_be_none(passing: CheckReport) -> None:
    text = GreedyText(
        prompt=(1, 2), how="alone", reference=(3, 4), candidate=(3, 5), parted=1, reference_margin=1e-5,
        candidate_margin=2e-5, tie=2e-4, reference_texts=("a", HOSTILE), candidate_texts=("a", None),
    )  # fmt: skip
    notes = {}
    for margin in (1e-5, 1e-2):
        greedy = GreedyReport(texts=(replace(text, reference_margin=margin),), equal=1, total=2)
        found = check_report(replace(passing, greedy=greedy), SUBJECT, RUN)
        (item,) = found.sections[-1].items
        assert isinstance(item, Texts)
        notes[margin] = item.note
    assert "no sign of a defect" in notes[1e-5]
    assert "no sign of a defect" not in notes[1e-2]
    assert "1e-5 there, the candidate its own by 2e-5" in notes[1e-5]


def test_readings_of_defects_can_be_given(passing: CheckReport) -> None:
    given = {"prefill": Reading(0.5, "a defect run just now")}
    claims = {claim.name: claim for claim in check_report(passing, SUBJECT, RUN, planted=given).claims}
    assert (claims["prefill"].planted, claims["prefill"].planted_what) == (0.5, "a defect run just now")
    assert claims["decode"].planted == PLANTED["case"].value


LAYERS: dict[str, Any] = {
    "layers": [
        {"layer": n, "position": s, "error": 0.3 if (n, s) == (1, 2) else 1e-7} for n in range(3) for s in range(4)
    ],
    "bound": 1e-5, "first": 1,
    "node": {"operator": "MatMul", "name": HOSTILE, "module": "layers.1.mlp", "hints": ["a bias is missing"],
             "inputs": [{"name": "x", "shape": [1, 4], "least": -1.0, "largest": 2.0}]},
    "saved": "guilty.onnx", "command": "polygraphy run guilty.onnx --onnxrt",
}  # fmt: skip


def test_the_first_guilty_layer_has_a_place(failing: CheckReport) -> None:
    section = layers_section(LAYERS)
    report = replace(check_report(failing, SUBJECT, RUN), sections=(section,))
    assert (section.key, section.title) == ("layers", "First guilty layer")
    assert section.text == (
        "First guilty: 1, by its own error; those behind it are given what the reference gives them.",
        "Hint: a bias is missing",
    )
    assert {fact.name: fact.value for fact in section.facts}["command"] == LAYERS["command"]
    lines, heat, inputs = section.items
    assert isinstance(lines, Lines)
    assert isinstance(heat, HeatMap)
    assert lines.series[0].y == (1e-7, 0.3, 1e-7)
    assert lines.table.marked == {1}
    assert heat.table.rows[1] == ("1", 0.3, 2)
    assert inputs.title == "What the node is given"
    assert "polygraphy run guilty.onnx" in page(report)
    alone = layers_section({"layers": [{"layer": "head", "error": 0.0}]})
    assert alone.text == ("No layer is beyond the bound.",)
    assert len(alone.items) == 1


def test_an_examination_of_slices_is_one_of_layers(failing: CheckReport) -> None:
    def error(part: str, case: str, own: float) -> dict[str, Any]:
        return {
            "slice": part, "case": case, "alone": {"hidden": own, "key": own / 2}, "together": {"hidden": 3 * own},
            "positions": [0.0, own],
        }  # fmt: skip

    shares = {"layer 0": 1e-7, "layer 1": float("inf"), "head": 1e-6}
    examined = {
        "errors": [error(part, case, own) for part, own in shares.items() for case in ("prefill", "decode")],
        "tolerance": 1e-5, "first": {"slice": "layer 1", "case": "prefill"}, "uncut": None, "command": "polygraphy",
        "node": {"operator": "MatMul", "name": "n", "error": 0.5, "inputs": [], "hints": []},
    }  # fmt: skip
    section = layers_section(layers_values(examined))
    lines, heat = section.items
    assert isinstance(lines, Lines)
    assert isinstance(heat, HeatMap)
    assert [one.y for one in lines.series] == [(1e-7, float("inf"), 1e-6), (pytest.approx(3e-7), float("inf"), 3e-6)]
    assert lines.table.marked == {1}
    assert heat.values == ((0.0, 1e-7), (0.0, float("inf")), (0.0, 1e-6))
    assert "Layer layer 1" not in section.text[0]
    assert "infinite" in page(replace(check_report(failing, SUBJECT, RUN), sections=(section,)))
    uncut = layers_section(layers_values({"errors": [], "uncut": "the graph cannot be cut"}))
    assert uncut.text == ("Layers were not looked at: the graph cannot be cut.",)


def quality(**changes: Any) -> QualityVerdict:
    losses = np.array([np.full(20, 0.69), np.full(20, 0.79)])
    found = statistics_of(losses[0], losses[1], np.full(20, 0.02), np.ones((20, 3), bool))
    found = replace(found, same_top=Estimate(value=0.97, error=0.01), **changes)
    values: dict[str, Any] = {
        "corpus": {"name": "poems"}, "samples": 2, "tokens": 20, "statistics": found, "top5": 0.9,
        "worst_sample": 1, "worst_kl": 0.03, "greedy_rows": 2, "greedy_tokens": 8, "greedy_identical": 1,
        "greedy_first_difference": 3.0, "tasks": 0, "reference_exact": 0, "candidate_exact": 0,
        "answer_flips": flips_of([]),
    }  # fmt: skip
    costs = (LayerCost(weight="layers.0.mlp.down.weight", kl=0.02), LayerCost(weight="layers.0.mlp.up.weight", kl=0.0))
    return QualityVerdict(report=QualityReport(**values), corpus={"name": "poems"}, costs=costs)


def test_a_budget_is_judged_limit_by_limit() -> None:
    budget = Budget.parse("kl=0.01,top1=0.95")
    verdict = quality()
    verdict = replace(verdict, broken=tuple(budget.broken(verdict.report)))
    report = quality_report(verdict, budget, SUBJECT, RUN)
    found = {claim.name: (claim.passed, claim.bound) for claim in report.claims}
    # Recall has no task, and is not claimed.
    assert found == {
        "KL divergence": (False, 0.01), "perplexity": (None, None), "top-1": (True, 0.95), "top-5": (None, None),
    }  # fmt: skip
    assert (report.passed, report.verdict) == (False, "failed")
    assert report.sentence == "The program exceeds its budget: KL 0.02 nats a token, 0.01 allowed."
    (bars,) = report.sections[-1].items
    assert isinstance(bars, Bars)
    assert bars.names == ("layers.0.mlp.down", "layers.0.mlp.up")
    page(report)


def test_without_a_budget_nothing_is_judged() -> None:
    far = Estimate(value=float("inf"), error=float("inf"))
    infinite = quality(kl=far, kl_distribution=Distribution.of(np.array([0.0, np.inf])), candidate_perplexity=far)
    report = quality_report(replace(infinite, costs=None), None, SUBJECT, RUN)
    assert report.verdict == "measured"
    assert [section.key for section in report.sections] == ["predicted", "written"]
    assert "infinite" in page(report)
    json.dumps(report.to_json(), allow_nan=False)


def test_a_signature_is_seen_and_not_vouched_for(demo_program: OnnxProgram, tmp_path: Path) -> None:
    subject = program_subject(demo_program, "demo")
    assert subject.signature == f"The folder carries no signature ({SIGNATURE})."
    assert dict(subject.hashes)["model.onnx"] == demo_program.manifest["sha256"]["model.onnx"]
    assert {"manifest.json", "source/config.json"} <= dict(subject.hashes).keys()
    (tmp_path / SIGNATURE).touch()
    assert (
        signature_of(tmp_path)
        == f"The folder carries a signature, {SIGNATURE}, not verified here: `glm-export verify` does that."
    )


# -- the verbs --------------------------------------------------------------------------------------


def written(folder: Path, *words: object, code: int = 0) -> tuple[dict[str, Any], str]:
    """The JSON and the page of a verb, run in this process."""
    result = run(*words, "--report", folder / "r.html")
    assert result.exit_code == code, result.output
    assert f"{(folder / 'r.html').name}, r.json" in (result.stdout + result.stderr).replace("\n", "")
    values = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert values["command"].startswith(f"glm-export {words[0]} ")
    assert f"--report {folder / 'r.html'}" in values["command"]
    return values, (folder / "r.html").read_text(encoding="utf-8")


def test_check_writes_a_report(demo_program: OnnxProgram, tmp_path: Path) -> None:
    values, text = written(tmp_path, "check", demo_program.folder, "--against", "demo")
    assert (values["verb"], values["passed"]) == ("check", True)
    assert values["measured"]["schema"] == "glm-export/check/1"
    # Tokens of the embedded model's own tokenizer.
    assert re.search(r'class="token">[\u4e00-\u9fff]<', text)
    program = plant(demo_program, "padding is seen", tmp_path / "planted")
    (tmp_path / "failed").mkdir()
    values, text = written(tmp_path / "failed", "check", program.folder, "--against", "demo", code=1)
    assert values["passed"] is False
    assert 'id="verdict">FAILED' in text


def test_calibrate_and_quality_write_reports(tmp_path: Path) -> None:
    ranges = tmp_path / "ranges"
    values, text = written(tmp_path, "calibrate", "demo", "--corpus", "poems", "--max-samples", 4, "--out", ranges)
    assert (values["verb"], values["passed"]) == ("calibrate", None)
    kept = api.open_checkpoint("demo").config.num_layers
    assert len([name for name in values["measured"]["thresholds"] if name.endswith(".key")]) == kept
    outliers = values["measured"]["outliers"]
    from glm_export.calibration.ranges import CHANNEL_MAXIMA, load_ranges

    maxima = load_ranges(ranges).tensors[f"layers.3.mlp.down.weight{CHANNEL_MAXIMA}"]
    np.testing.assert_allclose(outliers["layers.3.mlp.down.weight"], maxima.max() / np.median(maxima), rtol=1e-6)
    spans = [item for section in values["sections"] for item in section["items"] if item["kind"] == Spans.kind]
    assert len(spans[0]["names"]) == len(outliers)
    assert "MEASURED" in text

    program = api.export("demo", tmp_path / "p", recipe="int8-static", ranges=ranges)
    (tmp_path / "q").mkdir()
    words = ("quality", program.folder, "--against", "demo", "--corpus", "poems", "--max-samples", 4, "--by-layer")
    values, _ = written(tmp_path / "q", *words, "--budget", "kl=0.0001", code=1)
    assert (values["verb"], values["passed"]) == ("quality", False)
    assert [section["key"] for section in values["sections"]] == ["predicted", "written", "costs"]


def test_bench_writes_a_report(demo_program: OnnxProgram, tmp_path: Path) -> None:
    """And the line that repeats it has what was given and no more."""
    out = tmp_path / "a folder" / "r.html"
    short = ("--rounds", 1, "--prompt-tokens", 8, "--new-tokens", 4)
    assert run("bench", demo_program.folder, *short, "--force", "--report", out).exit_code == 0
    values, text = json.loads(out.with_suffix(".json").read_text()), out.read_text(encoding="utf-8")
    assert (values["verb"], values["passed"]) == ("bench", None)
    assert values["measured"]["decode_tokens_s"] > 0
    assert "tokens/s" in text
    assert "a planted defect reads" not in text
    assert values["command"] == (
        f"glm-export bench {demo_program.folder} --prompt-tokens 8 --new-tokens 4 --rounds 1 --report '{out}' --force"
    )
    result = run("bench", demo_program.folder, *short, "--report", out)
    assert result.exit_code == 2


def test_what_the_docs_say_of_the_library_is_so(
    demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    example = example.replace("chatglm2-onnx", str(demo_program.folder)).replace("THUDM/chatglm2-6b", "demo")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert "PASSED" in (tmp_path / "check.html").read_text(encoding="utf-8")
    for name in re.findall(r"\]\((images/[^)]+)\)", text):
        assert (Path(__file__).parents[2] / "docs" / name).stat().st_size < 150_000


def test_a_report_is_a_value(passing: CheckReport) -> None:
    one, other = (check_report(passing, SUBJECT, RUN) for _ in range(2))
    assert isinstance(one, Report)
    assert page(one) == page(other)


def test_the_terminal_says_where_texts_part(failing: CheckReport, passing: CheckReport) -> None:
    said = {}
    for report in (failing, passing):
        written = StringIO()
        show_parity(Console(file=written, width=200), report)
        said[report.passed] = written.getvalue()
    assert "furthest prediction: KL " in said[True]
    assert "greedy texts part first at token" not in said[True]
    assert "greedy texts part first at token 1, where the reference prefers its own by 0." in said[False]
