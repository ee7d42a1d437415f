"""What a person at a terminal sees: plans, progress, tables, streams. Built with rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from typing_extensions import Self

from glm_export import api
from glm_export.artifacts import OnnxProgram
from glm_export.calibration.recipe import Recipe
from glm_export.generation import TextStream, generate_steps
from glm_export.infilling import LabelScore
from glm_export.progress import Advance
from glm_export.sampling import Sampling
from glm_export.sessions import Session
from glm_export.signature import LOGITS
from glm_export.tokenizers.chat import Message

if TYPE_CHECKING:  # these need torch; showing what they made does not
    from glm_export.checkpoint import Checkpoint
    from glm_export.compare import OutputParity
    from glm_export.exporter import ExportPlan
    from glm_export.proof import CheckReport
    from glm_export.target import Target

SHOWN_POEMS = ("夜思", "江雪", "登鹳雀楼")


class ProgressBars:
    """Bars on a terminal, nothing where output is piped."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", style="dim"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip

    def task(self, name: str, total: int) -> Advance:
        """Add a bar."""
        identifier = self._bars.add_task(name, total=total)
        return lambda count: self._bars.advance(identifier, count)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def size(count: float) -> str:
    """Bytes for people, in decimal units as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def show_plan(console: Console, checkpoint: Checkpoint, plan: ExportPlan, target: Target) -> None:
    """What will be read, written and needed."""
    console.print(
        f"[bold]{escape(checkpoint.config.family)}[/], {plan.parameters / 1e6:,.1f} M parameters, "
        f"{len(checkpoint.files)} weight files, {size(plan.source_bytes)} → {target.dialect.name} {target.dtype}"
        f"{', ' + target.recipe.name if target.recipe else ''}"
    )
    console.print(
        f"  disk    {size(plan.output_bytes)} to write, {size(plan.free_bytes)} free\n"
        f"  memory  about {size(plan.memory_bytes)}; weights are streamed"
    )


def show_recipes(console: Console, known: Sequence[Recipe]) -> None:
    """One row a recipe: what it does, what an export with it needs, where it runs."""
    table = Table(box=SIMPLE, show_lines=False, padding=(0, 1))
    table.add_column("recipe", no_wrap=True)
    for name in ("what", "needs", "dialects"):
        table.add_column(name)
    for recipe in known:
        table.add_row(recipe.name, recipe.summary, recipe.needs, " ".join(sorted(recipe.dialects)))
    console.print(table)


def show_written(console: Console, program: OnnxProgram) -> None:
    """Where the result is, and what to do with it."""
    total = sum(program.manifest["sizes"].values())
    console.print(f"[green]wrote[/] {escape(str(program.folder))} ({size(total)})", soft_wrap=True)


def show_parity(console: Console, report: CheckReport) -> None:
    """One row for the logits and one for the whole cache, per case."""
    parity = report.parity
    rounded = f", both with the weights of {report.recipe}" if report.recipe else ""
    title = f"{parity.candidate} against {parity.reference}, {parity.dtype}{rounded}; cache: its worst layer"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in ("case", "output", "max abs", "max rel", "needed", "top-1", ""):
        table.add_column(name, justify="left" if name in ("case", "output", "") else "right")
    for case in dict.fromkeys(output.case for output in parity.outputs):
        outputs = [output for output in parity.outputs if output.case == case]
        for label, group in (
            (LOGITS, [o for o in outputs if o.output == LOGITS]),
            ("cache", [o for o in outputs if o.output != LOGITS]),
        ):
            _parity_row(table, case if label == LOGITS else "", label, group)
    console.print(table)
    first = next((o for o in parity.outputs if not o.passed), None)
    if first is not None:
        console.print(f"first output beyond tolerance: {first.output} in case {first.case!r}")
    console.print(
        f"greedy tokens equal: {report.greedy_equal} of {report.greedy_total}\n"
        f"smallest passing tolerance: {parity.needed:.1e} of an output's largest value "
        f"({parity.outputs[0].tolerance:.0e} allowed)"
    )
    if report.usual_bound is not None:
        console.print(f"usually, over cases: {report.usual:.1e} ({report.usual_bound:.0e} allowed)")
    for other in report.others:
        console.print(f"{other.candidate}: smallest passing tolerance {other.needed:.1e}")
    console.print("[bold green]PASSED[/]" if report.passed else "[bold red]FAILED[/]")


def _parity_row(table: Table, case: str, label: str, group: Sequence[OutputParity]) -> None:
    worst = max(group, key=lambda output: output.needed)
    passed = all(output.passed for output in group)
    table.add_row(
        case, label, f"{worst.max_abs:.1e}", f"{worst.max_rel:.1e}", f"{worst.needed:.1e}",
        "" if worst.top1 is None else f"{worst.top1:.1%}", "[green]pass[/]" if passed else "[red]FAIL[/]",
    )  # fmt: skip


def score_facts(scores: Sequence[LabelScore]) -> list[dict[str, Any]]:
    """Plain values, the likeliest label first."""
    return [asdict(score) | {"mean_log_probability": score.mean} for score in scores]


def show_scores(console: Console, scores: Sequence[LabelScore]) -> None:
    """One row a label, the likeliest first."""
    table = Table(box=SIMPLE)
    table.add_column("label")
    for name in ("tokens", "log-probability", "a token"):
        table.add_column(name, justify="right")
    for score in scores:
        table.add_row(escape(score.label), str(score.tokens), f"{score.log_probability:.3f}", f"{score.mean:.3f}")
    console.print(table)


def show_facts(console: Console, facts: dict[str, Any]) -> None:
    """A two-column table; lists go one item a line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), escape(_plain(name, value)))
    console.print(table)


def _plain(name: str, value: Any) -> str:
    if name in ("inputs", "outputs"):
        layers = max((int(item.split(".")[1]) for item in value if "." in item), default=0)
        kept = [item.replace("'", "") for item in value if "." not in item or ".0." in item]
        return "\n".join([*kept, *([f"… and so on, {layers + 1} layers"] if layers else [])])
    if name.endswith("_bytes"):
        return size(value)
    if isinstance(value, dict):
        return "\n".join(f"{key}: {size(item) if name in ('sizes', 'memory') else item}" for key, item in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def write_stream(
    session: Session, ids: list[int], max_new_tokens: int, sampling: Sampling, stop_strings: Sequence[str] = ()
) -> str:
    """Print text as it is written; returns all of it."""
    decode = session.tokenizer.decode
    stream, written = TextStream(decode, stop_strings), ""
    steps = generate_steps(
        session,
        [ids],
        sampling=sampling,
        decode=decode,
        stopping=api.stopping_for(session, max_new_tokens, stop_strings),
    )
    for (row,) in steps:
        new = stream.text(row.ids, finished=bool(row.finish_reason))
        sys.stdout.write(new if written else new.lstrip("\n"))
        sys.stdout.flush()
        written += new
    sys.stdout.write("\n")
    return written


def converse(
    session: Session, console: Console, *, max_new_tokens: int, system: str | None, sampling: Sampling
) -> None:
    """Read questions line by line, stream the replies; replies go to stdout, prompts to ``console``."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    while True:
        if console.is_terminal:
            console.print("[bold cyan]›[/] ", end="")
        question = sys.stdin.readline().strip()
        if not question:
            return
        messages.append({"role": "user", "content": question})
        reply = write_stream(session, session.tokenizer.chat(messages), max_new_tokens, sampling)
        messages.append({"role": "assistant", "content": reply.strip()})
