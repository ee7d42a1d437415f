"""The library in a few calls; the command line is made of the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from glm_export.artifacts.engine import Engine, load_engine
from glm_export.artifacts.open import Kind, kind_of, located, open_artifact, require_checkpoint, with_base
from glm_export.artifacts.output_folder import require_writable
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.calibration.options import CalibrationKeywords, CalibrationOptions, Row, TextOptions
from glm_export.errors import InputError
from glm_export.evaluation.options import BUDGET_SAMPLES, QualityKeywords, QualityOptions
from glm_export.evaluation.texts.hidden_states import embed, hidden_states
from glm_export.evaluation.texts.likelihood import Likelihood, logits, loglikelihood
from glm_export.exporter.options import ExportKeywords, ExportOptions, open_ranges
from glm_export.generation.infilling import infill, score
from glm_export.generation.stopping import Decode
from glm_export.generation.texts import Piece, chat, chat_message, generate, stopping_for, stream
from glm_export.progress import Progress
from glm_export.proof.options import CheckKeywords, CheckOptions
from glm_export.sessions.load import session_of
from glm_export.sessions.session import Session
from glm_export.spec.option import merged, takes
from glm_export.tokenizers.chat.messages import Message

if TYPE_CHECKING:  # an exported folder runs without torch; what needs it imports it when it is called
    from glm_export.calibration.corpus.corpus import Corpus
    from glm_export.calibration.layerwise.shards import Spread
    from glm_export.calibration.ranges import Ranges
    from glm_export.checkpoints.checkpoint import Checkpoint
    from glm_export.evaluation.layer_costs import MixedPrecision
    from glm_export.evaluation.report import QualityVerdict
    from glm_export.exporter.options import ResolvedOptions
    from glm_export.proof.check import CheckReport

Source = str | Path


def open_checkpoint(
    source: Source | Checkpoint,
    family: str | None = None,
    adapters: Sequence[str | Path | tuple[str | Path, float]] = (),
) -> Checkpoint:
    """Open a model folder, or an embedded model with ``"demo"`` or ``"demo-glm"``.

    Args:
        source: a folder or its URL, or ``ORG/NAME[@REVISION]`` in the Hugging Face cache, where adapters have a base.
        family: overrules what the folder says.
        adapters: folders that PEFT saved, each alone, as ``DIR=WEIGHT`` or with its weight beside it.

    Raises:
        GlmExportError: see :func:`glm_export.checkpoints.checkpoint.open_checkpoint`.
    """
    if not isinstance(source, str | Path):
        if adapters:
            raise InputError("adapters are given when a checkpoint is opened, and this one is open")
        return source
    from glm_export.checkpoints import checkpoint

    base, found = with_base(open_artifact(source))
    return checkpoint.open_checkpoint(require_checkpoint(base), family, (*found, *adapters))


@takes(ExportOptions)
def export(
    source: Source | Checkpoint,
    out: Source,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
    **keywords: Unpack[ExportKeywords],
) -> OnnxProgram:
    """Export a checkpoint; see :func:`glm_export.exporter.export.export`.

    >>> from glm_export import export
    >>> program = export("demo", "poems-int8", dialect="ort", recipe="int8-token", force=True)
    >>> program.dialect, program.recipe
    ('ort', 'int8-token')

    Names that are only known at run time go into a record: ``ExportOptions(dialect=name)``.

    Args:
        source: a model folder, an open checkpoint, or ``"demo"``.
        out: the folder to write.
        options: how; None is the defaults.
        force: replace an exported folder.
        progress: shows the long steps.
        **keywords: options, in place of those.
    """
    from glm_export.exporter import export as exporter

    chosen = merged(ExportOptions, options, keywords)
    return exporter.export(open_checkpoint(source), Path(out), chosen, force=force, progress=progress)


def load_session(
    source: Source | OnnxProgram | Engine | Checkpoint,
    *,
    family: str | None = None,
    cache: bool = False,
    threads: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    providers: Sequence[str] | None = None,
) -> Session:
    """Run an engine in TensorRT, an exported folder in ONNX Runtime, or a checkpoint in PyTorch (float32).

    >>> from glm_export import export, load_session
    >>> program = export("demo", "poems-onnx", force=True)
    >>> with load_session(program, threads=2) as session:
    ...     session.describe().runtime
    'onnxruntime'

    Args:
        source: the folder or its URL, or what was opened.
        family: of a checkpoint, where config.json leaves it open.
        cache: keep an exported folder's weights packed for this processor, on disk, from the second time on that it is
            loaded: later sessions load faster and share their memory.
        threads: of one operator, where a processor computes; None takes one a core that the process may use.
        device: None takes a GPU for exported folders and engines where there is one, and the processor for checkpoints.
        providers: ONNX Runtime's execution providers for an exported folder, best first, in the place of ``device``.

    Raises:
        InputError: what is asked for does not go together.
        EnvironmentMissingError: this machine has no such device or provider.
        GlmExportError: the folder is none of these, or cannot run on this machine.
    """
    if isinstance(source, str | Path) and open_artifact(source).kind in (Kind.ENGINE, Kind.PROGRAM):
        source = open_exported(source)
    opened = source if isinstance(source, Engine | OnnxProgram) else open_checkpoint(source, family)
    return session_of(opened, threads=threads, cache=cache, device=device, providers=providers)


def open_exported(source: Source) -> OnnxProgram | Engine:
    """Open an exported folder or an engine's.

    Raises:
        GlmExportError: it is neither, or damaged.
    """
    folder = located(source)
    return load_engine(folder) if kind_of(folder) is Kind.ENGINE else load_program(folder)


@takes(CheckOptions)
def check(
    program: Source | OnnxProgram | Engine,
    against: Source | Checkpoint,
    options: CheckOptions | None = None,
    *,
    family: str | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[CheckKeywords],
) -> CheckReport:
    """Hold one side to another; see :func:`glm_export.proof.sides.open.check_sides`.

    >>> from glm_export import check, export
    >>> report = check(export("demo", "poems-onnx", force=True), "demo")
    >>> report.passed, report.parity.required_tolerance < 1e-5
    (True, True)

    Args:
        program: an exported folder, an engine, an ONNX file of another tool, or a saved run.
        against: its checkpoint, or one of the same.
        options: how; None is the defaults.
        family: where config.json leaves it open.
        progress: shows how far it is.
        **keywords: options, in place of those.
    """
    from glm_export.proof.sides.open import check_sides

    return check_sides(program, against, merged(CheckOptions, options, keywords), family, progress)


@takes(CalibrationOptions)
def calibrate(
    source: Source | Checkpoint,
    out: Source,
    options: CalibrationOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
    on_plan: Callable[[Corpus], None] = lambda _: None,
    spread: Spread | None = None,
    **keywords: Unpack[CalibrationKeywords],
) -> Ranges:
    """Measure a checkpoint's activations on text; see :func:`glm_export.calibration.layerwise.calibrate.calibrate`.

    >>> from glm_export import calibrate
    >>> ranges = calibrate("demo", "poems-ranges", corpus=["床前明月光，疑是地上霜。" * 20] * 2, force=True)
    >>> ranges.layers
    4

    Args:
        source: a model folder, an open checkpoint, or ``"demo"``.
        out: the folder to write.
        options: on what; None is the defaults.
        force: replace a folder of ranges.
        progress: shows how far it is.
        on_plan: is told what was read before the work begins.
        spread: workers that take rows of text through layers.
        **keywords: options, in place of those.
    """
    from glm_export.calibration.layerwise import calibrate as walk

    chosen = merged(CalibrationOptions, options, keywords)
    loaded, device = chosen.loaded_recipe, chosen.device
    checkpoint = open_checkpoint(source)
    require_writable(Path(out), force=force, kinds=(Kind.RANGES,))
    read = _read(chosen, checkpoint)
    on_plan(read)
    return walk.calibrate(
        checkpoint, read, Path(out), recipe=loaded, device=device, force=force, progress=progress, spread=spread
    )


def _read(options: TextOptions, checkpoint: Checkpoint) -> Corpus:
    return open_corpus(
        options.corpus, checkpoint, sequence_length=options.sequence_length, max_samples=options.max_samples
    )


def open_corpus(
    corpus: Source | Sequence[Row] | Corpus,
    checkpoint: Checkpoint,
    *,
    sequence_length: int = 512,
    max_samples: int | None = None,
) -> Corpus:
    """Text as a checkpoint's tokens; see :func:`glm_export.calibration.corpus.load.load_corpus`."""
    from glm_export.calibration.corpus.corpus import Corpus
    from glm_export.calibration.corpus.load import load_corpus

    if isinstance(corpus, Corpus):
        return corpus
    return load_corpus(
        corpus, checkpoint.tokenizer, checkpoint.config, sequence_length=sequence_length, max_samples=max_samples
    )


def exclude_layers(
    checkpoint: Checkpoint,
    target: ResolvedOptions,
    budget: str,
    corpus: Source | Corpus = "default",
    *,
    layer_by_layer: bool = False,
    kept: Path | None = None,
    on_plan: Callable[[Corpus, int], None] = lambda _, __: None,
    progress: Progress | None = None,
) -> MixedPrecision:
    """The fewest layers to leave in float for a budget; see :func:`glm_export.evaluation.layer_costs.exclude_layers`.

    Args:
        checkpoint: the model.
        target: what it would be exported as.
        budget: ``kl=NUMBER``.
        corpus: what it is measured on: 16 rows of it, evenly spaced; one that is open is read whole.
        layer_by_layer: in the memory of one layer; done unasked where whole models do not fit.
        kept: file that keeps what is measured, whole behind each layer; a run in which everything is the same goes on
            from it. GPTQ's integers are not told apart: with them nothing is kept.
        on_plan: is told the text, and how many measurements an earlier run left.
        progress: shows how far it is.

    Raises:
        InputError: there is no recipe, or the budget limits something else than ``kl``.
    """
    from glm_export.evaluation import layer_costs as sensitivity
    from glm_export.evaluation.budget import Budget
    from glm_export.evaluation.judged import too_large
    from glm_export.evaluation.kept_costs import KeptCosts, identity_of

    limits = dict(Budget.parse(budget).limits)
    if target.quantization is None or limits.keys() != {"kl"}:
        raise InputError(f"an export's budget is kl=NUMBER, and needs --recipe; found {budget!r}")
    read = open_corpus(corpus, checkpoint, max_samples=BUDGET_SAMPLES)
    # The model and its quantized layers are held at once.
    layered = layer_by_layer or too_large(checkpoint, "float32", copies=2)
    identity = identity_of(checkpoint, target.quantization, read, dtype="float32", layer_by_layer=layered)
    known = KeptCosts(kept if target.quantization.rounded is None else None, identity)
    on_plan(read, known.taken_up)
    return sensitivity.exclude_layers(
        checkpoint,
        target.quantization,
        read,
        limits["kl"],
        layer_by_layer=layered,
        kept=known,
        progress=progress,
    )


@takes(QualityOptions)
def quality(
    program: Source | OnnxProgram | Engine,
    against: Source | Checkpoint,
    options: QualityOptions | None = None,
    *,
    family: str | None = None,
    progress: Progress | None = None,
    **keywords: Unpack[QualityKeywords],
) -> QualityVerdict:
    """Measure on text how far a program is from its checkpoint; see :func:`glm_export.evaluation.measure.measure`.

    >>> from glm_export import export, quality
    >>> program = export("demo", "poems-int8", dialect="ort", recipe="int8-token", force=True)
    >>> verdict = quality(program, "demo", corpus="poems", max_samples=4, budget="kl=0.01")
    >>> verdict.report.kl < 0.01, verdict.broken
    (True, ())

    Args:
        program: an exported folder, or an engine.
        against: its checkpoint.
        options: on what, and what may be lost; None is the defaults.
        family: where config.json leaves it open.
        progress: shows how far it is.
        **keywords: options, in place of those.
    """
    from glm_export.evaluation.budget import Budget
    from glm_export.evaluation.judged import judged_quality
    from glm_export.proof.origin import open_origin

    chosen = merged(QualityOptions, options, keywords)
    loaded = open_exported(program) if isinstance(program, str | Path) else program
    checkpoint = open_origin(loaded.program if isinstance(loaded, Engine) else loaded, against, family)
    limits = Budget.parse(chosen.budget) if chosen.budget else None
    return judged_quality(loaded, checkpoint, _read(chosen, checkpoint), limits, chosen, load_session, progress)


__all__ = [
    "Decode",
    "Likelihood",
    "Message",
    "Piece",
    "calibrate",
    "chat",
    "chat_message",
    "check",
    "embed",
    "exclude_layers",
    "export",
    "generate",
    "hidden_states",
    "infill",
    "load_session",
    "logits",
    "loglikelihood",
    "open_checkpoint",
    "open_corpus",
    "open_ranges",
    "quality",
    "score",
    "stopping_for",
    "stream",
]
