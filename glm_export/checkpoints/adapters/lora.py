"""LoRA (arXiv:2106.09685), rank-stabilised LoRA (arXiv:2312.03732) and DoRA (arXiv:2402.09353) as PEFT saves them.

Shapes: N output channels, K input channels, r rank, V vocabulary, H hidden size.

Source: ``tuners/lora/layer.py``, ``tuners/lora/dora.py``, ``utils/other.py`` of peft 0.21.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_export.checkpoints.sources import ComputedTensor, TensorSource
from glm_export.errors import SHOWN_CHARACTERS, CheckpointError, cut, shown
from glm_export.spec.config import is_number
from glm_export.spec.weight_map import Shape

PATTERN_CHARACTERS, REPEATS, MOST_ALPHA = 500, 3, 1e6
REPEATED_GROUP, REPEAT = re.compile(r"\)\s*[*+{]"), re.compile(r"[*+{]")
INERT = {
    **dict.fromkeys(("lora_dropout", "inference_mode", "megatron_config", "megatron_core"), "only for training"),
    **dict.fromkeys(("eva_config", "corda_config", "loftq_config", "velora_config"), "how the matrices began"),
    **dict.fromkeys(("lora_ga_config", "monteclora_config", "kasa_config", "runtime_config"), "only for training"),
    **dict.fromkeys(("target_modules", "exclude_modules", "modules_to_save", "bias"), "the tensors say it"),
    **dict.fromkeys(("layers_to_transform", "layers_pattern", "lora_bias", "ensure_weight_tying"), "as target_modules"),
    **dict.fromkeys(("base_model_name_or_path", "revision", "auto_mapping", "task_type", "peft_version"), "names"),
    **dict.fromkeys(("qalora_group_size", "bdlora_config"), "read only with the switch beside them"),
    "fan_in_fan_out": "PEFT takes it for false on linear layers, which are all a GLM has",
    "peft_type": "told before",
}
"""Keys of ``adapter_config.json`` that change no number beside what the tensors say, and why."""
REFUSED = {
    "layer_replication": "repeats layers",
    "alora_invocation_tokens": "acts behind certain tokens only, which no merged weight can",
    "arrow_config": "chooses among adapters token by token, which no merged weight can",
    "use_qalora": "pools its inputs",
    "use_bdlora": "has matrices of blocks",
    "target_parameters": "trains stacked parameters",
    "trainable_token_indices": "trains single rows of the embedding",
}
"""Keys that must be unset, and what an adapter with them does."""
ORDINARY_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)
"""``init_lora_weights`` that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take something from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """``adapter_config.json``, as far as it changes numbers."""

    rank: int
    alpha: float
    rank_stabilised: bool
    decomposed: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def scaling(self, module: str, rank: int) -> float:
        """``alpha / r``; rank-stabilised ``alpha / sqrt(r)``. Patterns are matched at the end of the module's name.

        Args:
            module: the official name, ``model.layers.0.self_attn.q_proj``.
            rank: of its matrices.

        Raises:
            CheckpointError: the config says another rank.
        """
        expected = _matching(self.rank_pattern, module, self.rank)
        if expected != rank:
            raise CheckpointError(
                f"the adapter's config gives {module} rank {expected}, its matrices have {rank}; the two files do not "
                "belong together"
            )
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        return float(alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank)


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({_bounded(pattern)})$", module):
                return value
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"the adapter's pattern {shown(pattern)} is no regular expression: {error}"
            ) from error
    return default


def _bounded(pattern: str) -> str:
    """A pattern that is matched in no time: repeating a group can take for ever, and so can many repetitions."""
    if len(pattern) > PATTERN_CHARACTERS or REPEATED_GROUP.search(pattern) or len(REPEAT.findall(pattern)) > REPEATS:
        raise CheckpointError(
            f"the adapter's pattern {shown(pattern)} should be a module's name, or repeat {REPEATS} single characters "
            "at most; merge with PEFT's merge_and_unload() instead"
        )
    return pattern


def _patterns(values: Mapping[str, Any], key: str, path: Path, kind: type) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict) or not all(is_number(value, kind) and value > 0 for value in found.values()):
        raise CheckpointError(
            f"{path} should have {key} map modules to positive numbers, found {shown(found)}; save the adapter again"
        )
    return found


def read_settings(values: Mapping[str, Any], path: Path) -> LoraSettings:
    """Read ``adapter_config.json``.

    Raises:
        CheckpointError: it asks for what merging cannot do, holds an unknown key, or a value that is none.
    """
    for key, does in REFUSED.items():
        if values.get(key):
            raise CheckpointError(f"{path} sets {key}: such an adapter {does}, and cannot be merged here")
    start = values.get("init_lora_weights", True)
    if start not in ORDINARY_STARTS:
        raise CheckpointError(
            f"{path} has init_lora_weights {shown(start)}, which changes the base as well; save the adapter with "
            "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...) and give that"
        )
    read = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights")
    unknown = sorted(key for key in values if key not in INERT | REFUSED and key not in read and values[key])
    if unknown:
        named = cut(", ".join(unknown), SHOWN_CHARACTERS)
        raise CheckpointError(
            f"{path} has keys that could change numbers and are not known: {named}; merge with PEFT's "
            "merge_and_unload() instead, or report them"
        )
    rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)
    if not is_number(rank, int) or rank < 1 or not is_number(alpha) or abs(alpha) > MOST_ALPHA:
        raise CheckpointError(
            f"{path} should give a rank r and a lora_alpha, found {shown(rank)} and {shown(alpha)}; save it again"
        )
    return LoraSettings(
        rank=rank,
        alpha=alpha,
        rank_stabilised=bool(values.get("use_rslora")),
        decomposed=bool(values.get("use_dora")),
        rank_pattern=_patterns(values, "rank_pattern", path, int),
        alpha_pattern=_patterns(values, "alpha_pattern", path, object),
    )


@dataclass(eq=False, kw_only=True)
class _Change(ComputedTensor):
    """A tensor of the base, and what is added to it ``scaling`` times."""

    base: TensorSource
    scaling: float

    def __post_init__(self) -> None:
        self.path, self.shape, self.kind = self.base.path, self.base.shape, f"{self.base.kind} + LoRA"


@dataclass(eq=False, kw_only=True)
class LowRankChange(_Change):
    """``W' = W + s B A``: of a linear layer ``B [N, r]``, ``A [r, K]``.

    With ``magnitude [N]`` (DoRA) the rows of that are scaled to it: ``W' = m V / |V|``, ``V = W + s B A``.
    """

    a_rK: Tensor
    b_Nr: Tensor
    magnitude_N: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """Some output channels, float32 ``[n, K]``."""
        changed_nK = torch.addmm(
            self.base.rows(start, stop), self.b_Nr[start:stop].float(), self.a_rK.float(), alpha=self.scaling
        )
        if self.magnitude_N is None:
            return changed_nK
        factors_n = self.magnitude_N[start:stop].float() / torch.linalg.vector_norm(changed_nK, dim=1)
        return changed_nK.mul_(factors_n[:, None])


@dataclass(eq=False, kw_only=True)
class EmbeddingChange(_Change):
    """``W' = W + s (B A)^T``: of an embedding ``[V, H]``, ``A [r, V]``, ``B [H, r]``."""

    a_rV: Tensor
    b_Hr: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """Some tokens, float32 ``[n, H]``."""
        return torch.addmm(
            self.base.rows(start, stop), self.a_rV[:, start:stop].float().t(), self.b_Hr.float().t(), alpha=self.scaling
        )


@dataclass(eq=False, kw_only=True)
class BiasChange(_Change):
    """``b' = b + s c``: a bias of ``lora_B`` itself (``lora_bias``)."""

    change_N: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """Some output channels, float32."""
        return self.base.rows(start, stop) + self.change_N[start:stop].float() * self.scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraMatrices:
    """The tensors an adapter holds for one module, by PEFT's names."""

    module: str
    tensors: Mapping[str, Tensor]

    def changed(
        self, sources: Mapping[str, TensorSource], settings: LoraSettings, weight: float
    ) -> dict[str, TensorSource]:
        """The module's weight, and its bias where that is trained too, with the change.

        Args:
            sources: official name -> what the change is added to.
            settings: of the adapter.
            weight: the change is multiplied by it.

        Raises:
            CheckpointError: the base has no such weight, or another shape.
        """
        held = self.tensors
        embedding = "lora_embedding_A" in held
        a, b = (held.get(f"lora_embedding_{part}" if embedding else f"lora_{part}") for part in "AB")
        if a is None or b is None:
            raise CheckpointError(f"the adapter holds {', '.join(sorted(held))} of {self.module}, expected A and B")
        self._require_matrices(a, b)
        name = f"{self.module}.weight"
        base = _base(sources, name, (a.shape[1], b.shape[0]) if embedding else (b.shape[0], a.shape[1]))
        scaling = settings.scaling(self.module, a.shape[0]) * weight
        magnitude = held.get("lora_magnitude_vector")
        if embedding:
            if magnitude is not None:
                raise CheckpointError(f"DoRA of the embedding {self.module} is not supported; merge with PEFT instead")
            return {name: EmbeddingChange(base=base, a_rV=a, b_Hr=b, scaling=scaling)}
        if magnitude is not None and weight != 1:
            raise CheckpointError("a DoRA adapter sets magnitudes and cannot be weighted; leave its weight out")
        if settings.decomposed and magnitude is None:
            raise CheckpointError(f"the adapter's config says DoRA, and {self.module} has no lora_magnitude_vector")
        changed: dict[str, TensorSource] = {
            name: LowRankChange(base=base, a_rK=a, b_Nr=b, scaling=scaling, magnitude_N=magnitude)
        }
        if "lora_B.bias" in held:
            bias = f"{self.module}.bias"
            change = held["lora_B.bias"]
            changed[bias] = BiasChange(base=_base(sources, bias, tuple(change.shape)), change_N=change, scaling=scaling)
        return changed

    def _require_matrices(self, a: Tensor, b: Tensor) -> None:
        rank_first = a.dim() == b.dim() == 2 and 0 < a.shape[0] == b.shape[1]
        sizes = {"lora_magnitude_vector": b.shape[:1], "lora_B.bias": b.shape[:1]}
        fits = all(self.tensors[name].shape == shape for name, shape in sizes.items() if name in self.tensors)
        floats = all(tensor.is_floating_point() for tensor in self.tensors.values())
        if not rank_first or not fits or not floats:
            found = ", ".join(f"{name} {_told(tensor)}" for name, tensor in sorted(self.tensors.items()))
            raise CheckpointError(
                f"the adapter should hold floats A [r, K] and B [N, r] of {self.module}, found {found}; save it again"
            )


def _told(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _base(sources: Mapping[str, TensorSource], name: str, shape: Shape) -> TensorSource:
    if name not in sources:
        raise CheckpointError(f"the adapter changes {name}, which the base does not have; it is of another model")
    if sources[name].shape != shape:
        raise CheckpointError(
            f"the adapter changes {name} of shape {list(shape)}, in the base it is {list(sources[name].shape)}; it is "
            "of another model"
        )
    return sources[name]
