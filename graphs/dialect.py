"""A dialect: which ONNX a target understands, as one frozen record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glm_export.spec.capabilities import Capabilities
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import Cache, Signature

if TYPE_CHECKING:  # the command line lists dialects without loading onnx
    from glm_export.graphs.rewriter import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a program of this dialect may and must contain.

    ``can``: what its runtimes are able to do. ``expected_counts`` gives, for a config, how often each operator that
    carries the model appears; the graph is refused when it differs. ``rules`` makes what lowers the canonical program,
    in order: a call, because rules load onnx, and who asks what a dialect can do need not. ``expected_rewrites`` gives
    how often each must fire. ``ragged_rules`` and ``expected_ragged``: the same, to a program's twin that is told how
    many tokens of a call each row has; where nothing is expected there is none. ``runs_on`` is for people.

    Raises:
        InputError: the capabilities contradict the opset.
    """

    name: str
    opset: int
    allowed_ops: frozenset[str]
    expected_counts: Callable[[GlmConfig], Counter[str]]
    runs_on: str
    ir_version: int = 10
    can: Capabilities = field(default_factory=Capabilities)
    rules: Callable[[], tuple[Rule, ...]] = tuple
    expected_rewrites: Callable[[GlmConfig, Signature], Counter[str]] = lambda *_: Counter()
    ragged_rules: Callable[[Signature], tuple[Rule, ...]] = lambda _: ()
    expected_ragged: Callable[[GlmConfig, Signature], Counter[str]] = lambda *_: Counter()
    cache: Callable[[GlmConfig], Cache] = lambda _: Cache.GROWING
    logits: Callable[[GlmConfig], str] = lambda _: "all"

    def __post_init__(self) -> None:
        self.can.require_consistent(self.opset)
