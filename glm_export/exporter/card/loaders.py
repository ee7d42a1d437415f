"""Which loaders run which program, and who is at fault where one does not: the one table of it.

``inspect``, the model card and ``docs/loaders.md`` say what stands here. ``tests/exporter/test_loader_cells.py`` tries
cells, and names the files that try the others; ``docs/loaders.md`` says which were not tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from glm_export.calibration.recipe import Recipe
from glm_export.spec.config import GlmConfig
from glm_export.spec.session_entries import OF_RECIPE
from glm_export.spec.signature import Cache, Signature
from glm_export.spec.weight_formats import BLOCKS

ONE_PROMPT = "one prompt at a time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """A program or library of other people that runs what we export. ``tried``: the versions it was tried with."""

    name: str
    tried: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a loader runs a program. ``note``: where it does, within which limit; where not, who lacks what."""

    runs: bool
    note: str = ""

    def __str__(self) -> str:
        """``yes``, ``yes: one prompt at a time``, ``no: its masks are causal``."""
        return ("yes" if self.runs else "no") + (f": {self.note}" if self.note else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a verdict depends on.

    ``block``: neighbours that share a scale in Q/DQ of the linear layers; None where a whole channel does.
    ``head_block``: of the last product.
    """

    config: GlmConfig
    signature: Signature
    dtype: str = "float32"
    recipe: str | None = None
    block: int | None = None
    head_block: int | None = None

    @property
    def told(self) -> str:
        """What ONNX Runtime has to be told to load the program, as a limit; empty where that is nothing."""
        return ", ".join(f"told `{key}` = `{value}`" for key, value in OF_RECIPE.get(self.recipe or "", {}).items())

    @property
    def widths(self) -> set[int]:
        """Of what the linear layers read."""
        config, experts = self.config, self.config.experts
        of_experts = {experts.ffn_size, experts.ffn_size * experts.shared} - {0} if experts else set()
        return {config.hidden_size, config.num_heads * config.head_dim, config.ffn_size} | of_experts


def explicit_blocks(recipe: Recipe | None) -> tuple[int | None, int | None]:
    """Neighbours that share a scale in Q/DQ, in the formats a dialect carries: of the layers, of the head."""
    forms = (recipe.layers, recipe.head) if recipe is not None else (None, None)
    layers, head = (form.scale_block if form is not None and form.explicit else None for form in forms)
    return layers, head


Judge = Callable[[Subject], Verdict]


def _no(note: str) -> Verdict:
    return Verdict(runs=False, note=note)


def _yes(*limits: str) -> Verdict:
    return Verdict(runs=True, note=", ".join(filter(None, limits)))


def _onnxruntime(subject: Subject) -> Verdict:
    if subject.dtype == "bfloat16":
        return _no("ONNX Runtime has no bfloat16 kernels on a CPU")
    return _yes(subject.told)


def _causal(subject: Subject) -> Verdict | None:
    """What every loader refuses that writes texts by itself, with masks and caches of its own."""
    config, signature = subject.config, subject.signature
    if subject.dtype == "bfloat16":
        return _onnxruntime(subject)
    if config.prefix_mask:
        return _no("its masks are causal")
    if signature.cache is Cache.STATIC:
        return _no("it feeds no static cache")
    if config.prefix_length:
        return _no("it begins on an empty cache, without the prefix")
    return None


def _optimum(subject: Subject) -> Verdict:
    config, signature = subject.config, subject.signature
    if refused := _causal(subject):
        return refused
    if config.head_dim * config.num_heads != config.hidden_size:
        return _no("it takes the head size for hidden size / heads")
    # It reads the last column of the logits: of a shorter row that is padding.
    return _yes(subject.told, ONE_PROMPT if signature.own_lengths and not signature.last_logits_only else "")


def _genai(subject: Subject) -> Verdict:
    signature = subject.signature
    if refused := _causal(subject):
        return refused
    if signature.most_logits not in (None, 1):
        return _no("it takes logits to be of all tokens or of one")
    # genai_config.json tells it what has to be told.
    return _yes(ONE_PROMPT if signature.last_logits_only and not signature.own_lengths else "")


def _foundry_local(subject: Subject) -> Verdict:
    verdict = _genai(subject)
    return _yes(ONE_PROMPT) if verdict.runs else verdict


def _transformers_js(subject: Subject) -> Verdict:
    if refused := _causal(subject):
        return refused
    # It pads on the left whatever the tokenizer says.
    return _yes(subject.told, ONE_PROMPT if subject.signature.own_lengths else "")


def _cut_short(subject: Subject) -> str | None:
    """Which block does not divide a width, and which would; None where all of them do."""
    cuts = [
        block
        for block, widths in ((subject.head_block, {subject.config.hidden_size}), (subject.block, subject.widths))
        if block and any(width % block for width in widths)
    ]
    if not cuts:
        return None
    suited = [size for size in BLOCKS if not any(width % size for width in subject.widths)]
    return f"it cuts no block of {cuts[0]} short" + (f"; `--block-size {suited[-1]}` suits it" if suited else "")


def _openvino(subject: Subject) -> Verdict:
    signature = subject.signature
    if signature.cache is Cache.STATIC:
        return _no("it has no `TensorScatter`")
    shared = signature.cache is Cache.SHARED
    if subject.config.experts is not None:
        lacks = "it has neither `MoE` nor `QMoE`" if shared else "its CPU plugin repeats no input for each expert"
        return _no(lacks)
    if shared and subject.dtype == "bfloat16":
        return _no("its `GroupQueryAttention` is not for bfloat16")
    if short := _cut_short(subject):
        return _no(short)
    return _yes(ONE_PROMPT if shared else "")


def _lm_eval(subject: Subject) -> Verdict:
    if refused := _causal(subject):
        return refused
    if subject.signature.most_logits is not None:
        return _no("it needs `--logits all`")
    if any(spec.is_cache and spec.dtype == "int8" for spec in subject.signature.inputs):
        return _no("its keys and values are floats")
    # It tells ONNX Runtime nothing.
    return _yes("with ONNX Runtime 1.32 or later" if subject.told else "")


ONNX_RUNTIME = Loader(name="ONNX Runtime", tried="onnxruntime 1.31 and 1.32; onnxruntime-node 1.30.0")
OPTIMUM = Loader(name="Optimum", tried="optimum-onnx 0.1.0, transformers 4.57")
GENAI = Loader(name="onnxruntime-genai", tried="0.18.0")
FOUNDRY_LOCAL = Loader(name="Foundry Local", tried="foundry-local-sdk 2.2.1")
TRANSFORMERS_JS = Loader(name="transformers.js", tried="4.3.2 in Node.js 20")
OPENVINO = Loader(name="OpenVINO", tried="2026.4.1")
LM_EVAL = Loader(name="lm-evaluation-harness", tried="0.4.13")
JUDGES: dict[Loader, Judge] = {
    ONNX_RUNTIME: _onnxruntime,
    OPTIMUM: _optimum,
    GENAI: _genai,
    FOUNDRY_LOCAL: _foundry_local,
    TRANSFORMERS_JS: _transformers_js,
    OPENVINO: _openvino,
    LM_EVAL: _lm_eval,
}


def verdicts(subject: Subject) -> dict[Loader, Verdict]:
    """Every loader, and whether it runs a program, on a CPU."""
    return {loader: judge(subject) for loader, judge in JUDGES.items()}
