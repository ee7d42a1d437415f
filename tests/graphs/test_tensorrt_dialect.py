"""The dialect ``tensorrt`` in ONNX Runtime: every golden case over a static cache, and controls that must fail.

Feeds are made here, by hand: what a cache of fixed size wants is said once more, independently of the sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.exporter import export as exporter
from glm_export.exporter.export import program_graph
from glm_export.exporter.options import resolve_options
from glm_export.exporter.plan import plan_export
from glm_export.graphs import dialects
from glm_export.graphs.invariants import InvariantError
from glm_export.graphs.lower import lower
from glm_export.proof.compare import TOLERANCES
from glm_export.spec.signature import (
    ATTENTION_MASK,
    BATCH,
    INPUT_IDS,
    LAST_TOKEN_IDS,
    LOGITS,
    POSITION_IDS,
    WRITE_INDICES,
    past_names,
    present_names,
)
from tests.helpers.golden_data import BOUND, CAUSAL, PREFIX, Golden, difference
from tests.proof.test_prefix_parity import CHATGLM, GLM, PREFILLS, attend, real_tokens

LONGEST, LENGTH = {"glm": 96, "chatglm": 64}, 208
"""Columns of the cache: golden's longest prompt has 200 tokens; GLM's table 97 places."""
LARGE = 1e4  # what an old token left: a thousand times what real ones hold, and within float16
Export = Callable[..., OnnxProgram]
Ids = NDArray[np.int64]


@pytest.fixture(scope="module")
def exported_static(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A golden checkpoint as a ``tensorrt`` program, made once for each set of options."""
    made: dict[tuple[Any, ...], OnnxProgram] = {}
    root = tmp_path_factory.mktemp("static")

    def export(name: str, logits: str = "all", dtype: str = "float32", length: int | None = None) -> OnnxProgram:
        key = (name, logits, dtype, length or LONGEST.get(name, LENGTH))
        if key not in made:
            made[key] = exporter.export(
                open_checkpoint(Golden(name).folder), root / "-".join(map(str, key)),
                dialect="tensorrt", dtype=dtype, logits=logits, max_length=key[-1],
            )  # fmt: skip
        return made[key]

    return export


class Rows:
    """A program and the cache of some rows; each call's presents are the next one's pasts."""

    def __init__(self, program: OnnxProgram, batch: int = 1, *, fill: float = 0.0, graph: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # else every copy of a cache is a warning
        path = str(graph or program.model_path)
        self.runtime = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.columns = program.signature.input(past_names(0)[0]).dims[2]
        self.layers = range(program.config.num_layers)
        self.cache = {
            name: np.full(program.signature.input(name).shape(**{BATCH: batch}), fill, program.dtype)
            for layer in self.layers for name in past_names(layer)
        }  # fmt: skip

    def run(self, **inputs: NDArray[Any]) -> NDArray[Any]:
        """One call; returns the logits."""
        names = [LOGITS, *(name for layer in self.layers for name in present_names(layer))]
        logits, *presents = self.runtime.run(names, inputs | self.cache)
        self.cache = dict(zip(self.cache, presents, strict=True))
        return logits

    def causal(self, ids: Ids, start: int | Sequence[int] = 0, last: Sequence[int] | None = None) -> NDArray[Any]:
        """Read ``ids`` ``[B, S]`` into columns from ``start`` (one for all rows, or one each) on."""
        positions = np.broadcast_to(np.reshape(start, (-1, 1)) + np.arange(ids.shape[1]), ids.shape)
        more = {} if last is None else {LAST_TOKEN_IDS: np.array(last)}
        return self.run(**{INPUT_IDS: ids, POSITION_IDS: positions}, **more)

    def prefix(
        self, ids: Ids, mask: NDArray[Any], positions: Ids, start: int | Sequence[int] = 0, **more: NDArray[Any]
    ) -> NDArray[Any]:
        """The same for prefix families; ``mask`` ``[B, 1, S, T]`` of the first T columns, the others are hidden."""
        hidden = np.zeros((*mask.shape[:3], self.columns - mask.shape[3]), bool)
        write = np.broadcast_to(np.reshape(start, (-1,)), ids.shape[:1]).astype(np.int64)
        whole = np.concatenate([mask.astype(bool), hidden], axis=3)
        given = {INPUT_IDS: ids, ATTENTION_MASK: whole, POSITION_IDS: positions, WRITE_INDICES: write}
        return self.run(**given, **more)


def right_padded(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows of different lengths ``[..., length]`` as one array, padding after them."""
    width = max(row.shape[-1] for row in rows)
    return np.stack([np.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, width - row.shape[-1])]) for row in rows])


def real_rows(golden: Golden) -> list[Ids]:
    """The left-padded golden batch without its padding."""
    return [ids[real == 1] for ids, real in zip(golden["batch.input_ids"], golden["batch.attention_mask"], strict=True)]


def row_error(found: NDArray[Any], golden: Golden) -> float:
    """Worst difference of right-padded logits from the golden, left-padded ones."""
    errors = []
    for row, real, expected in zip(found, golden["batch.attention_mask"], golden["batch.logits"], strict=True):
        assert np.isfinite(row[: real.sum()]).all()
        errors.append(difference(row[: real.sum()], expected[real == 1]))
    return max(errors)


# -- causal families ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_prefill_its_cache_and_decode(name: str, exported_static: Export) -> None:
    golden, rows = Golden(name), Rows(exported_static(name))
    prompt = golden["prefill.input_ids"]
    assert difference(rows.causal(prompt), golden["prefill.logits"]) <= BOUND
    for layer in rows.layers:
        for past, official in zip(past_names(layer), ("cache_k", "cache_v"), strict=True):
            expected = golden[f"prefill.{official}.{layer}"]
            if name.startswith("chatglm"):
                expected = expected.transpose(1, 2, 0, 3)  # official [t, b, g, d]
            assert difference(rows.cache[past][:, :, : prompt.shape[1]], expected) <= BOUND
            assert not rows.cache[past][:, :, prompt.shape[1] :].any()
    ids = golden["decode.input_ids"]
    found = [rows.causal(ids[:, i : i + 1], prompt.shape[1] + i) for i in range(ids.shape[1])]
    assert difference(np.concatenate(found, axis=1), golden["decode.logits"]) <= BOUND


@pytest.mark.parametrize("name", CAUSAL)
def test_chunk_on_top_of_a_past_and_long_prompt(name: str, exported_static: Export) -> None:
    golden, rows = Golden(name), Rows(exported_static(name))
    ids, split = golden["chunk.input_ids"], golden["chunk.logits_first"].shape[1]
    assert difference(rows.causal(ids[:, :split]), golden["chunk.logits_first"]) <= BOUND
    assert difference(rows.causal(ids[:, split:], split), golden["chunk.logits_second"]) <= BOUND
    # The same rows again: what the chunks left is overwritten.
    assert difference(rows.causal(golden["long.input_ids"])[:, -8:], golden["long.logits_last8"]) <= BOUND


@pytest.mark.parametrize("name", CAUSAL)
def test_right_padded_batch_its_decode_and_each_row_alone(name: str, exported_static: Export) -> None:
    golden, program = Golden(name), exported_static(name)
    prompts = real_rows(golden)
    lengths = [len(ids) for ids in prompts]
    rows = Rows(program, len(prompts))
    together = rows.causal(right_padded(prompts))
    assert row_error(together, golden) <= BOUND
    for index, ids in enumerate(prompts):
        alone = Rows(program).causal(ids[None])[0]
        assert difference(together[index, : len(ids)], alone) <= BOUND
    ids = golden["batch_decode.input_ids"]
    found = [rows.causal(ids[:, i : i + 1], [length + i for length in lengths]) for i in range(ids.shape[1])]
    assert difference(np.concatenate(found, axis=1), golden["batch_decode.logits"]) <= BOUND


@pytest.mark.parametrize("name", CAUSAL)
def test_rows_that_are_not_equally_far(name: str, exported_static: Export) -> None:
    """Two reads of a batch cut at a different place in each row: the second overwrites the first one's padding."""
    golden, program = Golden(name), exported_static(name)
    prompts = real_rows(golden)
    cuts = [max(1, len(ids) * (index + 1) // 4) for index, ids in enumerate(prompts)]
    rows = Rows(program, len(prompts))
    first = rows.causal(right_padded([ids[:cut] for ids, cut in zip(prompts, cuts, strict=True)]))
    second = rows.causal(right_padded([ids[cut:] for ids, cut in zip(prompts, cuts, strict=True)]), cuts)
    joined = [
        np.concatenate([one[:cut], two[: len(ids) - cut]])
        for one, two, cut, ids in zip(first, second, cuts, prompts, strict=True)
    ]
    assert row_error(right_padded([row.T for row in joined]).transpose(0, 2, 1), golden) <= BOUND


@pytest.mark.parametrize("name", CAUSAL)
def test_what_lies_beyond_a_row_changes_nothing(name: str, exported_static: Export) -> None:
    golden, program = Golden(name), exported_static(name)
    ids = right_padded(real_rows(golden))
    clean, stale = Rows(program, len(ids)), Rows(program, len(ids), fill=LARGE)
    assert np.array_equal(clean.causal(ids), stale.causal(ids))
    token, start = golden["batch_decode.input_ids"][:, :1], [len(row) for row in real_rows(golden)]
    assert np.array_equal(clean.causal(token, start), stale.causal(token, start))


@pytest.mark.parametrize("name", ["chatglm2", "glm4_moe"])
def test_logits_of_the_last_token(name: str, exported_static: Export) -> None:
    """Of each row its own last one, though it stands in another column; the last column's are others."""
    program, golden = exported_static(name, "last"), Golden(name)
    prompts = real_rows(golden)
    ids, last = right_padded(prompts), [len(row) - 1 for row in prompts]
    expected = Rows(exported_static(name), len(ids)).causal(ids)[np.arange(len(ids)), last]
    assert difference(Rows(program, len(ids)).causal(ids, last=last)[:, 0], expected) <= BOUND
    wrong = Rows(program, len(ids)).causal(ids, last=[ids.shape[1] - 1] * len(ids))
    assert difference(wrong[:, 0], expected) > 100 * BOUND


# -- prefix families ---------------------------------------------------------------------------------------


def by_name(value: object) -> object:
    return getattr(value, "name", value)


def inputs(golden: Golden, case: str) -> tuple[Ids, NDArray[np.bool_], Ids]:
    """A golden case's ids ``[B, S]``, mask ``[B, 1, S, S]`` and positions ``[B, 2, S]``."""
    mask = attend(golden, golden[f"{case}.attention_mask"])
    return golden[f"{case}.input_ids"], mask, golden[f"{case}.position_ids"]


def without_padding(golden: Golden, case: str) -> list[tuple[Ids, NDArray[np.bool_], Ids]]:
    """The same of each row's real tokens alone, without the batch's axis."""
    rows = zip(*inputs(golden, case), real_tokens(golden, case).astype(bool), strict=True)
    return [(ids[real], mask[:, real][:, :, real], positions[:, real]) for ids, mask, positions, real in rows]


@pytest.mark.parametrize(("golden", "case"), PREFILLS, ids=by_name)
@pytest.mark.parametrize("fill", [0.0, LARGE])
def test_prefix_prefill_as_published(golden: Golden, case: str, fill: float, exported_static: Export) -> None:
    """With the official padding, which stands before or within the text."""
    given = inputs(golden, case)
    logits = Rows(exported_static(golden.name), len(given[0]), fill=fill).prefix(*given)
    assert np.isfinite(logits).all()
    assert difference(logits, golden[f"{case}.logits"], real_tokens(golden, case)) <= BOUND


@pytest.mark.parametrize(
    ("golden", "before", "case"),
    [(GLM, "prefill_mask", "decode"), (GLM, "batch", "batch_decode"), (CHATGLM, "prefill", "decode"),
     (CHATGLM, "prefill_mask", "decode_mask"), (CHATGLM, "batch", "batch_decode")],
    ids=by_name,
)  # fmt: skip
def test_prefix_rows_padded_on_the_right_and_their_decode(
    golden: Golden, before: str, case: str, exported_static: Export
) -> None:
    program = exported_static(golden.name)
    given = without_padding(golden, before)
    lengths = np.array([len(ids) for ids, _, _ in given])
    ids, positions = right_padded([row[0] for row in given]), right_padded([row[2] for row in given])
    masks = np.zeros((len(ids), 1, ids.shape[1], ids.shape[1]), bool)
    for index, (_, mask, _) in enumerate(given):
        masks[index, :, : lengths[index], : lengths[index]] = mask
    rows = Rows(program, len(ids), fill=LARGE)
    logits = rows.prefix(ids, masks, positions)
    assert np.isfinite(logits).all()
    real = np.arange(ids.shape[1]) < lengths[:, None]
    assert difference(logits[real], golden[f"{before}.logits"][real_tokens(golden, before).astype(bool)]) <= BOUND
    for index, (row_ids, mask, row_positions) in enumerate(given):
        alone = Rows(program).prefix(row_ids[None], mask[None], row_positions[None])[0]
        assert difference(logits[index, : len(row_ids)], alone) <= BOUND
    found = []
    for step in range(golden[f"{case}.input_ids"].shape[1]):
        seen = np.arange(rows.columns) <= lengths[:, None] + step
        token, position = golden[f"{case}.input_ids"][:, step, None], golden[f"{case}.position_ids"][:, :, step, None]
        found.append(rows.prefix(token, seen[:, None, None], position, lengths + step))
    assert difference(np.concatenate(found, axis=1), golden[f"{case}.logits"]) <= BOUND


@pytest.mark.parametrize("golden", [GLM, CHATGLM], ids=by_name)
def test_prefix_chunk_on_top_of_a_context(golden: Golden, exported_static: Export) -> None:
    rows, split = Rows(exported_static(golden.name)), golden["chunk.logits_first"].shape[1]
    ids, mask, positions = inputs(golden, "chunk")
    first = rows.prefix(ids[:, :split], mask[:, :, :split, :split], positions[:, :, :split])
    second = rows.prefix(ids[:, split:], mask[:, :, split:], positions[:, :, split:], split)
    assert difference(first, golden["chunk.logits_first"]) <= BOUND
    assert difference(second, golden["chunk.logits_second"]) <= BOUND


def test_prefix_logits_of_the_last_token(exported_static: Export) -> None:
    last = np.array([28, 20, 25])
    found = Rows(exported_static("chatglm", "last"), 3).prefix(*inputs(CHATGLM, "batch"), **{LAST_TOKEN_IDS: last})
    assert difference(found[:, 0], CHATGLM["batch.logits"][np.arange(3), last]) <= BOUND


# -- the cache's ends, its dtype, and where it lies --------------------------------------------------------


def test_a_cache_filled_to_its_last_column_and_one_token_more(exported_static: Export) -> None:
    golden = Golden("glm_hf")
    prompt, ids = golden["prefill.input_ids"], golden["decode.input_ids"]
    rows = Rows(exported_static("glm_hf", length=prompt.shape[1] + ids.shape[1]))
    rows.causal(prompt)
    assert difference(rows.causal(ids, prompt.shape[1]), golden["decode.logits"]) <= BOUND
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="exceeds max_sequence_length"):
        rows.causal(ids[:, :1], rows.columns)


@pytest.mark.parametrize("name", ["glm4_hf", "glm4_moe", "chatglm"])
def test_half_precision(name: str, exported_static: Export) -> None:
    golden = Golden(name)
    rows = Rows(exported_static(name, dtype="float16"), fill=LARGE)
    prefix = name in PREFIX
    logits = rows.prefix(*inputs(CHATGLM, "prefill")) if prefix else rows.causal(golden["prefill.input_ids"])
    scale = np.abs(golden["prefill.logits"]).max()
    assert BOUND < difference(logits, golden["prefill.logits"]) <= TOLERANCES["float16"] * scale


def test_past_and_present_may_be_one_buffer(exported_static: Export) -> None:
    """As TensorRT holds them; ONNX Runtime then writes in place as well."""
    golden, rows = Golden("chatglm2"), Rows(exported_static("chatglm2"))
    ids = golden["prefill.input_ids"]
    binding = rows.runtime.io_binding()
    binding.bind_cpu_input(INPUT_IDS, ids)
    binding.bind_cpu_input(POSITION_IDS, np.arange(ids.shape[1])[None])
    buffers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in rows.cache.items()}
    for layer in rows.layers:
        for past, present in zip(past_names(layer), present_names(layer), strict=True):
            binding.bind_ortvalue_input(past, buffers[past])
            binding.bind_ortvalue_output(present, buffers[past])
    binding.bind_output(LOGITS)
    rows.runtime.run_with_iobinding(binding)
    assert difference(binding.get_outputs()[-1].numpy(), golden["prefill.logits"]) <= BOUND
    rows.causal(ids)
    assert all(np.array_equal(buffers[name].numpy(), rows.cache[name]) for name in buffers)


# -- the graph ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CAUSAL, *PREFIX])
def test_the_graph_is_what_tensorrt_can_update_in_place(name: str, exported_static: Export) -> None:
    """Each cache goes from a graph input through one ``TensorScatter`` to a graph output; attention has one output."""
    program = exported_static(name)
    onnx.checker.check_model(str(program.model_path), full_check=True)
    model = onnx.load(str(program.model_path), load_external_data=False)
    dialect = dialects.load("tensorrt")
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": dialect.opset}
    assert model.ir_version == dialect.ir_version
    by_operator = {kind: [node for node in model.graph.node if node.op_type == kind] for kind in dialect.allowed_ops}
    assert sum(map(len, by_operator.values())) == len(model.graph.node)
    expected = {
        (past, present) for layer in range(program.config.num_layers)
        for past, present in zip(past_names(layer), present_names(layer), strict=True)
    }  # fmt: skip
    assert {(node.input[0], node.output[0]) for node in by_operator["TensorScatter"]} == expected
    assert len({node.input[2] for node in by_operator["TensorScatter"]}) == 1
    for node in by_operator["Attention"]:
        assert not node.attribute
        assert (len(node.input), len(node.output)) == (4, 1)
        assert {(node.input[1]), node.input[2]} <= {present for _, present in expected}
    assert len({node.input[3] for node in by_operator["Attention"]}) == 1  # the mask is made once


def shifted(program: OnnxProgram, operator: str, place: int, by: int) -> Path:
    """A graph beside the program's weights in which every such operator reads that input plus ``by``."""
    model = onnx.load(str(program.model_path), load_external_data=False)
    model.graph.initializer.append(numpy_helper.from_array(np.array(by, np.int64), "planted"))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for index, node in enumerate(nodes):
        if node.op_type == operator:
            name = f"planted_{index}"
            model.graph.node.append(onnx.helper.make_node("Add", [node.input[place], "planted"], [name]))
            node.input[place] = name
        model.graph.node.append(node)
    path = program.folder / f"{operator}{by}.onnx"
    onnx.save(model, str(path))
    return path


OFF_BY_ONE = [("LessOrEqual", 1, 1), ("LessOrEqual", 1, -1), ("TensorScatter", 2, 1)]


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(("operator", "place", "by"), OFF_BY_ONE)
def test_control_mask_or_write_off_by_one_fails(
    name: str, operator: str, place: int, by: int, exported_static: Export
) -> None:
    program, golden = exported_static(name), Golden(name)
    rows = Rows(program, graph=shifted(program, operator, place, by))
    logits = rows.causal(golden["prefill.input_ids"])
    assert np.abs(logits - golden["prefill.logits"])[:, 1:].max() > 100 * BOUND  # the first token may see nothing


@pytest.mark.parametrize("golden", [GLM, CHATGLM], ids=by_name)
def test_control_prefix_write_off_by_one_fails(golden: Golden, exported_static: Export) -> None:
    program, case = exported_static(golden.name), "prefill_mask"
    rows = Rows(program, graph=shifted(program, "TensorScatter", 2, 1))
    assert difference(rows.prefix(*inputs(golden, case)), golden[f"{case}.logits"]) > 100 * BOUND


def test_a_cache_without_a_size_is_refused_with_its_reason() -> None:
    checkpoint = open_checkpoint(Golden("chatglm2").folder)
    target = resolve_options(checkpoint.config, dialect="onnx", dtype="float32", logits="all", max_length=None)
    model = program_graph(checkpoint.config, target, plan_export(checkpoint, Path.cwd(), "float32").stored)
    with pytest.raises(InvariantError, match=r"attention should fire 2 times, fired 0.*the cache has no fixed size"):
        lower(model, dialects.load("tensorrt"), checkpoint.config, target.signature)
