"""An ONNX file that another tool exported, under the ecosystem's names, as a program of the checkpoint's sizes."""

from __future__ import annotations

from pathlib import Path

import onnx

from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.graphs.slices import read_names
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    Cache,
    Signature,
    decoder_signature,
    past_names,
    present_names,
)

FOREIGN = "foreign"
SHOWN = 3
OWN_ROWS = frozenset({"GroupQueryAttention"})
"""Attention that counts each row's tokens from the mask, so that rows are padded on the right."""
FLOATS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


def find_onnx(path: Path) -> Path | None:
    """The ONNX file meant by a path: itself, or ``model.onnx`` or the only one of a folder; None without one."""
    if path.is_file():
        return path if path.suffix == ".onnx" else None
    files = sorted(path.glob("*.onnx")) if path.is_dir() else []
    named = [file for file in files if file.name == "model.onnx"]
    return next(iter(named or (files if len(files) == 1 else [])), None)


def foreign_program(path: Path, config: GlmConfig) -> OnnxProgram:
    """Read what an ONNX file takes and returns.

    Args:
        path: of the file; its weights lie beside it.
        config: of the checkpoint it was made of: the file says little of that.

    Raises:
        InputError: it is no ONNX, or not a decoder under the names of onnxruntime-genai, Optimum and glm-export.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own, and those of files
        told = " ".join(str(error).split())[:200]
        raise InputError(f"{path} should be an ONNX file, and cannot be read: {told}") from error
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name: value for value in model.graph.output}
    _require_names(path, config, set(inputs), set(outputs))
    logits = outputs[LOGITS].type.tensor_type
    element = logits.elem_type
    if element not in FLOATS:
        raise InputError(f"{path} should put out {LOGITS} as a float, found {onnx.TensorProto.DataType.Name(element)}")
    last = len(logits.shape.dim) > 1 and logits.shape.dim[1].dim_value == 1
    signature = decoder_signature(
        config,
        dtype=FLOATS[element],
        logits="last" if last else "all",
        cache=Cache.SHARED if _counts_rows(model.graph) else Cache.GROWING,
    )
    canonical = decoder_signature(config, dtype=FLOATS[element], logits="all")
    known = {spec.name: spec for spec in (*canonical.inputs, *signature.inputs)}
    taken = Signature(inputs=tuple(known[name] for name in known if name in inputs), outputs=signature.outputs)
    return OnnxProgram(
        folder=path.parent,
        config=config,
        signature=taken,
        dialect=FOREIGN,
        dtype=FLOATS[element],
        logits="last" if last else "all",
        manifest={"sizes": {}, "dialect": FOREIGN, "recipe": None, "needs": {}},
        graph=path.name,
    )


def _require_names(path: Path, config: GlmConfig, inputs: set[str], outputs: set[str]) -> None:
    pasts = {name for layer in range(config.num_layers) for name in past_names(layer)}
    presents = {name for layer in range(config.num_layers) for name in present_names(layer)}
    missing = sorted(({INPUT_IDS, ATTENTION_MASK} | pasts) - inputs) + sorted(({LOGITS} | presents) - outputs)
    strange = sorted(inputs - pasts - {INPUT_IDS, ATTENTION_MASK, POSITION_IDS})
    if missing:
        raise InputError(
            f"{path} should have {', '.join(missing[:SHOWN])}, as a decoder of {config.num_layers} layers has "
            "under the names of onnxruntime-genai and Optimum; export it with past keys and values"
        )
    if strange:
        raise InputError(
            f"{path} takes {', '.join(strange[:SHOWN])}, which is not known; known: ids, mask, positions, pasts"
        )


def _counts_rows(graph: onnx.GraphProto) -> bool:
    return any(node.op_type in OWN_ROWS and any(read_names(node)) for node in graph.node)
