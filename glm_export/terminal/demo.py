"""The demo: export both embedded models, prove them, and let people judge what they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.embedded import DEMO, DEMO_GLM, Poem, poems
from glm_export.errors import ComparisonFailedError
from glm_export.terminal.console import FOLDER, MESSAGES, RESULTS, ProgressBars

if TYPE_CHECKING:
    from glm_export.artifacts.program import OnnxProgram
    from glm_export.checkpoints.checkpoint import Checkpoint
    from glm_export.sessions.session import Session

RECITED = ("夜思", "江雪", "登鹳雀楼")
FILLED = ("春晓", "杂诗")
# A cloze anybody can judge: which word follows the bright moon?
CLOZE_TEXT = "疑是地上霜。举头望明月，低头思故乡。"
CLOZE_PATTERN = "床前明月[MASK]，{}"
CLOZE_LABELS = ("光", "风", "人", "山")


@click.command()
@click.option("--out", type=FOLDER, default=Path("glm-export-demo"), show_default=True, help="Folder to write.")
def demo(out: Path) -> None:
    """Export the embedded models, prove them, and let them recite and fill blanks."""
    run_demo(RESULTS, MESSAGES, out)


def run_demo(results: Console, messages: Console, out: Path) -> None:
    """Export, check and show the embedded ChatGLM2 in ``out``, then the embedded GLM in ``out``-glm.

    Raises:
        ComparisonFailedError: a program differs from PyTorch.
    """
    from glm_export import api
    from glm_export.evaluation.recall import BLANK, fill_recall, recall
    from glm_export.terminal.infill import show_scores

    corpus = poems()
    program, checkpoint, passed = _prove(results, messages, DEMO, out)
    with api.load_session(program) as session, api.load_session(checkpoint) as reference:
        _recite(results, session, [poem for poem in corpus if poem.title in RECITED])
        there, here = recall(reference, corpus), recall(session, corpus)
    results.print(f"next lines recited exactly: PyTorch {there}, ONNX Runtime {here}")
    results.print(f"try: glm-export generate {escape(str(out))} --prompt 白日依山尽，黄河入海流。 --stream\n")
    second = out.with_name(f"{out.name}-glm")
    program, checkpoint, also_passed = _prove(results, messages, DEMO_GLM, second)
    with api.load_session(program) as session, api.load_session(checkpoint) as reference:
        _fill(results, session, [poem for poem in corpus if poem.title in FILLED and len(poem.lines) == 2])
        results.print(f"which word fits?  [dim]{escape(CLOZE_PATTERN.format(CLOZE_TEXT))}[/]")
        show_scores(results, api.score(session, CLOZE_TEXT, pattern=CLOZE_PATTERN, labels=CLOZE_LABELS))
        there, here = fill_recall(reference, corpus), fill_recall(session, corpus)
    results.print(f"blanked lines filled exactly: PyTorch {there}, ONNX Runtime {here}")
    results.print(f"try: glm-export infill {escape(str(second))} --text 床前明月光，疑是地上霜。{escape(BLANK)}")
    if not (passed and also_passed):
        raise ComparisonFailedError("an exported demo differs from PyTorch; see the tables above")


def _prove(results: Console, messages: Console, name: str, out: Path) -> tuple[OnnxProgram, Checkpoint, bool]:
    from glm_export import api
    from glm_export.terminal.check import show_parity
    from glm_export.terminal.export import show_written

    checkpoint = api.open_checkpoint(name)
    with ProgressBars(messages) as bars:
        program = api.export(checkpoint, out, force=True, progress=bars)
    show_written(messages, program)
    report = api.check(program, checkpoint)
    show_parity(results, report)
    return program, checkpoint, report.passed


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
