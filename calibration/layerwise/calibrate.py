"""Calibration: a checkpoint taken layer by layer, with text passing through.

One layer's weights are in memory at a time; between layers hidden states lie on disk. A killed run goes on where it
stopped and ends in the same bits: each layer reads what the one before it wrote, never what it still had in memory.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from glm_export.artifacts.folder_lock import alone
from glm_export.artifacts.manifest import RANGES_MANIFEST, recorded_files, write_json
from glm_export.artifacts.open import Kind
from glm_export.artifacts.output_folder import require_writable, take_name
from glm_export.calibration.corpus.corpus import Corpus
from glm_export.calibration.layerwise.hidden_states import HiddenStatesWriter, read_hidden_states
from glm_export.calibration.layerwise.observe import Numbers, Seen
from glm_export.calibration.layerwise.passing import Model, Rows, name_of, observing, passed
from glm_export.calibration.layerwise.resume import STATE, resume_or_start, take_file_name
from glm_export.calibration.layerwise.search import round_layer, search_smoothing
from glm_export.calibration.layerwise.shards import Spread, passed_by_workers
from glm_export.calibration.ranges import RANGES, RANGES_FORMAT, Ranges, load_ranges
from glm_export.calibration.recipe import Recipe
from glm_export.calibration.rounded_folder import rounded_name
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.modeling import Decoder
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.spec.config import GlmConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerwiseRun:
    """One run: what is walked, with which text, where to, and who helps."""

    model: Model
    corpus: Corpus
    recipe: Recipe | None
    work: Path
    spread: Spread | None

    @property
    def config(self) -> GlmConfig:
        return self.model.config

    @property
    def rows(self) -> Rows:
        """All of the corpus."""
        return Rows(samples=self.corpus.samples, before=0, total=self.corpus.tokens)

    def hidden_states(self, layer: int) -> Path:
        """Hidden states that a layer reads."""
        return self.work / f"spool-{layer:03}"

    def numbers(self, layer: int) -> Path:
        """What was measured in a layer; the head's come after the last."""
        return self.work / f"layer-{layer:03}.safetensors"


def calibrate(
    checkpoint: Checkpoint,
    corpus: Corpus,
    out: Path,
    *,
    recipe: Recipe | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> Ranges:
    """Measure a checkpoint's activations on a corpus.

    Args:
        checkpoint: the model.
        corpus: the text.
        out: the folder to write. While running, what is done so far lies in ``.{name}.work`` beside it; a run with the
            same checkpoint, corpus and recipe goes on from there.
        recipe: one that rounds weights itself (``int4-gptq``), to do so.
        device: where layers are computed, ``cpu`` or ``cuda``.
        force: replace a folder of ranges.
        progress: shows how far it is.
        spread: workers that take rows through a layer; the ranges are the same bits. What a run has done is gone on
            from with and without them.

    Returns:
        The ranges, loaded from ``out``.

    Raises:
        InputError: ``out`` exists; activations are NaN, infinite or all zero; or weights are rounded here, for which
            rows pass one after another.
        CheckpointError: tensors are missing, mis-shaped or damaged; or files changed meanwhile.
    """
    given, out = out, require_writable(out, force=force, kinds=(Kind.RANGES,), sources=checkpoint.folders)
    checkpoint.audit()
    rounding = recipe if recipe is not None and recipe.rounding == "gptq" else None
    if rounding is not None and spread is not None:
        raise InputError(
            f"{rounding.name} adds products of rows in their order, which workers would change; leave --ray out"
        )
    run = _LayerwiseRun(
        model=Model(checkpoint=checkpoint, device=torch.device(device)),
        corpus=corpus,
        recipe=rounding,
        work=out.parent / f".{out.name}.work",
        spread=spread,
    )
    identity = _identity(run)
    layers = checkpoint.config.num_layers
    advance = (progress or NullProgress()).task("layers", (layers + 1) * corpus.tokens)
    out.parent.mkdir(parents=True, exist_ok=True)
    logger.info("%d rows, %d tokens, through %d layers on %s", len(corpus.samples), corpus.tokens, layers, device)
    with alone(out), torch.inference_mode():
        resume_or_start(run.work, identity)
        _pass_through(run, advance)
        checkpoint.require_unchanged()
        require_writable(out, force=force, kinds=(Kind.RANGES,))
        _finish(run, out, identity)
    return load_ranges(given)


def _identity(run: _LayerwiseRun) -> dict[str, Any]:
    """What has to be the same for a run to go on where another stopped."""
    return {
        "format": RANGES_FORMAT,
        "checkpoint": run.model.checkpoint.identity.to_json(),
        "corpus": run.corpus.to_json(),
        # The same file makes other rows of another length, and with another tokenizer.
        "rows": hashlib.sha256(repr(run.corpus.samples).encode()).hexdigest(),
        "rounded_for": run.recipe.name if run.recipe else None,
        "rounded_in": run.recipe.explicit.block if run.recipe and run.recipe.explicit else None,
        "device": run.model.device.type,
    }


def _pass_through(run: _LayerwiseRun, advance: Advance) -> None:
    """Every step that is not done yet, the embedding first and the head last."""
    decoder = run.model.entrance()
    for layer in range(run.config.num_layers + 1):
        if run.numbers(layer).is_file():
            advance(run.corpus.tokens)
            continue
        if layer == 0 and not run.hidden_states(0).is_file():
            with HiddenStatesWriter(run.hidden_states(0)) as spool:
                for sample in run.corpus.samples:
                    spool.add(run.model.entered(decoder, sample)[0][0])
        if layer < run.config.num_layers:
            numbers = _through_layer(run, decoder, layer, advance)
        else:
            numbers = _through_head(run, advance)
        _save(numbers, run.numbers(layer))
        run.hidden_states(layer).unlink(missing_ok=True)


def _through_layer(run: _LayerwiseRun, decoder: Decoder, layer: int, advance: Advance) -> Numbers:
    """Run one layer over the corpus; its outputs become the next one's spool."""
    prefix, hidden = name_of(layer, run.config), run.hidden_states(layer)
    module = run.model.layer(layer)
    if run.recipe is not None:
        seen = _rounded(run, decoder, module, layer)
        outputs = passed(run.model, decoder, module, layer, run.rows, read_hidden_states(hidden))
    else:
        seen = Seen()
        outputs = _observed(run, decoder, module, layer, seen)
    with HiddenStatesWriter(run.hidden_states(layer + 1)) as spool:
        for hidden_SH in outputs:
            spool.add(hidden_SH)
            advance(len(hidden_SH))
    numbers = seen.numbers()
    for name in seen.inputs:
        weight = module.get_parameter(name.removeprefix(f"{prefix}."))
        numbers |= search_smoothing(name, weight, seen)
    return numbers


def _observed(
    run: _LayerwiseRun, decoder: Decoder | None, module: nn.Module, layer: int, seen: Seen
) -> Iterator[Tensor]:
    """A layer's output for each row; what was seen of them is in ``seen`` behind the last."""
    hidden = read_hidden_states(run.hidden_states(layer))
    if run.spread is not None:
        yield from passed_by_workers(run.spread, run.model, layer, run.rows, hidden, seen)
        return
    with observing(module, layer, run.config, seen) as observer:
        yield from passed(run.model, decoder, module, layer, run.rows, hidden, observer)


def _rounded(run: _LayerwiseRun, decoder: Decoder, module: nn.Module, layer: int) -> Seen:
    """Round a layer's weights by what it reads: what was seen of that."""
    assert run.recipe is not None
    seen, hidden = Seen(), read_hidden_states(run.hidden_states(layer))
    with observing(module, layer, run.config, seen, gram=True) as observer:
        for _ in passed(run.model, decoder, module, layer, run.rows, hidden, observer):
            pass
    round_layer(module, observer, run.recipe, run.work / rounded_name(layer))
    return seen


def _through_head(run: _LayerwiseRun, advance: Advance) -> Numbers:
    """The last norm and the head: only measured."""
    layer, seen = run.config.num_layers, Seen()
    module = run.model.layer(layer) if run.spread is None else nn.Identity()
    for sample, _ in zip(run.corpus.samples, _observed(run, None, module, layer, seen), strict=True):
        advance(len(sample.prompt.ids))
    return {name.removeprefix("model."): value for name, value in seen.numbers().items()}


def _save(numbers: Numbers, path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: value.copy() for name, value in numbers.items()}, partial)
    take_file_name(partial, path)


def _finish(run: _LayerwiseRun, out: Path, identity: dict[str, Any]) -> None:
    """Put the layers' numbers together, and give the folder its name."""
    numbers: Numbers = {}
    for layer in range(run.config.num_layers + 1):
        numbers |= load_file(run.numbers(layer))
    manifest = identity | {"layers": run.config.num_layers, "family": run.config.family}
    _save(dict(sorted(numbers.items())), run.work / RANGES)
    # The state first: without it a run that is killed here starts anew, and misses nothing that is gone already.
    for path in (run.work / STATE, *run.work.glob("layer-*"), *run.work.glob("spool-*")):
        path.unlink()
    write_json(run.work / RANGES_MANIFEST, manifest | recorded_files(run.work))
    take_name(run.work, out)
