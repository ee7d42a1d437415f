"""The demo: export both embedded models, prove them, and let people judge what they write."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.embedded import DEMO, DEMO_GLM, Poem, poems
from glm_export.errors import ComparisonFailedError
from glm_export.terminal.console import FOLDER, MESSAGES, RESULTS, json_option, show_json
from glm_export.terminal.frame.saying import progress

if TYPE_CHECKING:
    from glm_export.artifacts.program import OnnxProgram
    from glm_export.checkpoints.checkpoint import Checkpoint
    from glm_export.evaluation.recall import Recall
    from glm_export.proof.check import CheckReport
    from glm_export.sessions.session import Session

RECITED = ("夜思", "江雪", "登鹳雀楼")
FILLED = ("春晓", "杂诗")
# A cloze anybody can judge: which word follows the bright moon?
CLOZE_TEXT = "疑是地上霜。举头望明月，低头思故乡。"
CLOZE_PATTERN = "床前明月[MASK]，{}"
CLOZE_LABELS = ("光", "风", "人", "山")


@click.command()
@click.option("--out", type=FOLDER, default=Path("glm-export-demo"), show_default=True, help="Folder to write.")
@json_option("Print what was found as JSON; what is shown goes to standard error.")
def demo(out: Path, as_json: bool) -> None:
    """Export the embedded models, prove them, and let them recite and fill blanks."""
    if as_json:
        run_demo(MESSAGES, MESSAGES, out, show_json)
    else:
        run_demo(RESULTS, MESSAGES, out)


def run_demo(
    results: Console, messages: Console, out: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None
) -> None:
    """Export, check and show the embedded ChatGLM2 in ``out``, then the embedded GLM in ``out``-glm.

    Args:
        results: where what they write is shown.
        messages: where is told what was written.
        out: the folder.
        tell: is given what was found as plain values, before anything is raised.

    Raises:
        ComparisonFailedError: a program differs from PyTorch.
    """
    from glm_export import api
    from glm_export.evaluation.recall import BLANK, fill_recall, recall
    from glm_export.terminal.writing.infill import show_scores

    corpus = poems()
    program, checkpoint, report = _prove(results, messages, DEMO, out)
    with api.load_session(program) as session, api.load_session(checkpoint) as reference:
        _recite(results, session, [poem for poem in corpus if poem.title in RECITED])
        there, here = recall(reference, corpus), recall(session, corpus)
    results.print(f"next lines recited exactly: PyTorch {there}, ONNX Runtime {here}", soft_wrap=True)
    line = f"try: glm-export generate {shlex.quote(str(out))} --prompt 白日依山尽，黄河入海流。 --stream\n"
    results.print(escape(line), soft_wrap=True)
    second = out.with_name(f"{out.name}-glm")
    facts = {DEMO: _facts(program, report, there, here)}
    program, checkpoint, report = _prove(results, messages, DEMO_GLM, second)
    with api.load_session(program) as session, api.load_session(checkpoint) as reference:
        _fill(results, session, [poem for poem in corpus if poem.title in FILLED and len(poem.lines) == 2])
        results.print(f"which word fits?  [dim]{escape(CLOZE_PATTERN.format(CLOZE_TEXT))}[/]", soft_wrap=True)
        show_scores(results, api.score(session, CLOZE_TEXT, pattern=CLOZE_PATTERN, labels=CLOZE_LABELS))
        there, here = fill_recall(reference, corpus), fill_recall(session, corpus)
    results.print(f"blanked lines filled exactly: PyTorch {there}, ONNX Runtime {here}", soft_wrap=True)
    line = f"try: glm-export infill {shlex.quote(str(second))} --text 床前明月光，疑是地上霜。{shlex.quote(BLANK)}"
    results.print(escape(line), soft_wrap=True)
    facts[DEMO_GLM] = _facts(program, report, there, here)
    passed = all(found["check"]["passed"] for found in facts.values())
    tell({"passed": passed, "models": facts})
    if not passed:
        raise ComparisonFailedError("an exported demo differs from PyTorch; see the tables above")


def _facts(program: OnnxProgram, report: CheckReport, there: Recall, here: Recall) -> dict[str, Any]:
    """What was found of a program; lines that PyTorch and it recite, or fill, exactly."""
    lines = {"pytorch": asdict(there), "onnxruntime": asdict(here)}
    return {"folder": str(program.folder), "check": report.to_json(), "lines_exact": lines}


def _prove(results: Console, messages: Console, name: str, out: Path) -> tuple[OnnxProgram, Checkpoint, CheckReport]:
    from glm_export import api
    from glm_export.terminal.check import show_parity
    from glm_export.terminal.export import show_written

    checkpoint = api.open_checkpoint(name)
    with progress() as bars:
        program = api.export(checkpoint, out, force=True, progress=bars)
    show_written(messages, program)
    with progress() as bars:
        report = api.check(program, checkpoint, progress=bars)
    show_parity(results, report)
    return program, checkpoint, report


def _recite(console: Console, session: Session, chosen: Sequence[Poem]) -> None:
    from glm_export import api

    for poem in chosen:
        text = api.generate(session, poem.lines[0]).strip()
        _heading(console, poem, exact=text == "\n".join(poem.lines[1:]))
        console.print(f"  [dim]{escape(poem.lines[0])}[/]")
        console.print("\n".join(f"  {escape(line)}" for line in text.split("\n")))
    console.print()


def _fill(console: Console, session: Session, chosen: Sequence[Poem]) -> None:
    from glm_export import api
    from glm_export.evaluation.recall import BLANK, blanked

    for poem in chosen:
        text, line = blanked(poem)
        filled = api.infill(session, text)
        _heading(console, poem, exact=filled.fills == (line,))
        before, after = text.split(BLANK)
        console.print(f"  [dim]{escape(before)}[/]{escape(filled.fills[0])}[dim]{escape(after)}[/]")
    console.print()


def _heading(console: Console, poem: Poem, *, exact: bool) -> None:
    verdict = "[green]exact[/]" if exact else "[yellow]differs from the text[/]"
    console.print(f"\n[bold]{escape(poem.title)}[/] {escape(poem.author)}  {verdict}")
