"""A small tokenizer of the native families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library, decoders, models, pre_tokenizers, processors

SPECIALS = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
            "<|assistant|>", "<|observation|>"]  # fmt: skip
TEMPLATE = (
    "[gMASK]<sop>{%- for m in messages %}\n<|{{ m.role }}|>\n{{ m.content }}{%- endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write_native(folder: Path) -> None:
    """A small byte-level ``tokenizer.json`` in the manner of GLM-4-0414, with a template of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "he", "ll", "hell"])}
    library = Library(models.BPE(vocabulary, [("h", "e"), ("l", "l"), ("he", "ll")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(SPECIALS)
    prefix = [(token, library.token_to_id(token)) for token in ("[gMASK]", "<sop>")]
    library.post_processor = processors.TemplateProcessing("[gMASK] <sop> $A", special_tokens=prefix)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


@pytest.fixture
def native_folder(tmp_path: Path) -> Path:
    """A folder with :func:`write_native`'s files."""
    write_native(tmp_path)
    return tmp_path
