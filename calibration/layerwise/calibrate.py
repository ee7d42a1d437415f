"""Calibration: a checkpoint taken layer by layer, with text passing through.

One layer's weights are in memory at a time; between layers hidden states lie on disk. A killed run goes on where it
stopped and ends in the same bits: each layer reads what the one before it wrote, never what it still had in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from glm_export.artifacts.folder_lock import alone
from glm_export.artifacts.manifest import RANGES_MANIFEST, recorded_files, write_json
from glm_export.artifacts.open import Kind
from glm_export.artifacts.output_folder import require_writable, take_name
from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.calibration.layerwise.hidden_states import HiddenStatesWriter, read_hidden_states
from glm_export.calibration.layerwise.observe import LayerObserver, Numbers
from glm_export.calibration.layerwise.resume import STATE, resume_or_start, take_file_name
from glm_export.calibration.layerwise.search import round_layer, search_smoothing
from glm_export.calibration.ranges import RANGES, RANGES_FORMAT, Ranges, load_ranges
from glm_export.calibration.recipe import Recipe
from glm_export.calibration.rounded_folder import rounded_name
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.inputs.prompts import prefill_feeds
from glm_export.modeling import Decoder, KeyValue, Layer, building_in, norm
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_formats import EMBEDDING, HEAD

KEPT_SAMPLES = 128
"""Tokens, evenly spaced over the corpus, whose inputs decide about smoothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerwiseRun:
    """One run: what is walked, with which text, where to."""

    checkpoint: Checkpoint
    corpus: Corpus
    recipe: Recipe | None
    work: Path
    device: torch.device
    initial: tuple[KeyValue, ...] | None

    @property
    def config(self) -> GlmConfig:
        return self.checkpoint.config

    def hidden_states(self, layer: int) -> Path:
        """Hidden states that a layer reads."""
        return self.work / f"spool-{layer:03}"

    def past(self, layer: int) -> KeyValue:
        """Keys and values ``[1, K, P, D]`` a layer begins with; P is 0 where the model has no prefix."""
        if self.initial is None:
            empty = torch.empty(1, self.config.kv_heads, 0, self.config.head_dim, device=self.device)
            return empty, empty
        key, value = self.initial[layer]
        return key.to(self.device), value.to(self.device)

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

    Returns:
        The ranges, loaded from ``out``.

    Raises:
        InputError: ``out`` exists; or activations are NaN, infinite or all zero.
        CheckpointError: tensors are missing, mis-shaped or damaged; or files changed meanwhile.
    """
    given, out = out, require_writable(out, force=force, kinds=(Kind.RANGES,), sources=checkpoint.folders)
    checkpoint.audit()
    rounding = recipe if recipe is not None and recipe.rounding == "gptq" else None
    run = _LayerwiseRun(
        checkpoint=checkpoint,
        corpus=corpus,
        recipe=rounding,
        work=out.parent / f".{out.name}.work",
        device=torch.device(device),
        initial=checkpoint.initial_cache,
    )
    identity = {
        "format": RANGES_FORMAT,
        "checkpoint": checkpoint.identity.to_json(),
        "corpus": corpus.to_json(),
        # The same file makes other rows of another length, and with another tokenizer.
        "rows": hashlib.sha256(repr(corpus.samples).encode()).hexdigest(),
        "rounded_for": rounding.name if rounding else None,
        "device": device,
    }
    layers = checkpoint.config.num_layers
    advance = (progress or NullProgress()).task("layers", (layers + 1) * corpus.tokens)
    out.parent.mkdir(parents=True, exist_ok=True)
    with alone(out), torch.inference_mode():
        resume_or_start(run.work, identity)
        _pass_through(run, advance)
        checkpoint.require_unchanged()
        require_writable(out, force=force, kinds=(Kind.RANGES,))
        _finish(run, out, identity)
    return load_ranges(given)


def _pass_through(run: _LayerwiseRun, advance: Advance) -> None:
    """Every step that is not done yet, the embedding first and the head last."""
    decoder = _bare_decoder(run)
    for layer in range(run.config.num_layers + 1):
        if run.numbers(layer).is_file():
            advance(run.corpus.tokens)
            continue
        if layer == 0 and not run.hidden_states(0).is_file():
            with HiddenStatesWriter(run.hidden_states(0)) as spool:
                for sample in run.corpus.samples:
                    spool.add(_entered(decoder, sample, run)[0][0])
        if layer < run.config.num_layers:
            numbers = _through_layer(run, decoder, layer, advance)
        else:
            numbers = _through_head(run, advance)
        _save(numbers, run.numbers(layer))
        run.hidden_states(layer).unlink(missing_ok=True)


def _through_layer(run: _LayerwiseRun, decoder: Decoder, layer: int, advance: Advance) -> Numbers:
    """Run one layer over the corpus; its outputs become the next one's spool."""
    prefix = f"layers.{layer}"
    module = _loaded(Layer, run, layer, prefix)
    observer = LayerObserver(module, prefix, gram=run.recipe is not None)
    if run.recipe is not None:
        for _ in _outputs(run, decoder, module, layer, observer):
            pass
        observer.close()
        round_layer(module, observer, run.recipe, run.work / rounded_name(layer))
    with HiddenStatesWriter(run.hidden_states(layer + 1)) as spool:
        for hidden_SH in _outputs(run, decoder, module, layer, observer if run.recipe is None else None):
            spool.add(hidden_SH)
            advance(len(hidden_SH))
    observer.close()
    numbers = observer.numbers()
    for name in observer.inputs:
        weight = module.get_parameter(name.removeprefix(f"{prefix}."))
        numbers |= search_smoothing(name, weight, observer)
    return numbers


def _outputs(
    run: _LayerwiseRun, decoder: Decoder, module: nn.Module, layer: int, observer: LayerObserver | None
) -> Iterator[Tensor]:
    """A layer's output for each row, float32 ``[S, H]``."""
    before, past = 0, run.past(layer)
    for sample, hidden_SH in zip(run.corpus.samples, read_hidden_states(run.hidden_states(layer)), strict=True):
        _, rotary, mask_B1ST = _entered(decoder, sample, run)
        if observer is not None:
            observer.rotary, observer.past = rotary, past
            observer.rows_to_keep = _kept_rows(before, len(hidden_SH), run.corpus.tokens)
        output_BSH, _ = module(hidden_SH[None].to(run.device), rotary, mask_B1ST, past)
        before += len(hidden_SH)
        yield output_BSH[0]


def _through_head(run: _LayerwiseRun, advance: Advance) -> Numbers:
    """The last norm and the head: only measured."""
    final_norm = _loaded_norm(run)
    head = nn.Linear(run.config.hidden_size, run.config.vocab_size, bias=False, device="meta")
    tied = run.config.tied_head
    rules = {rule.target: rule for rule in run.checkpoint.weight_map.rules}
    weight = run.checkpoint.parameter(rules[EMBEDDING if tied else HEAD])
    head.weight = nn.Parameter(weight.to(run.device).float(), requires_grad=False)
    module = nn.Sequential()
    module.add_module("final_norm", final_norm)
    module.add_module("head", head)
    observer = LayerObserver(module, "model")
    for hidden_SH in read_hidden_states(run.hidden_states(run.config.num_layers)):
        module(hidden_SH[None].to(run.device))
        advance(len(hidden_SH))
    observer.close()
    return {name.removeprefix("model."): value for name, value in observer.numbers().items()}


def _kept_rows(before: int, count: int, total: int) -> Tensor:
    """Which of a row's tokens are samples, so that they lie evenly over the corpus."""
    wanted = min(KEPT_SAMPLES, total)
    places = torch.arange(wanted) * total // wanted
    return places[(places >= before) & (places < before + count)] - before


def _bare_decoder(run: _LayerwiseRun) -> Decoder:
    """What stands before the first layer: embeddings, memory-mapped, and rotary tables."""
    config = replace(run.config, num_layers=1)
    with torch.device("meta"), building_in(torch.float32):
        decoder = Decoder(config)
    for rule in run.checkpoint.weight_map.rules:
        if "embedding" in rule.target:
            module = decoder.get_submodule(rule.target.rsplit(".", 1)[0])
            module.weight = nn.Parameter(run.checkpoint.parameter(rule), requires_grad=False)
            module.register_forward_hook(_widened)
    decoder.rebuild_tables(torch.float32)
    return decoder


def _widened(_: nn.Module, __: tuple[Tensor], rows: Tensor) -> Tensor:
    """What is looked up is float32 from here on; the table stays as it is stored."""
    return rows.float()


def _entered(decoder: Decoder, sample: Sample, run: _LayerwiseRun) -> tuple[Tensor, Any, Tensor]:
    """Hidden states ``[1, S, H]`` float32, rotation and mask of one row."""
    feeds = prefill_feeds([sample.prompt], run.config)
    ids, mask, positions = (torch.from_numpy(array) for array in feeds.named().values())
    hidden_BSH, rotary, mask_B1ST = decoder.embed(ids, mask, positions, 0)
    if rotary is not None:
        places = None if rotary.position_ids is None else rotary.position_ids.to(run.device)
        rotary = replace(rotary, cos=rotary.cos.to(run.device), sin=rotary.sin.to(run.device), position_ids=places)
    return hidden_BSH, rotary, mask_B1ST.to(run.device)


def _loaded(kind: type[Layer], run: _LayerwiseRun, layer: int, prefix: str) -> nn.Module:
    """One layer in float32."""
    with torch.device("meta"), building_in(torch.float32):
        module = kind(run.config, layer)
    weights = {
        rule.target.removeprefix(f"{prefix}."): run.checkpoint.parameter(rule).to(run.device).float()
        for rule in run.checkpoint.weight_map.rules
        if rule.target.startswith(f"{prefix}.")
    }
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def _loaded_norm(run: _LayerwiseRun) -> nn.Module:
    if not run.config.final_norm:
        return nn.Identity()
    with torch.device("meta"), building_in(torch.float32):
        module = norm(run.config)
    rules = {rule.target: rule for rule in run.checkpoint.weight_map.rules}
    weights = {
        name: run.checkpoint.parameter(rules[f"final_norm.{name}"]).to(run.device).float()
        for name in module.state_dict()
    }
    module.load_state_dict(weights, assign=True)
    return module.eval()


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
