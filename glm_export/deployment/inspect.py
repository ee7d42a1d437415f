"""What a folder is, as plain facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from glm_export import api
from glm_export.artifacts.engine import load_engine
from glm_export.artifacts.manifest import LAYOUT_MANIFEST, TRITON_MANIFEST
from glm_export.artifacts.open import Artifact, Kind, open_artifact
from glm_export.artifacts.program import BLOCK_OPTIONS, KV_CACHE_DTYPE, MODEL, NEEDS, load_program
from glm_export.calibration.ranges import load_ranges
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.deployment.subject import subject_of
from glm_export.errors import CheckpointError, GlmExportError, InputError, reason
from glm_export.exporter.card.loaders import verdicts
from glm_export.model_folder import read_json
from glm_export.sessions.batch_invariance import invariance_of
from glm_export.spec.config import ExpertsConfig, GlmConfig
from glm_export.tokenizers import load_tokenizer, stop_ids


def inspect_folder(source: str, family: str | None = None, adapters: Sequence[str] = ()) -> dict[str, Any]:
    """Facts about a checkpoint (with adapters, where some are given), an exported folder, an engine or ranges.

    Raises:
        GlmExportError: it is none of them, or its files do not fit together.
    """
    artifact = open_artifact(source)
    if adapters and artifact.kind is not Kind.CHECKPOINT:
        raise InputError(f"adapters go with a checkpoint; {artifact.path} is of kind {artifact.kind.value}")
    if artifact.kind in WRITTEN:
        return _written_facts(artifact)
    return checkpoint_facts(api.open_checkpoint(source, family, adapters))


def _written_facts(artifact: Artifact) -> dict[str, Any]:
    """Of what we wrote; much is shown that nothing else reads, so it is first missed here."""
    try:
        return WRITTEN[artifact.kind](artifact.path)
    except (GlmExportError, OSError):
        raise
    except Exception as error:  # protobuf's errors share no base
        raise CheckpointError(
            f"{artifact.path} is damaged, or was written by another version: {reason(error)}; write it again"
        ) from error


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Family, sizes, files, audit."""
    checkpoint.audit()
    tensors = Counter(source.kind for source in checkpoint.sources.values())
    return {
        "kind": "checkpoint",
        "folder": str(checkpoint.folder),
        **config_facts(checkpoint.config),
        "adapters": checkpoint.added,
        "weight_files": [path.name for path in checkpoint.files],
        "weights_told_by": checkpoint.read.told_by,
        "lying_beside_unread": list(checkpoint.read.unread),
        "weight_bytes": checkpoint.source_bytes,
        "tensors": dict(tensors),
        "audit": "every tensor present, none unexpected",
        "notes": list(checkpoint.notes),
        "tokenizer": tokenizer_facts(checkpoint.folder, checkpoint.config),
    }


def program_facts(folder: Path) -> dict[str, Any]:
    """Dialect, operators, inputs and outputs, provenance."""
    program = load_program(folder)
    graph = onnx.load(str(folder / MODEL), load_external_data=False).graph
    signature = program.signature.to_json()
    return {
        "kind": "ONNX program",
        "folder": str(folder),
        **config_facts(program.config),
        "dialect": program.dialect,
        "opset": program.manifest["opset"],
        "dtype": program.dtype,
        "logits": program.logits,
        "recipe": program.recipe or "none",
        **program.manifest.get(BLOCK_OPTIONS, {}),
        **({KV_CACHE_DTYPE: "int8"} if program.signature.cache_is_integer else {}),
        "batch_invariance": invariance_of(program, "cpu").value,
        **{f"needs {name}": f"{least} or later" for name, least in program.manifest.get(NEEDS, {}).items()},
        "parameters": program.manifest["parameters"],
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
        "inputs": [f"{spec['name']} {spec['dtype']}{spec['dims']}" for spec in signature["inputs"]],
        "outputs": [f"{spec['name']} {spec['dtype']}{spec['dims']}" for spec in signature["outputs"]],
        "sizes": program.manifest["sizes"],
        "exported_from": program.manifest["checkpoint"],
        "adapters": program.manifest.get("adapters", []),
        "created": program.manifest["created"],
        "packages": program.manifest["packages"],
        "tokenizer": tokenizer_facts(folder, program.config),
        "loaders": {loader.name: str(verdict) for loader, verdict in verdicts(subject_of(program)).items()},
    }


def engine_facts(folder: Path) -> dict[str, Any]:
    """Runtime, where it loads, profiles, memory, layers, provenance."""
    engine = load_engine(folder)
    manifest, program = engine.manifest, engine.program
    built_on, compatibility, memory = manifest["built_on"], manifest["compatibility"], manifest["memory"]
    return {
        "kind": "TensorRT engine",
        "folder": str(folder),
        **config_facts(program.config),
        "runtime": f"{engine.runtime} {engine.version}",
        "built_on": {key: value for key, value in built_on.items() if value is not None},
        "compatibility": {key: value for key, value in compatibility.items() if value} or "this version alone",
        "limits": manifest["limits"],
        "dialect": program.dialect,
        "dtype": program.dtype,
        "logits": program.logits,
        "recipe": program.recipe or ("implicit INT8" if manifest["implicit_int8"] else "none"),
        "memory": {name: memory[name] for name in ("weights", "cache_row", "weight_ratio") if name in memory}
        | {f"activations, {name}": count for name, count in memory["activations"].items()},
        "network_layers": manifest["network_layers"],
        "products": manifest["engine_layers"]["products"],
        **({"not_inspected": manifest["not_inspected"]} if manifest.get("not_inspected") else {}),
        "sizes": manifest["sizes"],
        "exported_from": program.manifest["checkpoint"],
        "adapters": program.manifest.get("adapters", []),
        "created": manifest["created"],
        "packages": manifest["packages"],
        "tokenizer": tokenizer_facts(folder, program.config),
    }


def ranges_facts(folder: Path) -> dict[str, Any]:
    """Which checkpoint was measured, on what text, and what was measured of it."""
    ranges = load_ranges(folder)
    manifest = ranges.manifest
    return {
        "kind": "ranges",
        "folder": str(folder),
        "family": manifest["family"],
        "layers": ranges.layers,
        "measured_on": manifest["checkpoint"]["name"],
        "corpus": manifest["corpus"],
        "weights_rounded_for": manifest["rounded_for"] or "no recipe",
        "device": manifest["device"],
        "linear_inputs": len(ranges.inputs),
        "sizes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }


def triton_facts(folder: Path) -> dict[str, Any]:
    """Which backend runs it, and what it was made of."""
    return _made_facts(folder, Kind.TRITON, TRITON_MANIFEST, "backend")


def layout_facts(folder: Path) -> dict[str, Any]:
    """Which program it was laid out for, and what it was made of."""
    return _made_facts(folder, Kind.LAYOUT, LAYOUT_MANIFEST, "program")


def _made_facts(folder: Path, kind: Kind, manifest_name: str, runs_in: str) -> dict[str, Any]:
    manifest = read_json(folder, manifest_name)
    return {
        "kind": kind.value,
        "folder": str(folder),
        runs_in: manifest[runs_in],
        "made_of": manifest["made_of"]["kind"],
        "created": manifest["created"],
        "packages": manifest["packages"],
        "sizes": manifest["sizes"],
    }


WRITTEN: dict[Kind, Callable[[Path], dict[str, Any]]] = {
    Kind.ENGINE: engine_facts,
    Kind.PROGRAM: program_facts,
    Kind.RANGES: ranges_facts,
    Kind.TRITON: triton_facts,
    Kind.LAYOUT: layout_facts,
}


def config_facts(config: GlmConfig) -> dict[str, Any]:
    """The sizes people ask for first."""
    return {
        "family": config.family,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "heads": f"{config.num_heads} query, {config.kv_heads} key-value, {config.head_dim} channels each",
        "ffn_size": config.ffn_size,
        "vocab_size": config.vocab_size,
        "context": config.max_positions,
        "rotary": _rotary_fact(config),
        **({"experts": _experts_fact(config.experts)} if config.experts else {}),
        "tied_head": config.tied_head,
        **({"text_part_of": config.text_part_of} if config.text_part_of else {}),
        **({"prefix_length": config.prefix_length} if config.prefix_length else {}),
    }


def _rotary_fact(config: GlmConfig) -> str:
    rotary = config.rotary
    if rotary is None:
        return "none: learned positions in the text and in the blank"
    scaled = f", positions / {rotary.position_scale:g}" if rotary.position_scale != 1 else ""
    if rotary.yarn is not None:
        scaled += f", YaRN by {rotary.yarn.factor:g} over {rotary.yarn.original_positions} positions"
    axes = f" for each of {rotary.axes} positions" if rotary.axes > 1 else ""
    return f"{rotary.dim} of {config.head_dim} channels{axes}, base {rotary.base:g}{scaled}"


def _experts_fact(experts: ExpertsConfig) -> str:
    groups = f", of the best {experts.chosen_groups} of {experts.groups} groups" if experts.groups > 1 else ""
    return (
        f"{experts.per_token} of {experts.routed}{groups} and {experts.shared} shared, width {experts.ffn_size}, "
        f"from layer {experts.first_layer}"
    )


def tokenizer_facts(folder: Path, config: GlmConfig) -> dict[str, Any]:
    """Which reader, and the ids that end a reply; or why there is none."""
    try:
        tokenizer = load_tokenizer(folder, config)
    except GlmExportError as error:
        return {"missing": str(error)}
    return {"reader": type(tokenizer).__name__, "stop_ids": list(stop_ids(config, tokenizer))}
