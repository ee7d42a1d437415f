"""The command line: parse, call one library function, print. Heavy modules are imported inside the verbs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console

from glm_export import __version__, families
from glm_export.calibration import recipes
from glm_export.errors import EnvironmentMissingError, GlmExportError
from glm_export.graphs import dialects
from glm_export.spec.dtypes import DTYPES
from glm_export.spec.signature import LOGITS_KINDS
from glm_export.terminal.engines import build, doctor

MESSAGES = Console(stderr=True, highlight=False)
FOLDER = click.Path(path_type=Path)


class Verbs(click.RichGroup):
    """One red line and an exit code for every error a user can act on; ``--debug`` shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except GlmExportError as error:
            self._fail(ctx, str(error), error.exit_code, error)
        except KeyboardInterrupt as error:
            self._fail(ctx, "interrupted; nothing was left half-written, run it again", 3, error)
        except (OSError, MemoryError) as error:
            message = f"the system refused: {error or 'out of memory'}; free what is short and run it again"
            self._fail(ctx, message, EnvironmentMissingError.exit_code, error)

    def _fail(self, ctx: click.Context, message: str, code: int, error: BaseException) -> None:
        if ctx.params.get("debug"):
            raise error
        MESSAGES.print(f"[bold red]Error:[/] {_escape(message)}", soft_wrap=True)
        ctx.exit(code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


reference_dtype_option = click.option(
    "--reference-dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Of PyTorch; the checkpoint's own needs no copy of its weights.",
)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glm-export")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """From a GLM-family checkpoint to a deployed model.

    CHECKPOINT is a model folder in the publisher's layout, or an embedded model: `demo` (a ChatGLM2 that recites
    Tang poems), `demo-glm` (a GLM that fills their blanked lines).

    Exit codes: 0 done, 1 comparison failed, 2 usage or input, 3 environment.
    """


@cli.command()
@click.argument("checkpoint")
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--dialect", type=click.Choice(dialects.names()), default="onnx", show_default=True, help="Target.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of weights and cache.")
@click.option("--recipe", type=click.Choice(recipes.names()), help="Quantize; `glm-export recipes` lists them.")
@click.option("--ranges", type=FOLDER, help="What `calibrate` measured: recipes that need it, and safe float16.")
@click.option("--budget", help="With a recipe: leave the fewest layers in float that keep to it, e.g. kl=0.01.")
@click.option("--corpus", default="default", show_default=True, help="What a budget is measured on.")
@click.option("--logits", type=click.Choice(LOGITS_KINDS), help="Of all tokens or the last; default: the dialect's.")
@click.option("--max-length", type=click.IntRange(1), help="Tokens a static cache holds (dialect tensorrt).")
@click.option("--family", type=click.Choice(families.names()), help="Where config.json leaves it open.")
@click.option("--force", is_flag=True, help="Replace an exported folder.")
def export(
    checkpoint: str, out: Path, family: str | None, force: bool, budget: str | None, corpus: str, **options: Any
) -> None:
    """Write an ONNX program for CHECKPOINT."""
    from glm_export import api
    from glm_export.artifacts.output_folder import require_writable
    from glm_export.exporter.options import ExportOptions, resolve_options
    from glm_export.exporter.plan import plan_export
    from glm_export.terminal.console import ProgressBars
    from glm_export.terminal.export import show_float16_risk, show_mixed_precision, show_plan, show_written

    require_writable(out, force=force)
    opened = api.open_checkpoint(checkpoint, family)
    chosen = ExportOptions(**options | {"ranges": api.open_ranges(options["ranges"])})
    target = resolve_options(opened.config, chosen)
    if budget is not None:
        with ProgressBars(MESSAGES) as bars:
            mixed = api.exclude_layers(opened, target, budget, corpus, progress=bars)
        show_mixed_precision(MESSAGES, mixed)
        chosen = replace(chosen, excluded=mixed.excluded)
        target = resolve_options(opened.config, chosen)
    show_plan(MESSAGES, opened, plan_export(opened, out, target.dtype, target.quantization), target)
    show_float16_risk(MESSAGES, target, measured=chosen.ranges is not None)
    with ProgressBars(MESSAGES) as bars:
        program = api.export(opened, out, chosen, force=force, progress=bars)
    show_written(MESSAGES, program)


@cli.command()
@click.argument("checkpoint")
@click.option("--corpus", default="default", show_default=True, help="A .txt or .jsonl; or default, poems, technical.")
@click.option("--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--recipe", type=click.Choice(recipes.names()), help="One that has weights rounded here: int4-gptq.")
@click.option("--sequence-length", type=click.IntRange(16), default=512, show_default=True, help="Tokens of a row.")
@click.option("--max-samples", type=click.IntRange(1), help="Rows to take, evenly spaced; all without it.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--family", type=click.Choice(families.names()), help="Where config.json leaves it open.")
@click.option("--force", is_flag=True, help="Replace a folder of ranges.")
def calibrate(checkpoint: str, out: Path, family: str | None, **options: Any) -> None:
    """Measure CHECKPOINT's activations on text, one layer in memory at a time.

    A run that was interrupted goes on where it stopped.
    """
    from glm_export import api
    from glm_export.terminal.calibrate import show_calibration_plan, show_ranges
    from glm_export.terminal.console import ProgressBars

    opened = api.open_checkpoint(checkpoint, family)
    with ProgressBars(MESSAGES) as bars:
        ranges = api.calibrate(
            opened, out, **options, progress=bars, on_plan=lambda read: show_calibration_plan(MESSAGES, opened, read)
        )
    show_ranges(MESSAGES, ranges)


@cli.command()
@click.argument("program", type=FOLDER)
@click.option("--against", required=True, help="The checkpoint it was exported from, or `demo`.")
@click.option("--corpus", default="default", show_default=True, help="A .txt or .jsonl; or default, poems, technical.")
@click.option("--max-samples", type=click.IntRange(1), help="Rows to take, evenly spaced; all without it.")
@click.option("--sequence-length", type=click.IntRange(16), default=512, show_default=True, help="Tokens of a row.")
@click.option("--budget", multiple=True, help="e.g. kl=0.01 or recall=0.99; exit 1 where it is exceeded.")
@reference_dtype_option
@click.option("--by-layer", is_flag=True, help="Also what each layer's quantizing costs alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def quality(program: Path, against: str, as_json: bool, **options: Any) -> None:
    """Measure on text how far PROGRAM is from the model it was made of.

    Perplexity, KL divergence, agreement of the likeliest tokens, greedy text, and tasks recalled exactly.
    """
    from glm_export import api
    from glm_export.terminal.console import ProgressBars
    from glm_export.terminal.quality import show_costs, show_quality

    with ProgressBars(MESSAGES) as bars:
        verdict = api.quality(program, against, progress=bars, **options)
    if as_json:
        click.echo(json.dumps(verdict.to_json(), indent=2))
    else:
        show_quality(Console(highlight=False), verdict.report, str(program), verdict.broken)
        if verdict.costs is not None:
            show_costs(Console(highlight=False), verdict.costs)
    if verdict.broken:
        sys.exit(1)


@cli.command("recipes")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_recipes(as_json: bool) -> None:
    """What `export --recipe` knows: how weights are stored and multiplied, and where that runs."""
    from glm_export.terminal.recipes import show_recipes

    known = [recipes.load(name) for name in recipes.names()]
    if as_json:
        rows = [recipe.to_json() for recipe in known]
        click.echo(json.dumps(rows, indent=2, default=sorted))
    else:
        show_recipes(Console(highlight=False), known)


@cli.command()
@click.argument("program", type=FOLDER)
@click.option("--against", required=True, help="The checkpoint it is of, or `demo`; for an engine also its program.")
@reference_dtype_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(program: Path, against: str, reference_dtype: str, as_json: bool) -> None:
    """Prove the exported PROGRAM, or an engine, equal to PyTorch; exit 1 where it is not.

    An engine can be held to the exported folder it was built of as well, in ONNX Runtime.
    """
    from glm_export import api
    from glm_export.terminal.check import show_parity

    report = api.check(program, against, reference_dtype=reference_dtype)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        show_parity(Console(highlight=False), report)
    if not report.passed:
        sys.exit(1)


def sampling_options(command: Any) -> Any:
    """The options of everything that writes text."""
    for option in reversed(
        (
            click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
            click.option("--top-k", type=int, default=0, show_default=True, help="Draw from the k likeliest; 0: all."),
            click.option(
                "--top-p", type=float, default=1.0, show_default=True, help="Draw from this probability mass."
            ),
            click.option(
                "--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1 avoids repeats."
            ),
            click.option("--seed", type=int, help="Makes draws repeatable."),
        )
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("model")
@click.option("--prompt", "prompts", multiple=True, required=True, help="Text to continue; several run as a batch.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True)
@sampling_options
@click.option("--stop", "stop_strings", multiple=True, help="Text that ends the answer.")
@click.option("--stream", is_flag=True, help="Print as it is written (one prompt).")
def generate(
    model: str,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    stop_strings: tuple[str, ...],
    stream: bool,
    **sampling: Any,
) -> None:
    """Continue a text with MODEL, an exported folder (ONNX Runtime), an engine or a checkpoint (PyTorch)."""
    from glm_export import api
    from glm_export.generation.sampling import Sampling
    from glm_export.terminal.generate import write_stream

    if stream and len(prompts) > 1:
        raise click.UsageError("--stream shows one text as it grows; give one --prompt, or leave --stream out")
    chosen = Sampling(**sampling)
    with api.load_session(model) as session:
        if stream:
            write_stream(session, session.encode(prompts[0]), max_new_tokens, chosen, stop_strings)
            return
        answers = api.generate(
            session, list(prompts), max_new_tokens=max_new_tokens, sampling=chosen, stop_strings=stop_strings
        )
    for answer in answers:
        click.echo(answer.strip("\n"))


@cli.command()
@click.argument("model")
@click.option("--text", required=True, help="With one or more [MASK], [sMASK] or [gMASK].")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="For each blank.")
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print text and fills as JSON.")
def infill(model: str, text: str, max_new_tokens: int, as_json: bool, **sampling: Any) -> None:
    """Fill the blanks of a text with MODEL, a GLM or ChatGLM-6B."""
    from glm_export import api
    from glm_export.generation.sampling import Sampling

    chosen = Sampling(**sampling)
    with api.load_session(model) as session:
        result = api.infill(session, text, max_new_tokens=max_new_tokens, sampling=chosen)
    if as_json:
        click.echo(json.dumps({"text": result.text, "fills": result.fills}, indent=2, ensure_ascii=False))
    else:
        click.echo(result.text)


@cli.command()
@click.argument("model")
@click.option("--text", required=True, help="What to judge.")
@click.option("--pattern", required=True, help='With {} for the text and one [MASK], as in "{}. It\'s really [MASK]."')
@click.option("--labels", required=True, help="Words for the blank, separated by commas.")
@click.option("--sum", "whole", is_flag=True, help="Rank by the whole label instead of a token of it.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def score(model: str, text: str, pattern: str, labels: str, whole: bool, as_json: bool) -> None:
    """Say which label fits the blank best, with MODEL, a GLM or ChatGLM-6B."""
    from glm_export import api
    from glm_export.terminal.infill import score_facts, show_scores

    words = [word.strip() for word in labels.split(",")]
    with api.load_session(model) as session:
        scores = api.score(session, text, pattern=pattern, labels=words, normalize=not whole)
    if as_json:
        click.echo(json.dumps(score_facts(scores), indent=2, ensure_ascii=False))
    else:
        show_scores(Console(highlight=False), scores)


@cli.command()
@click.argument("model")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="Of each reply.")
@click.option("--system", help="System message, where the model's prompt has one.")
@sampling_options
def chat(model: str, max_new_tokens: int, system: str | None, **sampling: Any) -> None:
    """Talk with MODEL, an exported folder, an engine or a checkpoint. An empty line or end of input leaves."""
    from glm_export import api
    from glm_export.generation.sampling import Sampling
    from glm_export.terminal.generate import converse

    chosen = Sampling(**sampling)
    with api.load_session(model) as session:
        converse(session, MESSAGES, max_new_tokens=max_new_tokens, system=system, sampling=chosen)


@cli.command()
@click.argument("folder")
@click.option("--family", type=click.Choice(families.names()), help="Where config.json leaves it open.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def inspect(folder: str, family: str | None, as_json: bool) -> None:
    """Say what FOLDER is: a checkpoint (audited), an exported program, an engine or ranges."""
    from glm_export.deployment.inspect import inspect_folder
    from glm_export.terminal.inspect import show_facts

    facts = inspect_folder(folder, family)
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        show_facts(Console(highlight=False), facts)


@cli.command()
@click.argument("model")
@click.option("--prompt-tokens", type=int, default=512, show_default=True, help="To read at once, for prefill.")
@click.option("--context", type=int, default=128, show_default=True, help="Tokens before decoding starts.")
@click.option("--new-tokens", type=int, default=64, show_default=True, help="To decode.")
@click.option("--batch", type=int, default=1, show_default=True, help="Rows at once.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Of which the median counts.")
@click.option("--threads", type=int, help="Of one operator; without it, what a session takes by itself.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def bench(model: str, as_json: bool, **options: Any) -> None:
    """Measure speed and memory of MODEL, an exported folder (ONNX Runtime), an engine or a checkpoint (PyTorch)."""
    from glm_export.performance.bench import bench as run_bench
    from glm_export.performance.report import BenchOptions
    from glm_export.terminal.bench import show_bench

    report = run_bench(model, BenchOptions(**options))
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        show_bench(Console(highlight=False), report)


@cli.command()
@click.option("--out", type=FOLDER, default=Path("glm-export-demo"), show_default=True, help="Folder to write.")
def demo(out: Path) -> None:
    """Export the embedded models, prove them, and let them recite and fill blanks."""
    from glm_export.terminal.demo import run_demo

    run_demo(Console(highlight=False), MESSAGES, out)


cli.add_command(build)
cli.add_command(doctor)


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="glm-export")


if __name__ == "__main__":
    main()
