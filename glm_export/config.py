"""The one vocabulary of sizes: every other room speaks of a model through ``GlmConfig``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from glm_export.errors import ConfigError

SIZES = (
    "vocab_size", "hidden_size", "num_layers", "num_heads", "kv_heads", "head_dim", "ffn_size", "max_positions",
)  # fmt: skip


class Norm(str, Enum):
    """Which normalization a model uses throughout."""

    RMS = "rms"
    LAYER = "layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """How the leading ``dim`` values of each head are rotated by position.

    ``angle = position / position_scale * base ** (-2 i / dim)`` for pair ``i < dim / 2``
    (RoFormer, arXiv:2104.09864). GLM pairs neighbours ``(x0, x1)``: ``interleaved``.
    """

    dim: int
    base: float = 10000.0
    position_scale: float = 1.0
    interleaved: bool = True

    def __post_init__(self) -> None:
        if self.dim <= 0 or self.dim % 2:
            raise ConfigError(f"rotary dim must be a positive even number, found {self.dim}")
        if self.base <= 0 or self.position_scale <= 0:
            raise ConfigError(
                f"rotary base and position scale must be positive, found {self.base}, {self.position_scale}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GlmConfig:
    """Sizes and switches of one decoder, checked when made.

    Sizes are counts: ``hidden_size`` and ``ffn_size`` in channels, ``max_positions`` in tokens.
    ``ffn_size`` is the width after the gate (SwiGLU reads twice as much). ``headwise_qkv`` describes the weight
    file alone: rows of the packed projection are stored head by head.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    max_positions: int
    rotary: RotaryConfig
    norm: Norm = Norm.RMS
    norm_eps: float = 1e-5
    headwise_qkv: bool = False
    qkv_bias: bool = True
    linear_bias: bool = False
    final_norm: bool = True
    sandwich_norms: bool = False
    residual_from_norm: bool = False
    tied_head: bool = False
    stored_dtype: str = "float16"
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"{name} must be a positive whole number, found {value!r} in config.json")
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"{self.num_heads} attention heads cannot share {self.kv_heads} key-value heads evenly; "
                "check config.json"
            )
        if self.rotary.dim > self.head_dim:
            raise ConfigError(f"rotary dim {self.rotary.dim} exceeds the head size {self.head_dim}; check config.json")
        if self.norm_eps <= 0:
            raise ConfigError(f"the norm's epsilon must be positive, found {self.norm_eps}")
        outside = [i for i in (*self.eos_token_ids, self.pad_token_id) if not 0 <= i < self.vocab_size]
        if outside:
            raise ConfigError(f"token ids {outside} lie outside the vocabulary of {self.vocab_size}; check config.json")

    @property
    def q_size(self) -> int:
        """Channels of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``manifest.json``."""
        return asdict(self) | {"norm": self.norm.value, "eos_token_ids": list(self.eos_token_ids)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> GlmConfig:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigError: a field is missing, unknown or inconsistent.
        """
        try:
            return cls(
                **values
                | {
                    "rotary": RotaryConfig(**values["rotary"]),
                    "norm": Norm(values["norm"]),
                    "eos_token_ids": tuple(values["eos_token_ids"]),
                }
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(
                f"the config in manifest.json does not fit this version of glm-export: {error}"
            ) from error
