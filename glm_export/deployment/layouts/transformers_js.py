"""The layout of transformers.js: tokenizer and configs on top, the graph and its weights in ``onnx/``.

Read in Node.js and in browsers. Source: ``models/session.js``, ``utils/model-loader.js`` and ``utils/dtypes.js`` of
transformers.js 4.3.2: which file is read follows from the dtype, and weights are looked for under the graph's name with
``_data`` behind it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from glm_export.artifacts.program import WEIGHTS, OnnxProgram
from glm_export.deployment.layouts.layout import LaidOut, Planned, lay_out
from glm_export.deployment.layouts.options import LayoutOptions
from glm_export.deployment.subject import subject_of
from glm_export.exporter.card.loaders import TRANSFORMERS_JS, verdicts
from glm_export.exporter.loader_files import GENERATION_CONFIG, SPECIAL_TOKENS, TOKENIZER_CONFIG, TOKENIZER_JSON
from glm_export.model_folder import read_json
from glm_export.sessions.batch_invariance import recipe_of
from glm_export.spec.session_entries import session_entries
from glm_export.spec.weight_formats import BlockWeights

SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}
"""Of a graph's name, by what transformers.js calls the dtype."""
COPIED = (TOKENIZER_JSON, GENERATION_CONFIG, SPECIAL_TOKENS)
FOUR_BITS = 4


def write_transformers_js(source: str | Path, out: Path, options: LayoutOptions | None = None) -> LaidOut:
    """Lay an exported folder out as transformers.js reads models; see :func:`.layout.lay_out`.

    Args:
        source: an exported folder with ``tokenizer.json``.
        out: the model's folder; its name is the model's.
        options: how.

    Raises:
        InputError: as there; or transformers.js cannot run the program, or nothing tells it how texts are cut.
    """
    return lay_out(source, out, TRANSFORMERS_JS, _plan, options)


def dtype_name(program: OnnxProgram) -> str:
    """What transformers.js would call the program's dtype: ``fp32``, ``fp16``, ``q8``, ``q4`` or ``q4f16``."""
    recipe, half = recipe_of(program), program.dtype == "float16"
    form = recipe.layers if recipe is not None else None
    if form is None:
        return "fp16" if half else "fp32"
    bits = form.bits if isinstance(form, BlockWeights) else None
    if bits == FOUR_BITS or form.explicit_dtype == "int4":
        return "q4f16" if half else "q4"
    return "q8"


def _plan(program: OnnxProgram, out: Path) -> Planned:
    name = dtype_name(program)
    graph = f"model{SUFFIXES[name]}.onnx"
    config = read_json(program.folder, "config.json")
    config["transformers.js_config"] = {"dtype": name, "use_external_data_format": {graph: 1}}
    # A text's own beginning ([gMASK]<sop>) is left out by its pipeline unless this is set.
    tokenizer = read_json(program.folder, TOKENIZER_CONFIG) | {"add_bos_token": True}
    return Planned(
        placed={
            f"onnx/{graph}_data": program.folder / WEIGHTS,
            **{file: program.folder / file for file in COPIED if (program.folder / file).is_file()},
        },
        written={
            f"onnx/{graph}": _graph_with_weights_in(program.model_path, f"{graph}_data"),
            "config.json": _json(config),
            TOKENIZER_CONFIG: _json(tokenizer),
        },
        notes=_notes(program, verdicts(subject_of(program))[TRANSFORMERS_JS].note, out),
    )


def _notes(program: OnnxProgram, limit: str, out: Path) -> tuple[str, ...]:
    entries = {key.removeprefix("session."): value for key, value in session_entries(program.recipe).items()}
    told = f"tell it {{session_options: {{extra: {{session: {json.dumps(entries)}}}}}}}: {limit or 'as ours is told'}"
    return (
        f"env.localModelPath = {json.dumps(str(out.absolute().parent))}, and the model is called {out.absolute().name}",
        *((told,) if entries else (limit,) if limit else ()),
    )


def _graph_with_weights_in(path: Path, name: str) -> bytes:
    """The graph, looking for its weights in the file ``name`` beside it."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    data: bytes = model.SerializeToString()
    return data


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
