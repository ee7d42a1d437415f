"""The command line: which verbs there are, and what an error exits with. A verb is imported when it is called."""

from __future__ import annotations

import logging
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import rich_click as click

from glm_export import errors
from glm_export.errors import EnvironmentMissingError, GlmExportError, cut, one_line
from glm_export.terminal.frame import saying

VERBS = {
    "batch": "Answer a file of requests with MODEL, in OpenAI's batch format; run again, it goes on where it stopped.",
    "bench": (
        "Measure speed and memory of MODEL, an exported folder (ONNX Runtime), an engine or a checkpoint (PyTorch)."
    ),
    "build": "Build a TensorRT engine of SOURCE, an exported folder or a checkpoint.",
    "cache": "List the model folders in the cache, verify their bytes (exit 1 where some are damaged), or remove them.",
    "calibrate": "Measure CHECKPOINT's activations on text, one layer in memory at a time.",
    "certify": (
        "Check PROGRAM, or an engine, write into it what was proven, and sign it with --key; exit 1 where it fails."
    ),
    "chat": "Talk with MODEL, an exported folder, an engine or a checkpoint. An empty line or end of input leaves.",
    "check": "Prove the exported PROGRAM, or an engine, equal to PyTorch; exit 1 where it is not.",
    "deploy": "Write what other people's servers need to run an exported folder or an engine.",
    "demo": "Export the embedded models, prove them, and let them recite and fill blanks.",
    "doctor": "Show what this machine has, and which FOLDERS it can run; exit 3 where one cannot.",
    "export": "Write an ONNX program for CHECKPOINT.",
    "fetch": (
        "Fetch the model folder at URL into the cache, and print where it lies there and the URL that pins its version."
    ),
    "generate": "Continue a text with MODEL, an exported folder (ONNX Runtime), an engine or a checkpoint (PyTorch).",
    "infill": "Fill the blanks of a text with MODEL, a GLM or ChatGLM-6B.",
    "inspect": "Say what FOLDER is: a checkpoint (audited), an exported program, an engine or ranges.",
    "plot": "Draw what verbs measured: a folder of ranges, what layers cost, or programs beside each other.",
    "quality": "Measure on text how far PROGRAM is from the model it was made of.",
    "recipes": "What `export --recipe` knows: how weights are stored and multiplied, and where that runs.",
    "serve": "Serve MODELS (exported folders, engines, checkpoints, `demo`) by OpenAI's API, batched continuously.",
    "score": "Say which label fits the blank best, with MODEL, a GLM or ChatGLM-6B.",
    "top": "Show what the server at URL does: rows, tokens a second, and what is kept, of each model.",
    "verify": "Say whether FOLDER is still the one that was proven, and by whom; exit 1 where it is not.",
}
"""Every verb, and its line in ``--help``: the first paragraph of its own, which is not imported for that."""
PANELS = {
    "To try it": ("demo", "doctor", "recipes", "inspect"),
    "From a checkpoint to a program and an engine": ("export", "calibrate", "build"),
    "Is it right, how good, how fast": ("check", "quality", "bench", "plot", "certify", "verify"),
    "To use it": ("generate", "chat", "infill", "score", "batch"),
    "For others": ("serve", "top", "deploy", "fetch", "cache"),
}
"""Every verb once, as ``--help`` groups them."""
HOME = {
    "batch": "serving.batch",
    "build": "engines",
    "cache": "store.fetch",
    "chat": "writing.chat",
    "certify": "certificates.certify",
    "deploy": "deploy.targets",
    "doctor": "engines",
    "fetch": "store.fetch",
    "generate": "writing.generate",
    "infill": "writing.infill",
    "plot": "pictures.plot",
    "recipes": "export",
    "score": "writing.infill",
    "serve": "serving.serve",
    "top": "serving.top",
    "verify": "certificates.certify",
}
"""The module of a verb in ``terminal/`` where it is not called like the verb."""

WHOLE_ALONE = frozenset(["torch", "onnx", "onnx_ir", "onnxscript", "polygraphy"])
"""Packages that exporting and proving take, and running does not (``runtime/pyproject.toml``)."""
HELP = {
    # Flag and value in one column, choices in the text: at 80 columns neither is cut.
    "options_table_column_types": ["required", "opt_all_metavar", "help"],
    "append_metavars_help_string": "{}",
    "delimiter_comma": ", ",
}
"""How ``--help`` is laid out."""
COMPLETE = "_GLM_EXPORT_COMPLETE"
"""The variable by which a shell asks for completions, as click names it."""


class Verb(click.RichCommand):
    """A verb's name and line; parsing its words imports the verb."""

    def load(self) -> click.Command:
        """The verb itself."""
        name = str(self.name)
        command: click.Command = getattr(import_module(f"glm_export.terminal.{HOME.get(name, name)}"), name)
        from glm_export.terminal.frame.verb import framed

        return framed(command)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse with the verb's own options; then folders behind URLs are fetched."""
        context = self.load().make_context(info_name, args, parent, **extra)
        from glm_export.terminal.console import fetch_models

        if not context.resilient_parsing:
            fetch_models(context)
        return context


class Verbs(click.RichGroup):
    """One red line and an exit code for every error; ``--debug`` shows the traceback.

    What nobody foresaw is a fault of ours, and says so; it exits with 3 as what a user's input cannot mend.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Every verb, as its panels have them."""
        return [name for names in PANELS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """A verb, not imported yet; None where there is none of that name."""
        if cmd_name not in VERBS:
            return None
        panel = next(panel for panel, names in PANELS.items() if cmd_name in names)
        return Verb(name=cmd_name, help=VERBS[cmd_name], panel=panel)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that is asked for, or the one that is likely meant."""
        if args[0] not in VERBS and not ctx.resilient_parsing:
            meant = get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {meant[0]!r}?" if meant else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb."""
        from glm_export.artifacts.output_folder import abandon_all
        from glm_export.machine.bus_error import announce_bus_errors

        announce_bus_errors(abandon_all)
        try:
            return super().invoke(ctx)
        except GlmExportError as error:
            self._fail(ctx, str(error), error.exit_code, error)
        except KeyboardInterrupt as error:
            self._fail(ctx, "interrupted; nothing was left half-written, run it again", 3, error)
        except (OSError, MemoryError) as error:
            message = f"the system refused: {error or 'out of memory'}; free what is short and run it again"
            self._fail(ctx, message, EnvironmentMissingError.exit_code, error)
        except (click.ClickException, click.exceptions.Exit, click.Abort):  # type: ignore[attr-defined]
            raise
        except ModuleNotFoundError as error:
            self._fail(ctx, absent(error) or fault(error), EnvironmentMissingError.exit_code, error)
        except Exception as error:
            self._fail(ctx, fault(error), 3, error)

    def _fail(self, ctx: click.Context, message: str, code: int, error: BaseException) -> None:
        if ctx.find_root().meta.get(saying.DEBUG):
            raise error
        from rich.markup import escape

        from glm_export.terminal.console import ERRORS

        ERRORS.print(f"[bold red]Error:[/] {escape(one_line(message))}", soft_wrap=True)
        ctx.exit(code)


def absent(error: ModuleNotFoundError) -> str | None:
    """What to install where a package is missing that only the whole distribution brings; None for any other."""
    package = (error.name or "").partition(".")[0]
    if package not in WHOLE_ALONE:
        return None
    return (
        f"this takes {package}, which glm-export-runtime leaves out: pip uninstall glm-export-runtime, then "
        "pip install glm-export; exported folders run without it"
    )


def fault(error: Exception) -> str:
    """What is said of an error nobody foresaw: where it rose in our code, and what to report."""
    root, place, trace = os.path.dirname(os.path.dirname(errors.__file__)), "outside of it", error.__traceback__
    while trace is not None:
        path = os.path.relpath(trace.tb_frame.f_code.co_filename, root)
        if path.startswith(f"glm_export{os.sep}"):
            place = f"{path}, line {trace.tb_lineno}"
        trace = trace.tb_next
    what = cut(f"{type(error).__name__}: {error}", 300)
    return (
        f"this is a fault of glm-export, not of the input: {what} ({place}); report this line, the command, "
        "glm-export --version, and what `glm-export --debug VERB …` shows"
    )


def show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the version and leave."""
    if asked and not ctx.resilient_parsing:
        # Looking it up reads every installed package's name, which --help need not wait for.
        from glm_export import __version__

        click.echo(f"glm-export, version {__version__}")
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "rich_help_config": HELP})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=show_version,
    help="Show the version and exit.",
)  # fmt: skip
def cli() -> None:
    """From a GLM-family checkpoint to a deployed model.

    CHECKPOINT is a model folder in the publisher's layout, or an embedded model: `demo` (a ChatGLM2 that recites
    Tang poems), `demo-glm` (a GLM that fills their blanked lines).

    Exit codes: 0 done, 1 comparison failed, or a request of a batch, 2 usage or input, 3 environment, or a fault of
    glm-export.
    """


def main() -> None:
    """Entry point of the console script."""
    from glm_export.terminal.console import until_unread

    # A terminal that is not Unicode's shows what it has no character for as its number.
    sys.stdout, sys.stderr = (until_unread(stream, errors="backslashreplace") for stream in (sys.stdout, sys.stderr))
    logging.getLogger("glm_export").addHandler(saying.Remarks())
    if COMPLETE in os.environ:
        from glm_export.terminal.frame.completion import prepare_completion

        prepare_completion()
    try:
        cli(prog_name="glm-export")
    except SystemExit as ended:
        unwritten = flush(quiet=bool(ended.code))
        raise SystemExit(ended.code or unwritten) from ended


def flush(*, quiet: bool) -> int:
    """Write what is not yet written, while there is somebody to tell that it cannot be: a disk may be full.

    Args:
        quiet: something went wrong before, and was said.

    Returns:
        An exit code.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if not quiet:
            click.echo(f"Error: what was printed cannot be written: {error}; write it elsewhere", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EnvironmentMissingError.exit_code
    return 0


cli.params += saying.options("Options")
if __name__ == "__main__":
    main()
