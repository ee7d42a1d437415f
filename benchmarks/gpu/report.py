"""Results as text: a line on the terminal, and report.md, which needs no knowledge of the code to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from parts import PARTS
from record import Facts
from speeds import COMPILED, EAGER, OURS, speeds, times

WORDS = {True: "passed", False: "DIFFERS OR FAILED", None: "not available"}
SHOWN = ("needed", "ratio", "weights", "written", "state", "found", "kl", "recall", "products", "reason", "error")
"""Of a step's facts, in the table of checks."""
NONE = "–"
WHAT_THIS_IS = (
    "glm-export turns checkpoints of GLM models into programs (ONNX) and engines (TensorRT), and shows that they "
    "compute what PyTorch computes. This report says which of that was seen on one machine with a GPU, and which not. "
    "A *part* is one question; a *check* is one thing that was tried to answer it. *Equal to PyTorch* means within the "
    "rounding of the number format, and in generated text the same tokens. *Not available* is no answer: the machine "
    "had not what the question needs."
)
MEANS = {
    True: "holds on this device, with the versions above",
    False: "does not hold here, or broke on the way: do not rely on it on this device",
    None: "nothing is known of it from this run",
}
REHEARSED = "the code ran; nothing is known of a GPU"
LEFT_OUT = "left out: "
"""How the reason of a part begins for which there was no time."""
MORE_TIME = "run again with more time: what passed is skipped"
DO = {
    True: "nothing",
    False: "read the part's rows under Checks and its `.log`, mend, `run.sh {part}`",
    None: "see to what the reason names, then `run.sh {part}`",
}
LONGEST_NOTE = 200


def headline(result: Facts) -> str:
    """One result for the terminal: how it went, what failed, and speeds."""
    lines = [f"{WORDS[result['passed']]}, {result['seconds']:g} s"]
    lines += [f"  {result[name]}" for name in ("reason", "error") if name in result]
    lines += [
        f"  {step['step']}: {step.get('error') or note(step)}"
        for step in result["steps"]
        if step["passed"] is False and "state" not in step
    ]
    lines += [
        f"  {step['step']}: {number(step['found'])}, {step['state']}" for step in result["steps"] if "state" in step
    ]
    for one in speeds([result]):
        share = one.get("share_of_floor")
        lines.append(
            f"  {one['runtime']} {one['form']}, batch {one['batch']}: {one['decode_tokens_s']:.1f} tokens/s, "
            f"first token {1000 * one['first_token_s']:.1f} ms"
            + (f", {share:.0%} of the roofline" if share is not None else "")
        )
    return "\n".join(lines)


def render(results: Sequence[Facts]) -> str:
    """All results as Markdown."""
    if not results:
        return "# What the GPU showed\n\nNothing has run yet.\n"
    sections = [
        head(results), answers_table(results), *goals_table(results), *speed_table(results), *attention_table(results),
        checks_table(results),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def head(results: Sequence[Facts]) -> str:
    """Where, when and with what."""
    made = sorted(result["made"] for result in results)
    merged: dict[str, set[str]] = {}
    for result in results:
        for name, found in result["versions"].items():
            merged.setdefault(name, set()).add(found)
    installed = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(merged.items()))
    lines = [
        "# What the GPU showed",
        "",
        WHAT_THIS_IS,
        "",
        *(["**Rehearsal without a GPU: nothing below says anything about one.**", ""] if rehearsed(results) else []),
        f"- {made[0]} to {made[-1]}, {len(results)} parts",
        f"- device: {' and '.join(every(results, 'device'))}; driver: {' and '.join(every(results, 'driver'))}",
        f"- versions: {installed}",
    ]
    codes = every(results, "code")
    if len(codes) > 1:
        lines.append(f"- made by different code ({', '.join(codes)}): run older parts again before comparing")
    return "\n".join(lines)


def answers_table(results: Sequence[Facts]) -> str:
    """Each part as a question: what was asked, what was found, what that means, and what to do."""
    shows = {part.name: part.shows for part in PARTS}
    counts = {state: sum(result["passed"] is state for result in results) for state in WORDS}
    rows = [
        [
            f"`{result['part']}`: {shows.get(result['part'], NONE)}", answer(result),
            "; ".join((meaning(result), *told(result, "means"))),
            "; ".join(told(result, "do")) or what_to_do(result),
        ]
        for result in results
    ]  # fmt: skip
    summary = (
        f"{counts[True]} parts hold, {counts[False]} differ or failed, {counts[None]} are not available; "
        f"{len(PARTS) - len(results)} have not been tried."
    )
    names = ["what was asked", "what was found", "what it means", "what to do"]
    return f"## Questions and answers\n\n{summary}\n\n{table(names, rows)}"


def meaning(result: Facts) -> str:
    """What a part's answer says, and of what."""
    return REHEARSED if result["rehearsal"] and result["passed"] else MEANS[result["passed"]]


def what_to_do(result: Facts) -> str:
    """Where no check said it itself."""
    if result["passed"] is None and str(result.get("reason", "")).startswith(LEFT_OUT):
        return MORE_TIME
    return DO[result["passed"]].format(part=result["part"])


def answer(result: Facts) -> str:
    """How a part went: its checks or goals counted, or why there are none."""
    goals = [step["state"] for step in result["steps"] if "state" in step]
    if goals:
        return ", ".join(f"{count} {state}" for state, count in Counter(goals).items())
    steps = [step for step in result["steps"] if "state" not in step]
    counted = {state: sum(step["passed"] is state for step in steps) for state in WORDS}
    text = ", ".join(f"{count} {WORDS[state].lower()}" for state, count in counted.items() if count)
    why = result.get("error") or result.get("reason") or (reason_of(result) if result["passed"] is None else None)
    return ": ".join(filter(None, (WORDS[result["passed"]], "; ".join(filter(None, (why, text))))))


def told(result: Facts, key: str) -> list[str]:
    """What the checks themselves say about their meaning, or about what to do; each once."""
    return list(dict.fromkeys(step[key] for step in result["steps"] if step.get(key)))


def reason_of(result: Facts | None) -> str:
    """Why a part did not pass, in a line."""
    if result is None:
        return "it did not run"
    reasons = [step.get("error") or step.get("reason") for step in result["steps"] if not step["passed"]]
    return result.get("error") or result.get("reason") or next(filter(None, reasons), "it differs")


def attention_table(results: Sequence[Facts]) -> list[str]:
    """Errors of one attention layer, by what it was computed with."""
    rows = [
        [
            step["runtime"], step["dtype"], step["form"], str(step["columns"]), str(step["queries"]),
            number(step["needed"]), number(step["tolerance"]), step["worst"],
        ]
        for result in results for step in result["steps"] if "form" in step and "columns" in step
    ]  # fmt: skip
    if not rows:
        return []
    names = ["runtime", "dtype", "computed", "columns", "new tokens", "largest error", "allowed", "where"]
    text = (
        "One attention layer alone (16 query heads, 2 of keys and values, a mask) against PyTorch in float32: the "
        "largest difference over the largest value of the output, over lengths from 1 to the full cache."
    )
    return [f"## Attention alone\n\n{text}\n\n{table(names, rows)}"]


def rehearsed(results: Sequence[Facts]) -> bool:
    return any(result["rehearsal"] for result in results)


def every(results: Sequence[Facts], key: str) -> list[str]:
    return sorted({str(result[key] or NONE) for result in results})


def goals_table(results: Sequence[Facts]) -> list[str]:
    """What the part ``verdict`` found."""
    steps = [step for result in results if result["part"] == "verdict" for step in result["steps"]]
    if not steps:
        return []
    rows = [
        [
            step["step"],
            bound(step),
            number(step.get("found")),
            step.get("state") or step.get("reason") or step.get("error"),
        ]
        for step in steps
    ]
    return ["## Goals\n\n" + table(["goal", "wanted", "found", ""], rows)]


def bound(step: Facts) -> str:
    if "least" not in step:
        return NONE
    sign = "at most" if step["most"] else "at least"
    wanted = f", goal {step['wanted']:g}" if step.get("wanted") else ""
    return f"{sign} {step['least']:g}{wanted}"


def speed_table(results: Sequence[Facts]) -> list[str]:
    """Every speed, with what it is over the peers' and of the roofline; compare within the table only."""
    rows = []
    for one in speeds(results):
        ratios = [times(results, peer, one) if one["side"] == OURS else None for peer in (EAGER, COMPILED)]
        share, width = one.get("share_of_floor"), one.get("bandwidth_bytes_s")
        rows.append([
            f"{one['runtime']}, {one['form']}", str(one["batch"]), f"{one['decode_tokens_s']:.1f}",
            *(number(ratio) for ratio in ratios), f"{share:.0%}" if share is not None else NONE,
            f"{1000 * one['first_token_s']:.1f}", f"{one['prefill_tokens_s']:.0f}",
            f"{width / 1e9:.0f}" if width is not None else NONE,
        ])  # fmt: skip
    if not rows:
        return []
    names = ["what", "batch", "decode tokens/s", "× eager", "× compiled", "of roofline", "first token ms",
             "prompt tokens/s", "bandwidth GB/s"]  # fmt: skip
    shapes = ", ".join(sorted({one["shape"] for one in speeds(results)}))
    text = (
        f"Full size ({shapes}, random weights). The roofline: a step that does nothing but read weights and cache once "
        "at the bandwidth measured beside it. Compare within this table only."
    )
    return [f"## Speeds\n\n{text}\n\n{table(names, rows)}"]


def checks_table(results: Sequence[Facts]) -> str:
    """Every step that is no goal."""
    rows = []
    for result in results:
        if result["part"] == "verdict":
            continue
        whole = result.get("error") or result.get("reason")
        if whole or not result["steps"]:
            rows.append([result["part"], "the part", WORDS[result["passed"]], number(result["seconds"]), whole or NONE])
        rows += [
            [result["part"], step["step"], WORDS[step["passed"]], number(step["seconds"]), note(step)]
            for step in result["steps"]
        ]
    return "## Checks\n\n" + table(["part", "check", "result", "seconds", "found"], rows)


def note(step: Facts) -> str:
    """What a step's facts come down to."""
    text = "; ".join(f"{name} {number(step[name])}" for name in SHOWN if step.get(name) is not None)
    return shorten(text, LONGEST_NOTE, placeholder=" …") or NONE


def number(value: Any) -> str:
    """Three digits of a number, whole ones where it is large; anything else as it is."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return NONE if value is None else str(value)


def cell(value: Any) -> str:
    """Nothing that would end a cell of a table."""
    return " ".join(str(value or NONE).split()).replace("|", "\\|")


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *([cell(one) for one in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
