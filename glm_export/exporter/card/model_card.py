"""``README.md`` of an exported folder: a model card as Hugging Face has them, true of this very folder.

It is written with the program, so it says of proof only where that stands; see ``model_card.md.jinja``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_export.artifacts.hub_cache import IDENTIFIER
from glm_export.artifacts.manifest import CARD
from glm_export.errors import GlmExportError, one_line
from glm_export.exporter.card.loaders import GENAI, ONNX_RUNTIME, OPENVINO, OPTIMUM, Subject, verdicts
from glm_export.model_folder import HUB_PREFIX, inside, read_bounded
from glm_export.spec.session_entries import session_entries
from glm_export.spec.signature import LAST_TOKEN_IDS, POSITION_IDS, WRITE_INDICES, Cache, Signature, past_names
from glm_export.tokenizers import has_tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "model_card.md.jinja"
SNIPPETS = 2
"""Of other loaders, behind the first, which is ours."""
CARD_BYTES = 1 << 20
LICENSE = re.compile(r"(license(?:_name|_link)?):[ \t]*([\w.:/#~%-]{1,200})[ \t]*")
NUMPY = {"float32": "np.float32", "float16": "np.float16", "int8": "np.int8"}
CALL_TOKENS = 4
"""Of the call that shows what goes in and comes out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a card says of a program besides :class:`Subject`.

    ``name``: of the checkpoint. ``base``: its published name, where the folder says it. ``license``: as the source's
    own card has it. ``hashes``: of the source's files. ``sizes``: bytes of the folder's, and ``needs`` as in the
    manifest.
    """

    name: str
    base: str | None
    license: Mapping[str, str]
    adapters: tuple[str, ...]
    hashes: Mapping[str, str]
    dialect: str
    opset: int
    logits: str
    parameters: int
    sizes: Mapping[str, int]
    needs: Mapping[str, str]


def model_card(described: Described, subject: Subject, folder: Path) -> str:
    """The text.

    Args:
        described: names, hashes and sizes.
        subject: the program.
        folder: holds its tokenizer files already, by which snippets are chosen.
    """
    answers = verdicts(subject)
    return _template().render(
        card=described,
        subject=subject,
        config=subject.config,
        answers=[(loader, verdict) for loader, verdict in answers.items()],
        snippets=_snippets(subject, folder, runs={loader.name for loader, told in answers.items() if told.runs}),
        call=_call(subject.signature),
        cache_dtype=NUMPY.get(subject.signature.input(past_names(0)[0]).dtype, "np.float32"),
        growing=subject.signature.cache is Cache.GROWING,
        batch=not answers[OPTIMUM].note,
        entries=session_entries(subject.recipe),
        has_tokenizer=has_tokenizer(folder, subject.config),
    )


def _snippets(subject: Subject, folder: Path, runs: set[str]) -> list[str]:
    """Names of the snippets that fit, the best first; each is a macro of the template."""
    config = folder / "tokenizer_config.json"
    texts = (folder / "tokenizer.json").is_file()
    chats = texts and config.is_file() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))
    growing_or_shared = subject.signature.cache is not Cache.STATIC and not subject.config.prefix_mask
    fitting = {
        "genai_chat": GENAI.name in runs and chats,
        "optimum": OPTIMUM.name in runs and texts,
        "onnxruntime": ONNX_RUNTIME.name in runs and texts and growing_or_shared and not subject.config.prefix_length,
        "openvino_call": OPENVINO.name in runs and subject.dtype != "bfloat16",
        "onnxruntime_call": ONNX_RUNTIME.name in runs,
    }
    return [name for name, fits in fitting.items() if fits][:SNIPPETS]


def _call(signature: Signature) -> dict[str, str]:
    """A call of one row and :data:`CALL_TOKENS` tokens on an empty cache: inputs, and what each is given, in numpy."""
    tokens, names = CALL_TOKENS, {spec.name for spec in signature.inputs}
    static = signature.cache is Cache.STATIC
    given = {"input_ids": f"np.array([[{', '.join(str(5 + token) for token in range(tokens))}]])"}
    if signature.prefix_mask:
        columns = signature.static_length if static else tokens
        given["attention_mask"] = f"np.broadcast_to(np.arange({columns}) < {tokens}, (1, 1, {tokens}, {columns}))"
        given[POSITION_IDS] = f"np.stack([np.arange({tokens}), np.zeros({tokens}, np.int64)])[None]"
    elif not static:
        given["attention_mask"] = f"np.ones((1, {tokens}), np.int64)"
    if POSITION_IDS in names:
        given.setdefault(POSITION_IDS, f"np.arange({tokens})[None]")
    if WRITE_INDICES in names:
        given[WRITE_INDICES] = "np.zeros(1, np.int64)"
    if LAST_TOKEN_IDS in names:
        given[LAST_TOKEN_IDS] = f"np.array([{tokens - 1}])"
    spec = signature.input(past_names(0)[0])
    held = tokens if signature.cache is Cache.SHARED and signature.prefix_mask else 0
    shape = (1, spec.dims[1], signature.static_length if static else held, spec.dims[3])
    return given | {"past": str(shape)}


def base_model(folder: Path) -> str | None:
    """``ORG/NAME`` of a checkpoint that lies in a Hugging Face cache; None elsewhere, where no folder says it."""
    home = folder.absolute().parent.parent
    if folder.absolute().parent.name != "snapshots" or not home.name.startswith(HUB_PREFIX):
        return None
    name = home.name.removeprefix(HUB_PREFIX).replace("--", "/", 1)
    return name if IDENTIFIER.fullmatch(name) else None


def source_license(folder: Path) -> dict[str, str]:
    """``license``, ``license_name`` and ``license_link`` as the head of the checkpoint's own card says them.

    A card that cannot be read says nothing: it is somebody's text, and nothing depends on it.
    """
    try:
        text = read_bounded(inside(folder, CARD), CARD_BYTES).decode("utf-8")
    except (GlmExportError, OSError, ValueError):
        return {}
    head = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
    return {found[1]: found[2] for line in head.splitlines() if (found := LICENSE.fullmatch(line))}


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def printing(value: Any) -> Any:
        # Names come from folders: none breaks a line or a cell of a table.
        return one_line(value).replace("|", "\\|") if type(value) is str and "\n" not in value else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=printing,
    )
    environment.filters["yaml"] = json.dumps
    return environment.get_template(TEMPLATE)
