"""Calibration: the walk measures what the whole model shows, spools lose little, refusals name what and where."""

from __future__ import annotations

import os
import shutil
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from glm_export import api
from glm_export.artifacts.manifest import RANGES_MANIFEST
from glm_export.calibration import recipes
from glm_export.calibration.layerwise import calibrate as walk
from glm_export.calibration.layerwise.calibrate import calibrate
from glm_export.calibration.layerwise.hidden_states import HiddenStatesWriter, read_hidden_states
from glm_export.calibration.ranges import RANGES, Ranges, load_ranges
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import CheckpointError, InputError
from glm_export.exporter.options import dialects_of
from glm_export.graphs import dialects
from glm_export.sessions.torch import load_reference
from tests.helpers.golden_data import Golden
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint
from tests.helpers.walked import GPTQ, WholeModel, contents, differences, one_thread, opened_with_corpora, random_corpus

HALF, FLOAT = 1e-3, 1e-5
"""What may be lost between layers, where hidden states lie in half precision; and if they did not."""
LAYER_NORM = 3e-3
"""As HALF, where norms take off a mean that is larger than what is left."""
LAYER = "transformer.encoder.layers.{}.{}.weight"


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def copied(chatglm2_copy: Path) -> Callable[[], Checkpoint]:
    """Opens a golden checkpoint that a test may change."""
    return lambda: api.open_checkpoint(chatglm2_copy)


# -- what is measured ----------------------------------------------------------------------------------


class ExactSpool(HiddenStatesWriter):
    """Hidden states as they are: what is left is the walk's own."""

    def add(self, hidden_SH: Tensor) -> None:
        np.save(self._file, hidden_SH.numpy())


def read_exactly(path: Path) -> Iterator[Tensor]:
    with path.open("rb") as file:
        while file.peek(1):
            yield torch.from_numpy(np.load(file))


@pytest.mark.parametrize("spool", ["half", "exact"])
@pytest.mark.parametrize("name", ["chatglm2", "glm4_hf", "chatglm", "glm", "glm4_moe", "demo"])
def test_the_walk_measures_what_the_whole_model_shows(
    name: str, spool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of products, keys and values, scores, residual sums; and the control: other text has other numbers."""
    bound = LAYER_NORM if name == "glm" else HALF
    if spool == "exact":
        monkeypatch.setattr(walk, "HiddenStatesWriter", ExactSpool)
        monkeypatch.setattr(walk, "read_hidden_states", read_exactly)
        bound = FLOAT
    checkpoint, corpus, other = opened_with_corpora(name)
    found = calibrate(checkpoint, corpus, tmp_path / "ranges")
    whole = WholeModel(load_reference(checkpoint), corpus.samples)
    assert sorted(found.inputs) == sorted(whole.inputs)
    assert found.layers == checkpoint.config.num_layers
    worst = differences(found, whole)
    assert {kind: apart for kind, apart in worst.items() if not apart <= bound} == {}
    control = differences(found, WholeModel(load_reference(checkpoint), other.samples))
    assert {kind: apart for kind, apart in control.items() if apart <= bound} == {}
    assert len(worst) == len(control) == 21


def test_behind_a_rounded_layer_comes_what_rounded_weights_make(tmp_path: Path) -> None:
    """GPTQ measures the last layer's and the head's inputs in the model it leaves; the control is the one given."""
    checkpoint = api.open_checkpoint(Golden("chatglm2").folder)
    corpus = random_corpus(checkpoint.config)
    recipe = recipes.load(GPTQ)
    found = calibrate(checkpoint, corpus, tmp_path / "ranges", recipe=recipe)
    rounded = found.quantization(recipe.carried_by(dialects.load("onnx").can), "float32")
    names = [f"layers.{checkpoint.config.num_layers - 1}.attention.qkv.weight", "head.weight"]

    def apart(whole: WholeModel, name: str) -> float:
        expected_K = whole.values(name).max(axis=0)
        return float(np.abs(found.tensors[f"{name}/channel_maxima"] - expected_K).max() / expected_K.max())

    same = WholeModel(load_reference(checkpoint, quantization=rounded), corpus.samples)
    given = WholeModel(load_reference(checkpoint), corpus.samples)
    for name in names:
        assert apart(same, name) <= HALF
        assert apart(given, name) > HALF


# -- between layers ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(1, 6), st.floats(-12, 30)), min_size=1, max_size=5), channels=st.integers(1, 9),
    seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_spooled_rows_lose_what_half_precision_loses(
    rows: list[tuple[int, float]],
    channels: int,
    seed: int,
    dtype: torch.dtype,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Up to 2 ** 30. Small values share the exponent of the largest in their row, and lose 2 ** -39 of that."""
    generator = torch.Generator().manual_seed(seed)
    given_rows = [
        (torch.randn(tokens, channels, generator=generator).clamp(-1, 1) * 2.0**magnitude).to(dtype)
        for tokens, magnitude in rows
    ]
    path = tmp_path_factory.mktemp("spool") / "spool"
    with HiddenStatesWriter(path) as spool:
        for row in given_rows:
            spool.add(row)
    assert [file.name for file in path.parent.iterdir()] == ["spool"]
    for row, back in zip(given_rows, read_hidden_states(path), strict=True):
        assert back.dtype == torch.float32
        exact, largest = row.double(), float(row.abs().max())
        allowed = (exact.abs() * 2.0**-11).clamp(min=max(largest * 2.0**-39, 2.0**-25))
        assert bool(((back.double() - exact).abs() <= allowed).all())
        # The control: half precision alone cannot.
        assert bool(row.half().isinf().any()) == (largest >= 65520)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_a_full_disk_leaves_neither_an_open_file_nor_half_a_spool(tmp_path: Path) -> None:
    (tmp_path / "spool.partial").symlink_to("/dev/full")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No space left") as raised, HiddenStatesWriter(tmp_path / "spool") as spool:
        spool.add(torch.ones(2, 4))
    # The error holds the writer; its file must be closed all the same.
    assert os.listdir("/proc/self/fd") == before, raised
    assert list(tmp_path.iterdir()) == []


def test_a_row_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    """The file is not read at once: what is missing behind a row does not matter to it; and the control."""
    rows, tokens, channels = 24, 128, 1024
    path = tmp_path / "spool"
    with HiddenStatesWriter(path) as spool:
        for row in range(rows):
            spool.add(torch.full((tokens, channels), float(row)))

    def peak(read: Callable[[], object]) -> int:
        tracemalloc.start()
        read()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # A row is read as bytes and widened by numpy, which is where this sees it: 2 + 4 bytes a value.
    one = tokens * channels * 6
    assert peak(lambda: [float(row[0, 0]) for row in read_hidden_states(path)]) < 2 * one
    assert peak(path.read_bytes) > 2 * one


@pytest.mark.parametrize("at_once", [False, True])
def test_rows_pass_through_one_at_a_time(at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where the walk gets them; the control hands out all of them together."""
    checkpoint, rows = api.open_checkpoint(Golden("chatglm2").folder), 8
    references: list[weakref.ref[Tensor]] = []
    alive = []

    def watched(path: Path) -> Iterator[Tensor]:
        for row in read_hidden_states(path):
            references.append(weakref.ref(row))
            alive.append(sum(reference() is not None for reference in references))
            yield row

    monkeypatch.setattr(
        walk, "read_hidden_states", lambda path: iter(list(watched(path))) if at_once else watched(path)
    )
    calibrate(checkpoint, random_corpus(checkpoint.config, lengths=[5] * rows), tmp_path / "ranges")
    assert len(references) == rows * (checkpoint.config.num_layers + 1)
    assert (max(alive) <= 2) != at_once


def test_a_spool_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with HiddenStatesWriter(tmp_path / "spool") as spool:
        spool.add(torch.ones(2, 2))
        assert [path.name for path in tmp_path.iterdir()] == ["spool.partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]
    with pytest.raises(AttributeError), HiddenStatesWriter(tmp_path / "other") as spool:
        spool.add(None)
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


# -- what is refused -----------------------------------------------------------------------------------


def test_only_a_folder_of_ranges_is_replaced_and_only_when_told(tmp_path: Path) -> None:
    checkpoint = api.open_checkpoint(Golden("chatglm2").folder)
    corpus, out = random_corpus(checkpoint.config), tmp_path / "ranges"
    out.mkdir()  # an empty folder is as good as none
    first = contents(calibrate(checkpoint, corpus, out).folder)
    with pytest.raises(InputError, match=r"ranges exists; give another --out, or --force"):
        calibrate(checkpoint, random_corpus(checkpoint.config, seed=1), out)
    assert contents(out) == first
    assert contents(calibrate(checkpoint, random_corpus(checkpoint.config, seed=1), out, force=True).folder) != first
    (tmp_path / "folder").mkdir()
    for foreign in (tmp_path / "folder" / "letter", tmp_path / "file"):
        foreign.write_text("dear")
        target = foreign if foreign.parent == tmp_path else foreign.parent
        with pytest.raises(InputError, match=r"holds no ranges.json, so --force does not replace it|is no folder"):
            calibrate(checkpoint, corpus, target, force=True)
        assert foreign.read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "ranges"]


@pytest.fixture(scope="module")
def ranges(tmp_path_factory: pytest.TempPathFactory) -> Ranges:
    checkpoint = api.open_checkpoint(Golden("chatglm2").folder)
    return calibrate(checkpoint, random_corpus(checkpoint.config), tmp_path_factory.mktemp("golden") / "ranges")


def test_ranges_of_another_checkpoint_are_refused(ranges: Ranges, copied: Callable[[], Checkpoint]) -> None:
    checkpoint = copied()
    # The control: a copy in another place is the same checkpoint.
    api.export(checkpoint, checkpoint.folder.parent / "same", recipe="int8-static", ranges=ranges)
    path = checkpoint.files[0]
    path.write_bytes(path.read_bytes() + b"\0")
    message = rf"{ranges.folder} was measured on 'chatglm2', and {checkpoint.folder} is another checkpoint"
    with pytest.raises(InputError, match=message):
        api.export(copied(), checkpoint.folder.parent / "out", recipe="int8-static", ranges=ranges)
    assert not (checkpoint.folder.parent / "out").exists()


def cut_short(folder: Path) -> None:
    path = folder / RANGES
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / RANGES_MANIFEST).unlink(), InputError, r"holds no ranges.json; give a folder that"),
        (lambda folder: (folder / RANGES_MANIFEST).write_text("{"), CheckpointError, "is damaged: .*; calibrate again"),
        (lambda folder: (folder / RANGES_MANIFEST).write_text("null"), CheckpointError, "is damaged: .*; calibrate"),
        (
            lambda folder: (folder / RANGES_MANIFEST).write_text('{"format": 7}'),
            InputError,
            "format 7, .* reads 1; cal",
        ),
        (lambda folder: (folder / RANGES).unlink(), CheckpointError, "is damaged: .*; calibrate again"),
        (cut_short, CheckpointError, "is damaged: .*; calibrate again"),
    ],
)
def test_damaged_ranges_are_refused(
    damage: Callable[[Path], object], error: type[Exception], message: str, ranges: Ranges, tmp_path: Path
) -> None:
    shutil.copytree(ranges.folder, tmp_path / "copy")
    assert load_ranges(tmp_path / "copy").manifest == ranges.manifest
    damage(tmp_path / "copy")
    with pytest.raises(error, match=message):
        load_ranges(tmp_path / "copy")


@pytest.mark.parametrize("name", ["fp8", "int4-awq", "int4-gptq", "int8-kv", "int8-smoothquant", "int8-static"])
def test_recipes_say_what_they_need(name: str, ranges: Ranges, tmp_path: Path) -> None:
    source, dialect, own = Golden("chatglm2").folder, dialects_of(recipes.load(name))[0], ""
    if name == GPTQ:
        own = f" --recipe {name}"
        message = rf"{ranges.folder} holds no weights rounded for {name}; calibrate with --recipe {name}"
        with pytest.raises(InputError, match=message):
            api.export(source, tmp_path / "out", dialect=dialect, recipe=name, ranges=ranges)
    message = f"recipe {name} needs .*; run 'glm-export calibrate{own}' and give --ranges"
    with pytest.raises(InputError, match=message):
        api.export(source, tmp_path / "out", dialect=dialect, recipe=name)
    assert not list(tmp_path.iterdir())


def planted(folder: Path, name: str, value: float) -> Checkpoint:
    """A small ChatGLM2 with a tensor of zeros, or with something else at the end of a tensor."""
    tensors = random_tensors(tiny_values("chatglm2"))
    if value == 0:
        tensors[name].zero_()
    else:
        tensors[name].view(-1)[-1] = value
    return api.open_checkpoint(write_checkpoint(folder, tiny_values("chatglm2"), tensors))


@pytest.mark.parametrize("recipe", [None, GPTQ])
@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        (LAYER.format(0, "input_layernorm"), "layers.0.attention_norm: NaN"),
        (LAYER.format(1, "self_attention.query_key_value"), r"layers.1.value: NaN"),
        (LAYER.format(1, "mlp.dense_4h_to_h"), r"layers.1.mlp.down: NaN"),
        ("transformer.encoder.final_layernorm.weight", r"final_norm: NaN"),
        ("transformer.output_layer.weight", r"head: NaN"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_found(tensor: str, place: str, value: float, recipe: str | None, tmp_path: Path) -> None:
    checkpoint = planted(tmp_path / "planted", tensor, value)
    with pytest.raises(InputError, match=f"^(model.)?{place} or infinity among activations"):
        calibrate(
            checkpoint, random_corpus(checkpoint.config), tmp_path / "out", recipe=recipe and recipes.load(recipe)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", [None, GPTQ])
@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        (LAYER.format(1, "input_layernorm"), r"layers.1.attention.qkv.weight"),
        (LAYER.format(0, "post_attention_layernorm"), r"layers.0.mlp.gate_up.weight"),
        (LAYER.format(1, "mlp.dense_4h_to_h"), r"layers.1.mlp.down.weight"),
        ("transformer.encoder.final_layernorm.weight", r"head.weight"),
    ],
)
def test_what_is_all_zero_is_named(tensor: str, place: str, recipe: str | None, tmp_path: Path) -> None:
    checkpoint = planted(tmp_path / "planted", tensor, 0)
    with pytest.raises(InputError, match=f"^(model.)?{place}: .*zero"):
        calibrate(
            checkpoint, random_corpus(checkpoint.config), tmp_path / "out", recipe=recipe and recipes.load(recipe)
        )
