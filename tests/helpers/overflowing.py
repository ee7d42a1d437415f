"""Small models whose activations float16 cannot hold, and every value of the programs made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from glm_export import api, families
from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.calibration.layerwise.calibrate import calibrate
from glm_export.calibration.ranges import Ranges
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.exporter import export as exporter
from glm_export.inputs.prompts import prefill_feeds
from glm_export.proof.cases import random_prompt
from glm_export.sessions.program_layout import call_layout
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import BATCH, PAST, decoder_signature, past_names
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

Values = dict[str, NDArray[Any]]


@dataclass
class Weights:
    """A small checkpoint's tensors, changed under our own parameter names."""

    family: str

    def __post_init__(self) -> None:
        self.values = tiny_values(self.family)
        self.config: GlmConfig = families.read_config(self.values)
        self.tensors = random_tensors(self.values)
        self.rules = {rule.target: rule for rule in families.load(self.config.family).weight_map(self.config).rules}

    def change(self, target: str, change: Callable[[torch.Tensor], Any]) -> None:
        """Change a parameter in place; nothing where the family has no such."""
        if target in self.rules:
            rule = self.rules[target]
            whole = torch.cat([self.tensors[name] for name in rule.sources])
            change(whole)
            parts = whole.split([shape[0] for shape in rule.shapes])
            self.tensors |= {name: part.clone() for name, part in zip(rule.sources, parts, strict=True)}

    def scale(self, targets: list[str], factor: float, rows: slice = slice(None)) -> None:
        for target in targets:
            self.change(target, lambda whole: whole[rows].mul_(factor))


def product(model: Weights) -> None:
    """The input of ``down`` is thousands of times as large, its weight as small."""
    gated = "layers.0.mlp.gate_up.weight" in model.rules
    rows = slice(model.config.ffn_size, None) if gated else slice(None)
    factor = 6e3 if gated else 2e4
    model.scale(["layers.0.mlp.gate_up.weight", "layers.0.mlp.up.weight", "layers.0.mlp.up.bias"], factor, rows)
    model.scale(["layers.0.mlp.down.weight"], 1 / factor)


def residual(model: Weights, factor: float = 4e4) -> None:
    """Everything that is summed is larger; norms make the rest invariant."""
    added = ("attention_output_norm", "mlp_output_norm") if model.config.sandwich_norms else (
        "attention.dense", "mlp.down", "mlp.shared.down")  # fmt: skip
    model.scale(["embedding.weight"], factor)
    for layer in range(model.config.num_layers):
        model.scale([f"layers.{layer}.{name}.weight" for name in added] + [f"layers.{layer}.mlp.down"], factor)


def norms(model: Weights, factor: float = 2e4) -> None:
    """Where the residual comes from the norm: its output is larger, and so is the sum."""
    for norm, reads, adds in (
        ("attention_norm", "attention.qkv", "attention.dense"), ("mlp_norm", "mlp.up", "mlp.down"),
    ):  # fmt: skip
        model.scale([f"layers.0.{name}.{part}" for name in (norm, adds) for part in ("weight", "bias")], factor)
        model.scale([f"layers.0.{reads}.weight"], 1 / factor)


def queries(model: Weights, factor: float = 3e4) -> None:
    """One channel of each query is large where that of the keys is 0; with norms behind, all of both are."""
    config = model.config
    last = config.head_dim - 1
    for part in ("weight", "bias"):
        name = f"layers.0.attention.qkv.{part}"
        if config.qk_norm:
            model.scale([name], factor, slice(0, config.q_size + config.kv_size))
        else:
            model.scale([name], factor, slice(last, config.q_size, config.head_dim))
            model.scale([name], 0.0, slice(config.q_size + last, config.q_size + config.kv_size, config.head_dim))


def scores(model: Weights, constant: float = 520.0) -> None:
    """One channel of queries and keys that does not turn is constant, so all scores are larger alike."""
    config = model.config
    rows = slice(config.head_dim - 1, config.q_size + config.kv_size, config.head_dim)
    model.change("layers.0.attention.qkv.weight", lambda whole: whole[rows].fill_(0))
    model.change("layers.0.attention.qkv.bias", lambda whole: whole[rows].fill_(constant))


RESIDUAL = {"layers.0.mlp_norm.input", "layers.0", "layers.1.mlp_norm.input", "layers.1"}
PLANTS = {
    "product": ("chatglm2", product, {"layers.0.mlp.down.input", "layers.0.mlp.gate_up"}),
    "gelu": ("glm_infilling", product, {"layers.0.mlp.down.input", "layers.0.mlp.up"}),
    "residual": ("chatglm2", residual, RESIDUAL | {
        f"layers.{i}.{name}" for i in (0, 1) for name in ("attention.dense", "mlp.down")}),
    "sandwich": ("glm4", residual, RESIDUAL | {
        f"layers.{i}.{name}_output_norm" for i in (0, 1) for name in ("attention", "mlp")}),
    "alpha": ("chatglm", norms, {f"layers.0{name}" for name in (
        ".attention_norm", ".attention.dense", ".mlp_norm.input", ".mlp_norm", "", ".mlp.down")}),
    "experts": ("glm4_moe", residual, RESIDUAL | {f"layers.{name}" for name in (
        "0.attention.dense", "0.mlp.down", "1.attention.dense", "1.mlp", "1.mlp.shared.down")}),
    "queries": ("chatglm2", queries, {"layers.0.attention.qkv"}),
    "normed queries": ("glm4_moe", queries, {
        "layers.0.attention.qkv", "layers.0.attention.q_norm.input", "layers.0.attention.k_norm.input"}),
    "scores": ("glm_infilling", scores, {"layers.0.attention.scores"}),
    "causal scores": ("chatglm2", scores, {"layers.0.attention.scores"}),
}  # fmt: skip
"""What is planted in which family, and the places that must be float32 then."""


def corpus_of(config: GlmConfig, rows: int = 4) -> Corpus:
    random = np.random.default_rng(7)
    prompts = [random_prompt(random, 48, config) for _ in range(rows)]
    samples = tuple(Sample(prompt=prompt, counted_from=len(prompt.ids)) for prompt in prompts)
    return Corpus(name="random ids", origin="tests", licence="none", sha256="0" * 64, samples=samples)


Measured = tuple[Checkpoint, Ranges]


def measured(folder: Path, model: Weights, rows: int = 4) -> Measured:
    checkpoint = api.open_checkpoint(write_checkpoint(folder / "checkpoint", model.values, model.tensors))
    return checkpoint, calibrate(checkpoint, corpus_of(checkpoint.config, rows), folder / "ranges")


def export(measured: Measured, out: Path, dialect: str, *, ranges: bool = True, **options: Any) -> OnnxProgram:
    checkpoint, found = measured
    options = {"dtype": "float16", "max_length": 128 if dialect == "tensorrt" else None} | options
    return exporter.export(checkpoint, out, dialect=dialect, ranges=found if ranges else None, **options)


def first_call(program: OnnxProgram) -> Values:
    """The corpus's first row, as the program takes it."""
    config = program.config
    signature = decoder_signature(config, dtype=program.dtype, logits=program.logits)
    tensors: Values = dict(prefill_feeds([corpus_of(config).samples[0].prompt], config).named())
    for name in (name for layer in range(config.num_layers) for name in past_names(layer)):
        dtype = np.dtype(program.signature.input(name).dtype)
        tensors[name] = np.zeros(signature.input(name).shape(**{BATCH: 1, PAST: 0}), dtype)
    return call_layout(program.signature, program.folder).to_program(tensors)


def every_value(program: OnnxProgram) -> Values:
    """What each node makes, in the dtype the program says."""
    model = onnx.load(str(program.model_path), load_external_data=False)
    names = [name for node in model.graph.node for name in node.output if name]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    path = program.folder / "every_value.onnx"
    onnx.save(model, str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    values = dict(zip(outputs, session.run(outputs, first_call(program)), strict=True))
    path.unlink()
    return values


def not_finite(values: Values) -> list[str]:
    return [name for name, value in values.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]


def operators(program: OnnxProgram) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(program.model_path), load_external_data=False).graph.node)
