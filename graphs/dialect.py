"""A dialect: which ONNX a target understands, as one frozen record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import Cache, Signature

if TYPE_CHECKING:  # the command line lists dialects without loading onnx
    from glm_export.graphs.rewriter import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a program of this dialect may and must contain.

    ``expected_counts`` gives, for a config, how often each operator that carries the model appears; the graph is
    refused when it differs. ``rules`` lower the canonical program, in order; ``expected_rewrites`` gives how often
    each must fire. ``runs_on`` is for people.
    """

    name: str
    opset: int
    allowed_ops: frozenset[str]
    expected_counts: Callable[[GlmConfig], Counter[str]]
    runs_on: str
    ir_version: int = 10
    rules: tuple[Rule, ...] = ()
    expected_rewrites: Callable[[GlmConfig, Signature], Counter[str]] = lambda *_: Counter()
    cache: Callable[[GlmConfig], Cache] = lambda _: Cache.GROWING
    logits: Callable[[GlmConfig], str] = lambda _: "all"
