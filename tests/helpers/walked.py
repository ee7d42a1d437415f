"""Text for calibration; the reference model in one piece, watched by hooks of its own; programs made once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from glm_export import api, modeling
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration import recipes
from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.calibration.corpus.load import load_corpus
from glm_export.calibration.layerwise.calibrate import calibrate
from glm_export.calibration.ranges import Ranges
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.exporter import export as exporter
from glm_export.inputs.prompts import prefill_feeds
from glm_export.modeling import linear_weights
from glm_export.proof.cases import random_prompt
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import Signature
from glm_export.tokenizers import load_tokenizer
from tests.helpers.golden_data import Golden

LENGTHS = (40, 23, 9, 31)
GPTQ = "int4-gptq"


@contextmanager
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and where other processes run they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def random_corpus(config: GlmConfig, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> Corpus:
    """Rows of random ids; all of these say the same of where they come from."""
    source = np.random.default_rng(seed)
    prompts = [random_prompt(source, length, config) for length in lengths]
    samples = tuple(Sample(prompt=prompt, counted_from=len(prompt.ids)) for prompt in prompts)
    return Corpus(name="random", origin="a generator", licence="none", sha256="0", samples=samples)


def poems(checkpoint: Checkpoint, count: int = 32) -> Corpus:
    tokenizer = load_tokenizer(checkpoint.folder, checkpoint.config)
    return load_corpus("poems", tokenizer, checkpoint.config, max_samples=count)


def opened_with_corpora(name: str) -> tuple[Checkpoint, Corpus, Corpus]:
    """A checkpoint, text for it, and other text."""
    if name == "demo":
        checkpoint = api.open_checkpoint(name)
        every = poems(checkpoint, 16)
        return checkpoint, replace(every, samples=every.samples[:9]), replace(every, samples=every.samples[9:])
    checkpoint = api.open_checkpoint(Golden(name).folder)
    return checkpoint, random_corpus(checkpoint.config), random_corpus(checkpoint.config, seed=1)


def contents(folder: Path) -> dict[str, str]:
    """Every file's hash."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class WholeModel:
    """The reference run over samples. ``values``: of products' inputs, keys and values, ``[T, K]``."""

    def __init__(
        self, model: modeling.Decoder, samples: Sequence[Sample], past: Sequence[modeling.KeyValue] | None = None
    ) -> None:
        self.maxima: dict[str, float] = defaultdict(float)
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._layers = len(model.layers)
        self.inputs = linear_weights(model)
        for weight in self.inputs:
            product = model.get_submodule(weight.removesuffix(".weight"))
            product.register_forward_pre_hook(self._keeps(weight))
        for index, layer in enumerate(model.layers):
            # The residual sums: before attention, before the MLP, behind it.
            layer.register_forward_pre_hook(self._sees(f"layers.{index}.input"))
            layer.mlp_norm.register_forward_pre_hook(self._sees(f"layers.{index}.mlp_norm.input"))
            layer.register_forward_hook(lambda _, __, output, index=index: self._see(f"layers.{index}", output[0]))
        attend, turns = modeling.grouped_attention, iter(range(self._layers * len(samples)))

        def watched(q_BSC: Tensor, k_BSC: Tensor, *rest: Any, num_heads: int, kv_heads: int) -> Any:
            q_SND, k_SKD = (x[0].unflatten(-1, (count, -1)) for x, count in ((q_BSC, num_heads), (k_BSC, kv_heads)))
            k_SKD = torch.cat([rest[2][0].transpose(0, 1), k_SKD])
            k_SND = k_SKD.repeat_interleave(num_heads // kv_heads, dim=1)
            scores = torch.einsum("snd,tnd->nst", q_SND, k_SND) / q_SND.shape[-1] ** 0.5
            self._see(f"layers.{next(turns) % self._layers}.attention.scores", scores)
            return attend(q_BSC, k_BSC, *rest, num_heads=num_heads, kv_heads=kv_heads)

        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(modeling, "grouped_attention", watched)
            for sample in samples:
                feeds = prefill_feeds([sample.prompt], model.config)
                output = model(*map(torch.from_numpy, feeds.named().values()), past)
                for index, pair in enumerate(output.past_key_values):
                    for kind, kept_BKSD in zip(("key", "value"), pair, strict=True):
                        self._values[f"layers.{index}.{kind}"].append(kept_BKSD[0].transpose(0, 1).flatten(1))

    def values(self, name: str) -> np.ndarray:
        return torch.cat(self._values[name]).double().abs().numpy()

    @property
    def names(self) -> list[str]:
        return list(self._values)

    def _keeps(self, name: str) -> Callable[..., None]:
        return lambda _, given: self._values[name].append(given[0][0])

    def _sees(self, place: str) -> Callable[..., None]:
        return lambda _, given: self._see(place, given[0])

    def _see(self, place: str, values: Tensor) -> None:
        self.maxima[place] = max(self.maxima[place], float(values.abs().max()))


def differences(found: Ranges, whole: WholeModel) -> dict[str, float]:
    """How far numbers of each kind are apart at most, as a share of the tensor's largest."""
    worst: dict[str, float] = defaultdict(float)

    def compare(kind: str, number: Any, expected: Any, largest: float) -> None:
        worst[kind] = max(worst[kind], float(np.abs(np.asarray(number) - expected).max() / largest))

    for place, expected in whole.maxima.items():
        kind = place.split(".", 2)[-1] if place.count(".") > 1 else "layer"
        compare(kind, found.maxima()[place], expected, expected)
    for name in whole.names:
        values_TK, numbers = whole.values(name), found.tensors
        largest, kind = values_TK.max(), name.removesuffix(".weight").split(".")[-1]
        compare(f"maxima of {kind}", numbers[f"{name}/channel_maxima"], values_TK.max(axis=0), largest)
        compare(
            f"means of {kind}", numbers[f"{name}/channel_means"], values_TK.mean(axis=0), values_TK.mean(axis=0).max()
        )
        tokens_T = values_TK.max(axis=1)
        compare("tokens", numbers[f"{name}/token_maxima"], [tokens_T.min(), tokens_T.max()], largest)
        compare("threshold", found.threshold(name, "min_max"), largest, largest)
        for smoothing in ("smoothquant", "awq"):
            if f"{name}/{smoothing}" in numbers:
                levelled = (values_TK / numbers[f"{name}/{smoothing}"]).max()
                compare("levelled", numbers[f"{name}/{smoothing}/levelled"], levelled, levelled)
    return worst


class Made:
    """Checkpoints with ranges and programs, each made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ranges: dict[tuple[str, bool], Ranges] = {}
        self._programs: dict[tuple[str, ...], OnnxProgram] = {}

    def checkpoint(self, source: str) -> Checkpoint:
        return api.open_checkpoint(source if source == "demo" else Golden(source).folder)

    def ranges(self, source: str, name: str) -> Ranges:
        """What the recipe needs: made for it, or for all."""
        key = source, name == GPTQ
        if key not in self._ranges:
            checkpoint = self.checkpoint(source)
            corpus = poems(checkpoint) if source == "demo" else random_corpus(checkpoint.config)
            recipe = recipes.load(name) if name == GPTQ else None
            self._ranges[key] = calibrate(checkpoint, corpus, self._root / f"{source} {name}", recipe=recipe)
        return self._ranges[key]

    def program(self, source: str, name: str, dialect: str, dtype: str = "float32") -> OnnxProgram:
        key = source, name, dialect, dtype
        if key not in self._programs:
            self._programs[key] = api.export(
                self.checkpoint(source), self._root / "-".join(key), dialect=dialect, dtype=dtype, recipe=name,
                ranges=self.ranges(source, name),
            )  # fmt: skip
        return self._programs[key]


@contextmanager
def tracing_once() -> Iterator[None]:
    """Tracing takes nearly all of an export's time, and knows nothing of recipes: each model is traced once."""
    traced: dict[object, ir.Model] = {}
    trace = exporter.trace

    def once(config: GlmConfig, signature: Signature, *, dtype: str, logits: str, opset: int) -> ir.Model:
        key = config, dtype, logits, opset
        if key not in traced:
            traced[key] = trace(config, signature, dtype=dtype, logits=logits, opset=opset)
        return traced[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace", once)
        yield


def weight_bytes(program: OnnxProgram, name: str) -> tuple[int, int]:
    """Where a tensor lies in the file of weights."""
    graph = onnx.load(str(program.model_path), load_external_data=False).graph
    (tensor,) = [tensor for tensor in graph.initializer if tensor.name == name]
    place = {entry.key: entry.value for entry in tensor.external_data}
    return int(place["offset"]), int(place["length"])
