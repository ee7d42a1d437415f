"""The small files beside the program that loaders read: configs (transformers, Optimum, genai) and tokenizer."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_export.artifacts.manifest import write_json
from glm_export.artifacts.program import MODEL
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import CheckpointError
from glm_export.exporter.genai_config import GENAI_CONFIG, genai_config
from glm_export.model_folder import inside, read_json
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import ATTENTION_MASK, INPUT_IDS, Cache, Signature
from glm_export.tokenizers import JSON_INSTEAD, stop_ids

if TYPE_CHECKING:
    from glm_export.tokenizers.conversion import Conversion

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "ice_text.model", "cog-pretrain.model", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip
SPECIAL_TOKENS, PAD = "special_tokens_map.json", "pad_token"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_JSON = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"


def loader_config(config: GlmConfig, dtype: str, stops: Sequence[int]) -> dict[str, Any]:
    """``config.json`` in the keys of transformers' native GLM, whatever the checkpoint's family.

    Optimum's ``ORTModelForCausalLM`` takes the cache's shape from ``num_key_value_heads`` only for model types it
    knows, and ``glm`` is one; ``chatglm`` and ``glm4`` are not. The decoder itself is described in ``manifest.json``.
    Prefix families cannot run there (Optimum has no such mask), so nothing about rotary embedding is claimed for them.
    """
    rotary = config.rotary
    turned = {} if rotary is None or config.prefix_mask else {
        "partial_rotary_factor": rotary.dim / config.head_dim, "rope_theta": rotary.base,
    }  # fmt: skip
    return turned | {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "attention_bias": config.qkv_bias,
        "head_dim": config.head_dim,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
        "eos_token_id": list(stops),
        "pad_token_id": config.pad_token_id,
    }


def every_stop_id(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The ids config.json names, and those of the prompt format where the folder has a tokenizer.

    Raises:
        CheckpointError: the tokenizer's file is damaged.
    """
    if not checkpoint.has_tokenizer:
        return checkpoint.config.eos_token_ids
    return stop_ids(checkpoint.config, checkpoint.tokenizer)


def write_loader_files(
    checkpoint: Checkpoint, folder: Path, dtype: str, signature: Signature, recipe: str | None = None
) -> None:
    """Write what loaders read; tokenizer files are copied by their known names, nothing else is.

    Args:
        checkpoint: whose files are read.
        folder: the program's.
        dtype: of the program.
        signature: of the program.
        recipe: the program's, by name; None where it is not quantized.

    Raises:
        CheckpointError: a file is damaged or links out of the checkpoint's folder.
    """
    config = checkpoint.config
    stops = every_stop_id(checkpoint)
    # Loaders begin on an empty cache: without its prefix the model would answer as another one.
    offered = not config.prefix_length
    if offered:
        write_json(folder / "config.json", loader_config(config, dtype, stops))
    generation: dict[str, Any] = {}
    if inside(checkpoint.folder, GENERATION_CONFIG).is_file():
        generation = read_json(checkpoint.folder, GENERATION_CONFIG)
    named = generation.get("eos_token_id")
    named = [] if named is None else named
    stops = tuple(sorted({*stops, *([named] if isinstance(named, int) else named)}))
    ids = {"eos_token_id": list(stops), "pad_token_id": generation.get("pad_token_id", config.pad_token_id)}
    write_json(folder / GENERATION_CONFIG, generation | ids)
    # genai has no mask for prefix families, does not feed what a static cache asks for, and takes logits to be those of
    # all tokens or one.
    if offered and not config.prefix_mask and signature.cache is not Cache.STATIC and told_as_usual(signature):
        values = genai_config(config, signature, filename=MODEL, stops=stops, recipe=recipe)
        write_json(folder / GENAI_CONFIG, values)
    _write_tokenizer(checkpoint, folder, signature)


def _write_tokenizer(checkpoint: Checkpoint, folder: Path, signature: Signature) -> None:
    conversion = _conversion(checkpoint)
    values: dict[str, Any] = {}
    if inside(checkpoint.folder, TOKENIZER_CONFIG).is_file():
        values = read_json(checkpoint.folder, TOKENIZER_CONFIG)
        # auto_map names Python files of the publisher; none is copied, and none may be run.
        remote = values.pop("auto_map", None) is not None
        if remote and inside(checkpoint.folder, TOKENIZER_JSON).is_file():
            values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if conversion:
        conversion.tokenizer.save(str(folder / TOKENIZER_JSON), pretty=False)
        values = conversion.loader_config(values)
    elif template := _template(checkpoint):
        values["chat_template"] = template
    for name in TOKENIZER_FILES:
        # Beside a list of templates transformers would read this file alone.
        superseded = name == TEMPLATE_FILE and not isinstance(values.get("chat_template"), str)
        superseded |= conversion is not None and name in conversion.superseded
        if inside(checkpoint.folder, name).is_file() and not superseded:
            _copy(checkpoint.folder / name, folder / name, padded=not one_row_elsewhere(signature))
    if values or (folder / TOKENIZER_JSON).is_file():
        values |= batch_settings(signature)
        if one_row_elsewhere(signature):
            values.pop(PAD, None)
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (folder / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")


def told_as_usual(signature: Signature) -> bool:
    """Whether logits are those of every token or of the last, as other loaders know them."""
    return signature.most_logits in (None, 1)


def batch_settings(signature: Signature) -> dict[str, Any]:
    """What a tokenizer has to know of a program to feed it: names, and the side on which shorter rows are padded."""
    return {
        "model_input_names": [INPUT_IDS, ATTENTION_MASK],
        "padding_side": "right" if signature.own_lengths else "left",
    }


def one_row_elsewhere(signature: Signature) -> bool:
    """Whether loaders that read the last column of the logits go wrong where a shorter row has padding there.

    Transformers' ``generate`` does, and so Optimum: programs that give the last real token's logits alone are right.
    Without a padding token its tokenizer refuses rows of unequal length.
    """
    return signature.own_lengths and not signature.last_logits_only


def _template(checkpoint: Checkpoint) -> Any:
    """The chat template where nothing is converted: the folder's, or the family's where names stand in texts."""
    if not checkpoint.has_tokenizer:
        return None
    from glm_export.tokenizers.chat.carried import carried_template
    from glm_export.tokenizers.chat.folder_template import read_template
    from glm_export.tokenizers.named_roles import NamedRolesTokenizer

    ours = checkpoint.tokenizer
    if isinstance(ours, NamedRolesTokenizer):
        return carried_template(ours, ours.encode_plain, ours.built_in, None)
    own = read_template(checkpoint.folder)
    return own.carried() if own is not None else None


def _copy(source: Path, target: Path, *, padded: bool) -> None:
    """A tokenizer's file as it is, but for what a trainer set: every reader would cut prompts, or fill them up.

    ``padded``: whether readers may pad rows.
    """
    changed: dict[str, Any] = {}
    if source.name == TOKENIZER_JSON:
        values = read_json(source.parent, source.name)
        if values.get("truncation") or values.get("padding"):
            changed = values | {"truncation": None, "padding": None}
    elif source.name == SPECIAL_TOKENS and not padded:
        changed = {key: value for key, value in read_json(source.parent, source.name).items() if key != PAD}
    if changed:
        target.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        shutil.copyfile(source, target)


def _conversion(checkpoint: Checkpoint) -> Conversion | None:
    """``tokenizer.json`` where the publisher has none; None where there is nothing to convert, or not exactly."""
    kind, given = checkpoint.family.TOKENIZER, inside(checkpoint.folder, TOKENIZER_JSON).is_file()
    if kind not in JSON_INSTEAD or given or not checkpoint.has_tokenizer:
        return None
    from glm_export.tokenizers.conversion import convert

    try:
        return convert(checkpoint.folder, checkpoint.config, checkpoint.tokenizer)
    except CheckpointError as error:
        logger.warning("%s", error)
        return None
