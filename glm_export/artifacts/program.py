"""What travels between the steps: an ONNX program in its folder, with signature and provenance."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm_export.artifacts.manifest import MANIFEST, read_manifest, require_undamaged
from glm_export.errors import CheckpointError, InputError, reason, shown
from glm_export.spec.config import GlmConfig
from glm_export.spec.dtypes import DTYPES
from glm_export.spec.signature import LOGITS_KINDS, Signature, past_names
from glm_export.spec.summary import Summarized

MODEL = "model.onnx"
RAGGED = "unpadded.onnx"
"""The same program told how many tokens of a call each row has; it reads the same weights."""
NEEDS, VERSION = "needs", re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")
"""The manifest's key for runtimes that are too old below a version, and how a version is written there."""
WEIGHTS = "model.onnx.data"
BLOCK_OPTIONS, KNOWN_BLOCK_OPTIONS = "block_options", {"block_size", "head_bits"}
"""The manifest's key for blocks and a head that are not the recipe's own, and what it may say of them."""
KV_CACHE_DTYPE = "kv_cache_dtype"
"""The manifest's key for integers that keys and values are kept as, whatever the recipe."""
SUMS_IN_16_BITS = "sums_in_16_bits"
"""The manifest's key for integers that any processor multiplies exactly; missing where none are multiplied, or finer
ones that not every processor does."""
PROMPT_LAYERS = "prompt_layers"
"""The manifest's key for how many layers have a second form for prompts, where not all of them do."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OnnxProgram(Summarized):
    """An exported folder: ``model.onnx``, ``model.onnx.data``, tokenizer files, configs, manifest.

    ``graph``: which of the folder's graphs is meant.
    """

    folder: Path
    config: GlmConfig
    signature: Signature
    dialect: str
    dtype: str
    logits: str
    manifest: dict[str, Any]
    recipe: str | None = None
    graph: str = MODEL

    def summary(self) -> dict[str, str]:
        """Of which model, written in what."""
        return {
            "folder": str(self.folder),
            "family": self.config.family,
            "dialect": self.dialect,
            "dtype": self.dtype,
            "recipe": self.recipe_label,
            "logits": self.logits,
            "context": f"{self.config.text_positions:,} tokens",
        }

    @property
    def recipe_label(self) -> str:
        """What was rounded, for people: the recipe, and the cache where it is kept as integers."""
        kept = ", keys and values int8" if self.signature.cache_is_integer else ""
        return f"{self.recipe or 'none'}{kept}"

    @property
    def least_onnxruntime(self) -> tuple[int, ...]:
        """The oldest ONNX Runtime that has the program's operators, as numbers; empty where any will do."""
        return tuple(int(number) for number in self.manifest.get(NEEDS, {}).get("onnxruntime", "").split(".") if number)

    @property
    def model_path(self) -> Path:
        """The graph; its weights lie beside it."""
        return self.folder / self.graph

    @property
    def ragged(self) -> OnnxProgram | None:
        """The same program by its graph for rows with different numbers of tokens; None where the folder has none."""
        if RAGGED not in self.manifest["sizes"]:
            return None
        return replace(self, graph=RAGGED, signature=self.signature.told_query_lengths())

    def require_undamaged(self) -> None:
        """Hash every file, the weights as well.

        Raises:
            CheckpointError: one is not what was written, or nothing says what was.
        """
        require_undamaged(self.folder / MANIFEST, self.manifest, "export")


def load_program(folder: Path | str) -> OnnxProgram:
    """Open an exported folder.

    Raises:
        InputError: it is no exported folder.
        CheckpointError: files are missing or not the size the manifest states.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} holds no {MANIFEST}; give a folder that 'glm-export export' wrote")
    path = folder / MANIFEST
    manifest = read_manifest(path, "export")
    try:
        return program_of(folder, manifest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this version: {reason(error)}; export again") from error


def program_of(folder: Path, manifest: dict[str, Any]) -> OnnxProgram:
    """What a program's manifest says, for files in ``folder``.

    Raises:
        ConfigError: its config or signature is none.
        KeyError, TypeError, ValueError: it does not fit this version.
    """
    config, signature = GlmConfig.from_json(manifest["config"]), Signature.from_json(manifest["signature"])
    for key, known in (("dtype", DTYPES), ("logits", LOGITS_KINDS)):
        if manifest[key] not in known:
            raise ValueError(f"{key} is {shown(manifest[key])}")
    if not isinstance(manifest["dialect"], str) or not isinstance(manifest.get("recipe"), str | None):
        raise TypeError(f"dialect and recipe are {shown([manifest['dialect'], manifest.get('recipe')])}")
    blocks = manifest.get(BLOCK_OPTIONS, {})
    if not isinstance(blocks, dict) or not all(
        key in KNOWN_BLOCK_OPTIONS and isinstance(value, int) for key, value in blocks.items()
    ):
        raise ValueError(f"{BLOCK_OPTIONS} is {shown(blocks)}")
    needs = manifest.get(NEEDS, {})
    if not isinstance(needs, dict) or not all(VERSION.fullmatch(str(version)) for version in needs.values()):
        raise ValueError(f"{NEEDS} is {shown(needs)}")
    pasts = [spec.name for spec in signature.inputs if spec.is_cache]
    if pasts != [name for layer in range(config.num_layers) for name in past_names(layer)]:
        raise ValueError(f"the signature has {len(pasts)} keys and values for {config.num_layers} layers")
    return OnnxProgram(
        folder=folder,
        config=config,
        signature=signature,
        dialect=manifest["dialect"],
        dtype=manifest["dtype"],
        logits=manifest["logits"],
        manifest=manifest,
        recipe=manifest.get("recipe"),
    )
