"""ChatGLM2, ChatGLM3 or GLM-4: what each file of a folder says, and that two that disagree end the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm_export import families
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import ConfigError
from glm_export.families._signs import FolderFiles
from tests.helpers.golden_data import Golden
from tests.helpers.tiny import tiny_values, write_checkpoint

LOCAL = {"_name_or_path": "/data/run-7"}
RANKS, PIECES = b"IQ== 0\nIg== 1\n", b"\n\x0e\n\x05<unk>"
ROLES = {"added_tokens_decoder": {"64795": {"content": "<|user|>"}, "64796": {"content": "<|assistant|>"}}}


def files(start: bytes = b"", template: str = "", code: str = "", **config: Any) -> FolderFiles:
    return FolderFiles(tokenizer_config=config, tokenizer_start=start, template=template, tokenizer_code=code)


@pytest.mark.parametrize(
    ("values", "beside", "family"),
    [
        ({"padded_vocab_size": 65024}, files(name_or_path="THUDM/chatglm3-6b"), "chatglm3"),
        ({"padded_vocab_size": 65024}, files(**ROLES), "chatglm3"),
        ({"padded_vocab_size": 65024}, files(auto_map={"A": ["zai-org/chatglm3-6b--t.T", None]}), "chatglm3"),
        ({"auto_map": {"AutoConfig": "THUDM/chatglm3-6b-32k--configuration_chatglm.C"}}, files(), "chatglm3"),
        ({}, files(PIECES, code="f'[Round {i + 1}]'"), "chatglm2"),
        ({}, files(PIECES, code="role in ['<|observation|>']"), "chatglm3"),
        ({}, files(PIECES, template="{{ '[Round ' }}"), "chatglm2"),
        ({"padded_vocab_size": 151552}, files(), "glm4_remote"),
        ({}, files(RANKS), "glm4_remote"),
        ({}, files(tokenizer_class="ChatGLM4Tokenizer"), "glm4_remote"),
        # Of the 32k model with a key other servers want; it was once taken for GLM-4.
        (
            {"padded_vocab_size": 65024, "num_hidden_layers": 2, "rope_ratio": 16},
            files(name_or_path="THUDM/chatglm2-6b-32k"),
            "chatglm2",
        ),
        # Stop ids of ChatGLM3's roles are no sign of GLM-4 where the vocabulary is SentencePiece's.
        ({"eos_token_id": [2, 300]}, files(PIECES), "chatglm3"),
        # CodeGeeX's vocabulary with tokens added to it.
        ({"padded_vocab_size": 65100}, files(name_or_path="THUDM/codegeex2-6b"), "chatglm2"),
    ],
)
def test_signs(values: dict[str, Any], beside: FolderFiles, family: str) -> None:
    config = tiny_values("chatglm2", **LOCAL) | values
    assert families.identify(config, beside) == (family, "")


@pytest.mark.parametrize(
    ("values", "beside", "said"),
    [
        ({"padded_vocab_size": 65024}, files(RANKS), ("padded_vocab_size 65024", "tiktoken")),
        ({"padded_vocab_size": 151552}, files(PIECES), ("padded_vocab_size 151552", "SentencePiece")),
        ({"_name_or_path": "THUDM/chatglm2-6b"}, files(name_or_path="THUDM/chatglm3-6b"), ("glm2-6b", "glm3-6b")),
        ({"_name_or_path": "THUDM/chatglm2-6b"}, files(**ROLES), ("chatglm2-6b", "<|assistant|>")),
        ({"layernorm_epsilon": 1e-5, "eos_token_id": [1, 2]}, files(RANKS, template="[Round "), ("tiktoken", "[Round")),
    ],
)
def test_signs_that_disagree_are_shown_both(values: dict[str, Any], beside: FolderFiles, said: tuple[str, str]) -> None:
    config = tiny_values("chatglm2", **LOCAL) | values
    with pytest.raises(ConfigError, match="two things of its family") as error:
        families.identify(config, beside)
    assert all(part in str(error.value) for part in said)
    assert families.read_config(config, "chatglm2", beside).family == "chatglm2"


def test_nothing_tells(caplog: pytest.LogCaptureFixture) -> None:
    family, warning = families.identify(tiny_values("chatglm2", **LOCAL))
    assert (family, "chatglm3" in warning, "--family" in warning) == ("chatglm2", True, True)
    families.read_config(tiny_values("chatglm2", **LOCAL))
    assert "--family" in caplog.text


def test_the_files_of_a_folder_are_asked(tmp_path: Path) -> None:
    """ChatGLM3's golden folder, its published name gone: the tokenizer beside it still tells."""
    golden = Golden("chatglm3").folder
    values = json.loads((golden / "config.json").read_text()) | LOCAL
    write_checkpoint(tmp_path, tiny_values("chatglm3", **LOCAL))
    (tmp_path / "tokenizer.model").write_bytes((golden / "tokenizer.model").read_bytes())
    assert families.identify(values)[0] == "chatglm2"
    (tmp_path / "tokenization_chatglm.py").write_text("ROLES = ['<|system|>', '<|observation|>']")
    assert open_checkpoint(tmp_path).config.family == "chatglm3"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "glm4_moe_lite"}, "latent attention"),
        ({"model_type": "glm_moe_dsa"}, "GLM-5"),
        ({"model_type": "chatglm", "vision_config": {}}, "GLM-4V"),
        ({"model_type": "glm", "vision_config": {}}, "GLM-Edge-V"),
        ({"model_type": "chatglm", "architectures": ["ChatGLMForConditionalGenerationWithImage"]}, "VisualGLM"),
        ({"model_type": "cogvlm2"}, "CogVLM2"),
        ({"model_type": "glm4v"}, "text_config"),
    ],
)
def test_other_models_are_refused_as_what_they_are(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        families.read_config(values)
