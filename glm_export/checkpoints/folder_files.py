"""The files beside config.json and the weights that say what a model is: read as transformers reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm_export.errors import CheckpointError, shown
from glm_export.families._signs import FolderFiles
from glm_export.model_folder import inside, read_json
from glm_export.spec.config import is_number

START_BYTES, CODE_BYTES = 4096, 1 << 20


def folder_files(folder: Path) -> FolderFiles:
    """What tells the family besides ``config.json``; see :class:`glm_export.families._signs.FolderFiles`.

    Raises:
        CheckpointError: a file is damaged.
    """
    config = read_json(folder, "tokenizer_config.json") if _is_file(folder, "tokenizer_config.json") else {}
    template = _text(folder, "chat_template.jinja") or config.get("chat_template")
    return FolderFiles(
        tokenizer_config=config,
        tokenizer_start=_start(folder, "tokenizer.model", START_BYTES),
        template=template if isinstance(template, str) else "",
        tokenizer_code=_text(folder, "tokenization_chatglm.py"),
    )


def with_generation_config(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` with the stop ids that are in force: those of ``generation_config.json`` where it names any.

    Source: ``GenerationMixin`` of transformers, which asks ``config.json`` only where there is no such file.

    Raises:
        CheckpointError: the file is damaged, or its stop ids or its padding are no token ids.
    """
    if not _is_file(folder, "generation_config.json"):
        return dict(values)
    generation = read_json(folder, "generation_config.json")
    stops, padding = generation.get("eos_token_id"), generation.get("pad_token_id")
    if padding is not None and not is_number(padding, int):
        raise CheckpointError(
            f"{folder / 'generation_config.json'} has pad_token_id = {shown(padding)}, expected a token id; mend it"
        )
    if stops is None:
        return dict(values)
    ids = [stops] if isinstance(stops, int) else stops
    if not isinstance(ids, list) or not all(is_number(i, int) for i in ids):
        raise CheckpointError(
            f"{folder / 'generation_config.json'} has eos_token_id = {shown(stops)}, expected a token id or a list of "
            "them"
        )
    return {**values, "eos_token_id": ids}


def _is_file(folder: Path, name: str) -> bool:
    return inside(folder, name).is_file()


def _start(folder: Path, name: str, size: int) -> bytes:
    if not _is_file(folder, name):
        return b""
    with inside(folder, name).open("rb") as file:
        return file.read(size)


def _text(folder: Path, name: str) -> str:
    return _start(folder, name, CODE_BYTES).decode("utf-8", errors="replace")
