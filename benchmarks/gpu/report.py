"""Results as text: a line on the terminal, and report.md."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from record import Facts
from speeds import COMPILED, EAGER, OURS, speeds, times

WORDS = {True: "passed", False: "DIFFERS OR FAILED", None: "not available"}
SHOWN = ("needed", "written", "state", "found", "kl", "recall", "products", "reason", "error")
"""Of a step's facts, in the table of checks."""
NONE = "–"
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
    sections = [head(results), *goals_table(results), *speed_table(results), checks_table(results)]
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
        *(["**Rehearsal without a GPU: nothing below says anything about one.**", ""] if rehearsed(results) else []),
        f"- {made[0]} to {made[-1]}, {len(results)} parts",
        f"- device: {' and '.join(every(results, 'device'))}; driver: {' and '.join(every(results, 'driver'))}",
        f"- versions: {installed}",
    ]
    codes = every(results, "code")
    if len(codes) > 1:
        lines.append(f"- made by different code ({', '.join(codes)}): run older parts again before comparing")
    return "\n".join(lines)


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
