"""GLM-4.5's experts in ONNX Runtime's own operators: equal to the reference, routed exactly, streamed one by one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from glm_export import api, families
from glm_export.artifacts.manifest import MANIFEST
from glm_export.artifacts.program import WEIGHTS, OnnxProgram, load_program
from glm_export.calibration import recipes
from glm_export.calibration.formats import decode
from glm_export.deployment.inspect import inspect_folder
from glm_export.errors import CheckpointError, ConfigError, EnvironmentMissingError
from glm_export.exporter.plan import plan_export
from glm_export.exporter.weight_blocks import alternating, stored_blocks
from glm_export.exporter.weight_layout import plan_weights
from glm_export.graphs import dialects
from glm_export.graphs.weight_traffic import program_weight_traffic
from glm_export.modeling import Decoder
from glm_export.proof.compare import TOLERANCES
from glm_export.spec.weight_formats import ExpertWeights, WeightFormats
from tests.helpers.recorded import recorded_again
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

WIDE = {"hidden_size": 64, "moe_intermediate_size": 32}
"""Sizes that are whole blocks."""
SIZES: dict[str, dict[str, Any]] = {
    "groups": {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 5},
    "one expert a token, weights as they are": {"num_experts_per_tok": 1, "norm_topk_prob": False},
    "every expert, none shared": {"num_experts_per_tok": 6, "n_shared_experts": 0, "first_k_dense_replace": 0},
}


def biased(values: dict[str, Any], bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """Random weights with one correction bias in every layer."""
    tensors = random_tensors(values)
    return tensors | {name: bias for name in tensors if name.endswith("e_score_correction_bias")}


def exported(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> tuple[OnnxProgram, Path]:
    """A small GLM-4.5 in ``ort``, and its checkpoint; ``recipe`` and ``dtype`` are the export's."""
    options = {key: changes.pop(key) for key in ("recipe", "dtype") if key in changes}
    checkpoint = write_checkpoint(folder / "checkpoint", tiny_values("glm4_moe", **changes), tensors)
    return api.export(checkpoint, folder / "program", dialect="ort", **options), checkpoint


def needed(program: OnnxProgram, checkpoint: Path) -> float:
    return api.check(program, api.open_checkpoint(checkpoint)).parity.required_tolerance


def operators(program: OnnxProgram) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(program.model_path), load_external_data=False).graph.node)


@pytest.mark.parametrize("name", SIZES)
def test_other_sizes(name: str, tmp_path: Path) -> None:
    program, checkpoint = exported(tmp_path, **SIZES[name])
    counts = operators(program)
    assert counts["MoE"] == len(program.config.expert_layers)
    assert counts["ScatterElements"] == counts["MoE"] * (2 if name == "groups" else 1)
    report = api.check(program, api.open_checkpoint(checkpoint))
    assert report.passed
    assert report.parity.required_tolerance <= TOLERANCES["float32"]
    assert program.least_onnxruntime == ()


def test_float16(tmp_path: Path) -> None:
    program, checkpoint = exported(tmp_path, dtype="float16")
    assert operators(program)["MoE"]
    assert api.check(program, api.open_checkpoint(checkpoint)).passed


def test_one_expert_has_every_token_and_another_none(tmp_path: Path) -> None:
    values = tiny_values("glm4_moe", num_experts_per_tok=1)
    tensors = biased(values, torch.tensor([0.0, 0, 0, 5, 0, 0]))
    program, checkpoint = exported(tmp_path, tensors, num_experts_per_tok=1)
    assert needed(program, checkpoint) <= TOLERANCES["float32"]
    # What the others hold is never computed with; what that one holds is.
    for expert, counts in ((0, False), (3, True)):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        other, _ = exported(tmp_path / str(expert), tensors | {name: 50 * tensors[name]}, num_experts_per_tok=1)
        folder = shutil.copytree(program.folder, tmp_path / f"changed{expert}")
        shutil.copy(other.folder / WEIGHTS, folder / WEIGHTS)
        recorded_again(folder)
        assert (needed(load_program(folder), checkpoint) > TOLERANCES["float32"]) is counts


def test_a_bias_in_bfloat16_fails(tmp_path: Path) -> None:
    """As trained, biases lie close together far from 0, and decide by what bfloat16 rounds away."""
    bias = 6 + 0.1 * torch.randn(6, generator=torch.Generator().manual_seed(0))
    program, checkpoint = exported(tmp_path, biased(tiny_values("glm4_moe"), bias))
    assert api.check(program, api.open_checkpoint(checkpoint)).passed
    model = onnx.load(str(program.model_path), load_external_data=False)
    for weight in model.graph.initializer:
        if weight.name.endswith("choice_bias"):
            assert weight.data_type == onnx.TensorProto.FLOAT
            weight.CopyFrom(numpy_helper.from_array(bias.bfloat16().float().numpy(), weight.name))
    onnx.save(model, str(program.model_path))
    recorded_again(program.folder)
    report = api.check(load_program(program.folder), api.open_checkpoint(checkpoint))
    assert not report.passed
    assert report.parity.required_tolerance > 0.01


@pytest.mark.parametrize(("recipe", "bits"), [("int4-weights", 4), ("int4-int8-prompt", 4), ("int8-token", 8)])
def test_recipes_round_experts(recipe: str, bits: int, tmp_path: Path) -> None:
    # With one scale for a whole call, a model in which rounding sends no token to another expert: such a jump is 0.5 to
    # 0.9 of an output's largest value in models as small as these, and all else 0.06.
    wider = {"hidden_size": 128} if recipe in ("int8-dynamic", "int4-int8-prompt") else {}
    program, checkpoint = exported(tmp_path, recipe=recipe, **WIDE | wider)
    nodes = [n for n in onnx.load(str(program.model_path), load_external_data=False).graph.node if n.op_type == "QMoE"]
    assert len(nodes) == len(program.config.expert_layers)
    assert all(attribute.i == bits for n in nodes for attribute in n.attribute if attribute.name.endswith("bits"))
    assert program.manifest["needs"] == {"onnxruntime": "1.31"}
    assert inspect_folder(str(program.folder))["needs onnxruntime"] == "1.31 or later"
    assert api.check(program, api.open_checkpoint(checkpoint)).passed


def test_integers_are_exact_where_activations_are_not_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the reference with the same rounded weights: the whole program, and a wrong expert shows."""
    recipe, exact = recipes.load("int4-weights"), {"accuracy_level": 0}
    assert recipe.layers is not None
    assert recipe.head is not None
    assert recipe.experts is not None
    changed = replace(
        recipe,
        layers=replace(recipe.layers, **exact),
        head=replace(recipe.head, **exact),
        experts=replace(recipe.experts, **exact),
    )
    monkeypatch.setattr(recipes, "load", lambda _: changed)
    program, checkpoint = exported(tmp_path, recipe="int4-weights", **WIDE)
    assert needed(program, checkpoint) <= TOLERANCES["float32"]
    # The control: a reference whose experts are as they were.
    monkeypatch.setattr(recipes, "load", lambda _: replace(changed, experts=None))
    assert needed(program, checkpoint) > 1e-3


def test_widths_that_are_no_whole_blocks_stay_float(tmp_path: Path) -> None:
    program, checkpoint = exported(tmp_path, recipe="int4-weights", hidden_size=64, moe_intermediate_size=40)
    counts = operators(program)
    assert (counts["QMoE"], counts["MoE"]) == (0, len(program.config.expert_layers))
    assert program.manifest["needs"] == {}
    assert api.check(program, api.open_checkpoint(checkpoint)).passed


def test_older_runtimes_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = exported(tmp_path, recipe="int4-weights", **WIDE)
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.2")
    with pytest.raises(EnvironmentMissingError, match=r"needs ONNX Runtime 1\.31 or later.*found 1\.30\.2") as refused:
        api.load_session(program.folder)
    assert "\n" not in str(refused.value)
    manifest = program.folder / MANIFEST
    manifest.write_text(manifest.read_text().replace('"1.31"', '"soon"'))
    with pytest.raises(CheckpointError, match="needs is"):
        load_program(program.folder)


@pytest.mark.parametrize(("groups", "chosen"), [(4, 1), (3, 4), (5, 1), (6, 2), (0, 1)])
def test_groups_that_cannot_hold_the_choice_are_refused(groups: int, chosen: int) -> None:
    """Of six experts two a token: groups of one have no two best, and four groups are not even."""
    with pytest.raises(ConfigError, match=r"groups; check config\.json|must be"):
        families.read_config(tiny_values("glm4_moe", n_group=groups, topk_group=chosen))


# -- the file of weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [None, ExpertWeights(bits=4, block=32)])
def test_experts_are_read_one_at_a_time_and_rows_stand_in_turn(form: ExpertWeights | None) -> None:
    config = families.read_config(tiny_values("glm4_moe", **WIDE))
    with torch.device("meta"):
        model = Decoder(config)
    name, random = "layers.1.mlp.gate_up", torch.Generator().manual_seed(0)
    stored = plan_weights(model, {name: WeightFormats(form)} if form is not None else None, grouped_experts=True)
    entries = [entry for entry in stored if entry.source == name]
    experts = [torch.randn(64, 64, generator=random) for _ in range(6)]
    read: list[int] = []

    def parts(_: torch.dtype | None) -> Iterator[torch.Tensor]:
        for index, expert in enumerate(experts):
            read.append(index)
            yield expert

    written: dict[str, list[torch.Tensor]] = {entry.name: [] for entry in entries}
    for entry, block in stored_blocks(entries, parts, name):
        written[entry.name].append(block.clone())
        if entry is entries[0]:
            # One block an expert, here: none is read before the one before it is written.
            assert len(read) == len(written[entry.name])
    for entry in entries:
        assert sum(block.nbytes for block in written[entry.name]) == entry.length
    first = written[entries[0].name]
    if form is None:
        assert all(torch.equal(block.view(64, 64)[1], e[32]) for block, e in zip(first, experts, strict=True))
    else:
        scales = torch.cat(written[entries[1].name]).view(6, 64, 2)
        for expert, packed, scales_NC in zip(experts, first, scales, strict=True):
            integers = torch.stack((packed & 15, packed >> 4), dim=-1).view(64, 2, 32).float() - 8
            values = (integers * scales_NC.unsqueeze(-1)).view(64, 64)
            torch.testing.assert_close(values, alternating(decode(form, expert)))


def test_the_plan_counts_scales_that_are_held(tmp_path: Path) -> None:
    checkpoint = api.open_checkpoint(write_checkpoint(tmp_path / "c", tiny_values("glm4_moe", **WIDE)))
    can = dialects.load("ort").can
    from glm_export.calibration.quantization import Quantization

    quantization = Quantization(recipe=recipes.load("int4-weights").carried_by(can))
    plain = plan_export(checkpoint, tmp_path, "float32", None, can)
    rounded = plan_export(checkpoint, tmp_path, "float32", quantization, can)
    # Of six experts' gate and up, 64 rows of two blocks.
    assert rounded.memory_bytes - plain.memory_bytes == 6 * 64 * 2 * 4
    assert rounded.output_bytes < plain.output_bytes / 2


def test_a_step_reads_the_chosen_experts_alone(tmp_path: Path) -> None:
    program, _ = exported(tmp_path)
    one, two, many = (program_weight_traffic(program.model_path, rows) for rows in (1, 2, 100))
    config = program.config
    assert config.experts is not None
    expert = 3 * config.hidden_size * config.experts.ffn_size * np.dtype(np.float32).itemsize
    layers, rows = len(config.expert_layers), 4 * config.hidden_size + 2 * 4 * config.rotary.dim // 2
    assert two - one == layers * 2 * expert + rows
    assert many - one == layers * (6 - 2) * expert + 99 * rows
