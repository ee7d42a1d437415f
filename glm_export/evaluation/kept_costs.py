"""Costs of layers measured so far, in a file beside the output: a run that was stopped goes on from them."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

from glm_export.artifacts.manifest import write_json
from glm_export.calibration.corpus.corpus import Corpus
from glm_export.calibration.quantization import Quantization
from glm_export.checkpoints.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


class KeptCosts:
    """KL by the layers that were quantized, nats a token; written whole behind each one, or not at all.

    ``taken_up``: how many an earlier run left here.

    Args:
        path: of the file; None keeps them in memory alone.
        identity: everything they depend on, as JSON has it; a file of another is begun anew.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self._path, self._identity = path, identity
        self._costs: dict[str, float] = self._read()
        self.taken_up = len(self._costs)

    def get(self, layers: str) -> float | None:
        """What was measured of them; None where nothing was."""
        return self._costs.get(layers)

    def put(self, layers: str, kl: float) -> float:
        """Remember, and return it."""
        self._costs[layers] = kl
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_name(f"{self._path.name}.partial")
            write_json(partial, {"identity": self._identity, "kl": self._costs})
            partial.replace(self._path)
        return kl

    def _read(self) -> dict[str, float]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            read = json.loads(self._path.read_text(encoding="utf-8"))
            costs = {str(name): float(kl) for name, kl in read["kl"].items()}
            same = read["identity"] == self._identity
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.warning("%s is damaged (%s): costs are measured anew", self._path, type(error).__name__)
            return {}
        if not same:
            logger.warning("%s is of another model, recipe, text or version: costs are measured anew", self._path)
        return costs if same else {}


def identity_of(
    checkpoint: Checkpoint, quantization: Quantization, corpus: Corpus, *, dtype: str, layer_by_layer: bool
) -> dict[str, Any]:
    """Everything that costs depend on, as JSON keeps it."""
    numbers = hashlib.sha256(repr((sorted(quantization.input_scales.items()), quantization.kv_scales)).encode())
    for name, scales in sorted(quantization.smoothing.items()):
        numbers.update(name.encode() + scales.tobytes())
    identity = {
        "checkpoint": checkpoint.identity.fingerprint(),
        "recipe": quantization.recipe.to_json(),
        "excluded": dict(quantization.excluded),
        "numbers": numbers.hexdigest(),
        "prompt_layers": quantization.prompt_layers,
        "rows": hashlib.sha256(repr(corpus.samples).encode()).hexdigest(),
        "dtype": dtype,
        "layer_by_layer": layer_by_layer,
        "torch": torch.__version__,
    }
    # Sets in order: the next process has another one.
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=sorted))
    return plain


def several(weights: list[str]) -> str:
    """A name for layers that are quantized together, whatever their number."""
    return f"{len(weights)} together: {hashlib.sha256(' '.join(sorted(weights)).encode()).hexdigest()}"
