"""Reading weight files: every layout, and every way they can be broken or hostile."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glm_export import families
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import CheckpointError, ConfigError, InputError
from glm_export.model_folder import file_sha256, inside
from glm_export.modeling import Decoder
from tests.helpers.golden_data import Golden
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

Open = Callable[[Path], Checkpoint]
LAYOUTS = [("model.safetensors", 1), ("model.safetensors", 3), ("pytorch_model.bin", 1), ("pytorch_model.bin", 3)]


@pytest.mark.parametrize(("layout", "shards"), LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_layout_reads_the_same(
    tmp_path: Path, opened: Open, layout: str, shards: int, dtype: torch.dtype
) -> None:
    values = tiny_values("glm4")
    tensors = random_tensors(values, dtype=dtype)
    checkpoint = opened(write_checkpoint(tmp_path / "c", values, tensors, layout=layout, shards=shards))
    checkpoint.audit()
    parameters = dict(checkpoint.parameters())
    official = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    expected = torch.cat([tensors[name] for name in official])
    assert torch.equal(parameters["layers.1.attention.qkv.weight"], expected)
    assert parameters["layers.1.attention.qkv.weight"].dtype == dtype
    assert len(checkpoint.files) == shards


def test_headwise_qkv_layout(tmp_path: Path, opened: Open) -> None:
    """ChatGLM2 without multi-query attention stores head 0: q k v, head 1: q k v, …"""
    values = tiny_values("chatglm2", multi_query_attention=False)
    tensors = random_tensors(values)
    checkpoint = opened(write_checkpoint(tmp_path / "c", values, tensors))
    stored = tensors["transformer.encoder.layers.0.self_attention.query_key_value.weight"]
    heads = [stored[48 * head : 48 * head + 48] for head in range(4)]
    expected = torch.cat([head[16 * part : 16 * part + 16] for part in range(3) for head in heads])
    assert torch.equal(dict(checkpoint.parameters())["layers.0.attention.qkv.weight"], expected)


def test_a_tied_head_is_read_under_either_name(tmp_path: Path, opened: Open) -> None:
    values = tiny_values("glm")
    tensors = random_tensors(values)
    assert "lm_head.weight" not in tensors
    embedding = tensors["model.embed_tokens.weight"]
    saved = {
        "embedding": tensors,
        "both": tensors | {"lm_head.weight": embedding.clone()},
        "head": {name: t for name, t in tensors.items() if t is not embedding} | {"lm_head.weight": embedding},
    }
    for kind, held in saved.items():
        checkpoint = opened(write_checkpoint(tmp_path / kind, values, held))
        checkpoint.audit()
        assert checkpoint.config.tied_head
        parameters = dict(checkpoint.parameters())
        assert torch.equal(parameters["head.weight"], parameters["embedding.weight"])
        assert torch.equal(parameters["head.weight"], embedding)


def test_a_head_that_differs_is_not_tied(tmp_path: Path, opened: Open) -> None:
    """As in transformers 5 (``tests/golden/folders/native_tied_cfg_lmhead_differs``)."""
    values = tiny_values("glm")
    tensors = random_tensors(values) | {"lm_head.weight": torch.ones(320, 64)}
    checkpoint = opened(write_checkpoint(tmp_path / "c", values, tensors))
    checkpoint.audit()
    assert not checkpoint.config.tied_head
    assert torch.equal(dict(checkpoint.parameters())["head.weight"], torch.ones(320, 64))
    assert "differs from model.embed_tokens.weight" in " ".join(checkpoint.notes)


def test_chatglms_copies_must_be_equal(tmp_path: Path, opened: Open) -> None:
    """Its own code copies one over the other; which, depends on the order in the file."""
    values = tiny_values("chatglm")
    tensors = random_tensors(values) | {"lm_head.weight": torch.ones(320, 64)}
    folder = write_checkpoint(tmp_path / "c", values, tensors)
    with pytest.raises(CheckpointError, match="tie_word_embeddings to false"):
        opened(folder)
    untied = opened(write_checkpoint(tmp_path / "u", values | {"tie_word_embeddings": False}, tensors))
    untied.audit()
    assert torch.equal(dict(untied.parameters())["head.weight"], torch.ones(320, 64))


def test_audit_lists_everything_at_once(tmp_path: Path, opened: Open) -> None:
    values = tiny_values("chatglm2")
    tensors = random_tensors(values)
    tensors["transformer.output_layer.weight"] = torch.zeros(3, 3)
    tensors["transformer.extra"] = torch.zeros(1)
    del tensors["transformer.encoder.final_layernorm.weight"]
    del tensors["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"]
    with pytest.raises(CheckpointError) as error:
        opened(write_checkpoint(tmp_path / "c", values, tensors)).audit()
    for part in (
        "4 problems",
        "missing transformer.encoder.final_layernorm.weight [64]",
        "missing transformer.encoder.layers.1.mlp.dense_4h_to_h.weight",
        "transformer.output_layer.weight should be [320, 64], found [3, 3]",
        "unexpected transformer.extra",
    ):
        assert part in str(error.value)


def test_golden_data_beside_the_weights_is_not_opened(opened: Open) -> None:
    checkpoint = opened(Golden("chatglm3").folder)
    checkpoint.audit()
    assert {path.name for path in checkpoint.files} == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
def test_parameters_are_memory_mapped(layout: str, tmp_path: Path, opened: Open) -> None:
    """Opening and viewing 256 MB of weights takes next to no anonymous memory."""
    values = tiny_values("chatglm2", hidden_size=1024, padded_vocab_size=65536)
    folder = write_checkpoint(tmp_path / "c", values, layout=layout)

    def anonymous_kb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    before = anonymous_kb()
    checkpoint = opened(folder)
    views = dict(checkpoint.parameters())
    assert float(views["embedding.weight"][-1, -1]) != 0
    assert views["embedding.weight"].nbytes == 256 << 20
    assert anonymous_kb() - before < 32 << 10


# -- broken ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "shards"), LAYOUTS)
def test_truncated_file(tmp_path: Path, opened: Open, layout: str, shards: int) -> None:
    folder = write_checkpoint(tmp_path / "c", tiny_values("glm4"), layout=layout, shards=shards)
    path = sorted(folder.glob("*model*0002*") if shards > 1 else folder.glob(layout))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"damaged|cut short") as error:
        opened(folder).audit()
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_shard(tmp_path: Path, opened: Open) -> None:
    folder = write_checkpoint(tmp_path / "c", tiny_values("glm4"), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors"):
        opened(folder)


def test_no_weights(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_values("glm4")))
    with pytest.raises(CheckpointError, match="holds no weights"):
        opened(tmp_path)


def test_index_names_the_shards_and_not_where_each_tensor_lies(tmp_path: Path, opened: Open) -> None:
    """transformers reads every tensor of every shard that an index names."""
    values = tiny_values("glm4")
    tensors = random_tensors(values)
    folder = write_checkpoint(tmp_path / "c", values, tensors, shards=2)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    home = table["weight_map"]["model.norm.weight"]
    table["weight_map"]["model.norm.weight"] = first if home == second else second
    index.write_text(json.dumps(table))
    checkpoint = opened(folder)
    checkpoint.audit()
    assert torch.equal(checkpoint.tensor("model.norm.weight"), tensors["model.norm.weight"])


def test_index_that_promises_too_much(tmp_path: Path, opened: Open) -> None:
    values = tiny_values("glm4")
    tensors = random_tensors(values)
    del tensors["model.norm.weight"]
    folder = write_checkpoint(tmp_path / "c", values, tensors, shards=2)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(table))
    checkpoint = opened(folder)
    with pytest.raises(CheckpointError, match=r"missing model\.norm\.weight"):
        checkpoint.audit()
    with pytest.raises(CheckpointError, match=r"index\.json promises model\.norm\.weight"):
        checkpoint.tensor("model.norm.weight")


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_config_that_is_no_json_object(tmp_path: Path, opened: Open, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        opened(tmp_path)


def test_no_folder_and_no_model(tmp_path: Path, opened: Open) -> None:
    with pytest.raises(InputError, match="is no folder"):
        opened(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no model config"):
        opened(tmp_path)


def test_integer_tensors_are_refused(tmp_path: Path, opened: Open) -> None:
    values = tiny_values("chatglm2")
    tensors = random_tensors(values)
    name = "transformer.encoder.layers.0.self_attention.dense.weight"
    tensors[name] = tensors[name].to(torch.int8)
    with pytest.raises(CheckpointError, match="should be float32 or float16"):
        opened(write_checkpoint(tmp_path / "c", values, tensors)).audit()


# -- hostile -----------------------------------------------------------------------------------------------------------


class _Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_code_in_a_bin_is_never_run(tmp_path: Path, opened: Open, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoint(tmp_path / "c", tiny_values("glm4"), layout="pytorch_model.bin")
    path = folder / "pytorch_model.bin"
    if form == "zip":
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in entries if name.endswith("data.pkl"))
        entries[name] = pickle.dumps(_Malice(), protocol=2)
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
    else:
        path.write_bytes(pickle.dumps(_Malice()))
    with pytest.raises(CheckpointError):
        opened(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/file.safetensors", ".."])
def test_index_may_not_lead_out_of_the_folder(tmp_path: Path, opened: Open, name: str) -> None:
    folder = write_checkpoint(tmp_path / "c", tiny_values("glm4"), shards=2)
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="refused"):
        opened(folder)


def test_links_are_followed_where_people_make_them(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").symlink_to(secret)
    assert inside(plain, "config.json").read_text() == "{}"  # ln -s
    (plain / "tokenizer.model").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"not a \.model file"):
        inside(plain, "tokenizer.model")
    (plain / "gone.json").symlink_to(tmp_path / "nothing.json")
    with pytest.raises(CheckpointError, match="not there"):
        inside(plain, "gone.json")
    # A Hugging Face cache: snapshots/<revision>/config.json -> ../../blobs/<hash>
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "hash").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/hash")
    assert inside(snapshot, "config.json").read_text() == "{}"
    (snapshot / "generation_config.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="outside its Hugging Face cache"):
        inside(snapshot, "generation_config.json")
    # hf download --local-dir: a folder of one's own that links into the cache.
    (plain / "pieces.model").symlink_to(blobs / "hash")
    assert inside(plain, "pieces.model").read_text() == "{}"


def test_sha256_is_the_usual_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("family", families.names())
def test_every_family_reads_its_own_checkpoint(family: str, tmp_path: Path, opened: Open) -> None:
    """Every tensor of the file is taken by a rule, and every parameter of the model is made by one."""
    values = tiny_values(family)
    tensors = random_tensors(values)
    checkpoint = opened(write_checkpoint(tmp_path / family, values, tensors))
    checkpoint.audit()
    assert checkpoint.config.family == family
    assert {source for rule in checkpoint.weight_map.rules for source in rule.sources} == set(tensors)
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in Decoder(checkpoint.config).named_parameters()}
    found = {name: tuple(value.shape) for name, value in checkpoint.parameters()}
    assert {name: shape for name, shape in found.items() if name in expected} == expected
    missing = dict(list(tensors.items())[1:])
    with pytest.raises(CheckpointError, match=f"missing {next(iter(tensors))}"):
        opened(write_checkpoint(tmp_path / "cut", values, missing)).audit()
