"""What an engine will take, worked out before it is built. Sizes in bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from glm_export.artifacts.output_folder import free_disk_for
from glm_export.artifacts.program import WEIGHTS, OnnxProgram
from glm_export.spec.optimization_profile import Limits
from glm_export.spec.signature import BATCH, LOGITS, PAST, SEQUENCE, TOTAL, past_names

HOST_BYTES_PER_WEIGHT_BYTE, HOST_BYTES_PER_INT4_WEIGHT_BYTE = 1.5, 2.6
"""Anonymous memory of a build over the weights' size: 1.2 in float16, 1.3 in int8, 2.4 in int4 (benchmarks/engines)."""
BASE_HOST_BYTES = 300 << 20
COLUMNS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """``cache_row``: keys and values of one row. ``logits``: of the largest call. ``host``: while building, about.

    Activations are known only once it is built; the manifest has them.
    """

    weights: int
    cache_row: int
    cache: int
    logits: int
    workspace: int | None
    host: int
    free_disk: int

    def bytes_of_columns(self, context: int) -> int:
        """Keys and values of a thousand columns of one row, of a cache that holds ``context`` columns a row."""
        return self.cache_row * COLUMNS // context

    def to_json(self) -> dict[str, int | None]:
        """Plain values."""
        return asdict(self)


def plan_memory(program: OnnxProgram, limits: Limits, out: Path, workspace: int | None) -> MemoryPlan:
    """Work out sizes.

    Raises:
        EnvironmentMissingError: the disk cannot hold the plan.
    """
    signature, config = program.signature, program.config
    weights = (program.folder / WEIGHTS).stat().st_size
    sizes = {BATCH: 1, SEQUENCE: 1, PAST: limits.max_context, TOTAL: limits.max_context}
    caches = [signature.input(name) for layer in range(config.num_layers) for name in past_names(layer)]
    row = sum(spec.nbytes(**sizes) for spec in caches)
    logits = next(spec for spec in signature.outputs if spec.name == LOGITS)
    calls = (
        sizes | {BATCH: limits.prefill_batch, SEQUENCE: limits.prefill_tokens},
        sizes | {BATCH: limits.max_batch},
    )
    # Weights of 8 bits have a byte for each parameter at least.
    four_bits = weights < program.manifest["parameters"]
    ratio = HOST_BYTES_PER_INT4_WEIGHT_BYTE if four_bits else HOST_BYTES_PER_WEIGHT_BYTE
    free = free_disk_for(out, weights, "the plan needs about")
    return MemoryPlan(
        weights=weights, cache_row=row, cache=row * limits.max_batch,
        logits=max(logits.nbytes(**call) for call in calls), workspace=workspace,
        host=BASE_HOST_BYTES + int(ratio * weights), free_disk=free,
    )  # fmt: skip
