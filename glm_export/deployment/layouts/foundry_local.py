"""A model of Foundry Local: what onnxruntime-genai reads, and ``inference_model.json`` with the model's name.

Foundry Local's SDK registers any folder with a ``genai_config.json``, so an exported one as it is; its model cache is
searched for folders that hold both files. Source: ``catalog/local_model_scanner.cc`` and
``download/inference_model_writer.cc`` of microsoft/Foundry-Local.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from glm_export.artifacts.program import MODEL, WEIGHTS, OnnxProgram
from glm_export.deployment.layouts.layout import LaidOut, Planned, lay_out
from glm_export.deployment.layouts.options import LayoutOptions
from glm_export.exporter.card.loaders import FOUNDRY_LOCAL
from glm_export.exporter.genai_config import GENAI_CONFIG
from glm_export.exporter.loader_files import (
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
)

NAMED = "inference_model.json"
PLACED = (
    MODEL,
    WEIGHTS,
    GENAI_CONFIG,
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
)


def write_foundry_local(
    source: str | Path, out: Path, options: LayoutOptions | None = None, *, name: str | None = None
) -> LaidOut:
    """Lay an exported folder out as a model of Foundry Local; see :func:`.layout.lay_out`.

    Args:
        source: an exported folder of a causal family, with ``tokenizer.json``.
        out: the model's folder, in a folder of models.
        options: how.
        name: of the model; None takes the folder's.

    Raises:
        InputError: as there; or Foundry Local cannot run the program.
    """
    return lay_out(source, out, FOUNDRY_LOCAL, partial(_plan, name), options)


def _plan(name: str | None, program: OnnxProgram, out: Path) -> Planned:
    # Without templates of its own it takes the tokenizer's, as what it downloads has them.
    named = {"Name": name or out.absolute().name, "PromptTemplate": None}
    return Planned(
        placed={file: program.folder / file for file in PLACED if (program.folder / file).is_file()},
        written={NAMED: (json.dumps(named, indent=2, ensure_ascii=False) + "\n").encode()},
        notes=("its SDK registers the folder, or the exported one as it is; its command line was not tried",),
    )
