"""Rows of one call with different numbers of tokens: each answers as it does alone, whichever runtime reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.inputs.prompts import Prompt
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.sessions.kv_cache import RowValues
from glm_export.sessions.onnxruntime.runtime import reads_ragged
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.spec.signature import past_names
from tests.helpers.golden_data import Golden
from tests.helpers.walked import random_corpus

CPU = ["CPUExecutionProvider"]
FAMILIES = ("chatglm2", "chatglm3", "glm4_hf", "glm4_remote", "glm4_moe")
WITHIN = 2e-5
A, B, C = (tuple(int(i) for i in row) for row in np.random.default_rng(3).integers(5, 60, (3, 20)))

Steps = Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]]
STEPS: dict[str, Steps] = {
    "a prompt beside rows at rest": [(A[:7], (), ()), ((), B[:4], ())],
    "a decoding row beside a prompt": [(A[:7], (), ()), (A[7:8], B[:4], ()), (A[8:9], B[4:5], C[:9])],
    "a decoding row beside a chunk on a past": [(A[:7], B[:4], ()), (A[7:8], B[4:9], ()), (A[8:9], B[9:12], ())],
    "drafts of several rows": [(A[:7], B[:4], C[:2]), (A[7:10], B[4:8], C[2:3]), (A[10:12], (), C[3:6])],
    "one row waits": [(A[:7], B[:4], C[:5]), (A[7:8], (), C[5:6]), (A[8:9], (), C[6:7]), ((), B[4:5], ())],
}  # fmt: skip


def standing(session: OrtSession, rows: int) -> RightPaddedFeeds:
    """A batch of rows that hold nothing."""
    session.cache.clear()
    return session.admit(RightPaddedFeeds.holding([]), [RowValues(length=0)] * rows)


def alone(session: OrtSession, tokens: Sequence[int]) -> np.ndarray:
    """Logits behind every token of a row that is read at once, ``[S, V]``."""
    return session.prefill(session.feeds([Prompt(ids=tuple(tokens))]))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_one_call_answer_as_alone(family: str, exported: Callable[..., OnnxProgram]) -> None:
    with OrtSession(exported(family, "ort", "all"), CPU) as session:
        expected = [alone(session, row) for row in (A[:13], B[:13], C[:13])]
        for steps in STEPS.values():
            feeds = standing(session, 3)
            for tokens in steps:
                before = feeds.lengths
                feeds = feeds.next_tokens(tokens)
                logits = session.decode(feeds)
                for row, own in enumerate(tokens):
                    wanted = expected[row][before[row] : before[row] + len(own)]
                    np.testing.assert_allclose(logits[row, : len(own)], wanted, atol=WITHIN)


@pytest.mark.parametrize("family", ["glm", "chatglm"])
def test_rows_of_a_prefix_family(family: str, exported: Callable[..., OnnxProgram]) -> None:
    """Prompts, then written tokens: drafts beside a decoding row, rows that wait, a row that joins."""
    steps: Steps = [((11, 12, 13), (21,), ()), ((14,), (), (31, 32)), ((15,), (22,), (33,)), ((), (23,), ())]
    prompts = [Prompt(ids=row, context_length=context, mask_position=1) for row, context in ((A[:7], 5), (B[:4], 2))]
    third = Prompt(ids=C[:9], context_length=6, mask_position=3)
    with OrtSession(exported(family, "ort", "last"), CPU) as session:
        feeds = session.feeds(prompts)
        session.prefill(feeds)
        feeds, _ = session.join(feeds, session.feeds([third]))
        assert isinstance(feeds, RightPaddedFeeds)
        written, found = [list(prompt.ids) for prompt in (*prompts, third)], []
        for tokens in steps:
            feeds = feeds.next_tokens(tokens)
            logits = session.decode(feeds)
            for row, own in enumerate(tokens):
                written[row] += own
                if own:
                    found.append((row, tuple(written[row]), logits[row, 0]))
        assert session.cache.lengths.tolist() == [len(ids) for ids in written]
        for row, ids, logits_V in found:
            prompt = (*prompts, third)[row]
            alone_V = session.prefill(session.feeds([replace(prompt, ids=ids)]))[0, -1]
            np.testing.assert_allclose(logits_V, alone_V, atol=WITHIN)
            # The control: one place off.
            other = replace(prompt, ids=ids, mask_position=prompt.mask_position - 1)
            assert np.abs(session.prefill(session.feeds([other]))[0, -1] - logits_V).max() > 100 * WITHIN
        with pytest.raises(InputError, match="prompts of this program are read at once; read them with join"):
            session.admit(feeds, [RowValues(length=0)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_token_of_each_row(family: str, exported: Callable[..., OnnxProgram]) -> None:
    """A program of last logits gives each row those behind its own last token."""
    with OrtSession(exported(family, "ort", "all"), CPU) as session:
        expected = [alone(session, row) for row in (A, B)]
    with OrtSession(exported(family, "ort", "last"), CPU) as session:
        feeds = standing(session, 2).next_tokens([A[:6], ()])
        session.decode(feeds)
        feeds = feeds.next_tokens([A[6:7], B[:5]])
        logits = session.decode(feeds)
        np.testing.assert_allclose(logits[:, 0], [expected[0][6], expected[1][4]], atol=WITHIN)


def test_a_step_of_one_token_a_row_is_the_same_to_the_bit(exported: Callable[..., OnnxProgram]) -> None:
    """In any company, rows at rest included."""
    with OrtSession(exported("chatglm2", "ort", "last"), CPU) as session:
        found = []
        for neighbours in ([], [B[:6]], [B[:6], C[:3]], [(), C[:3]]):
            feeds = standing(session, 1 + len(neighbours))
            for row, tokens in enumerate((A[:7], *neighbours)):
                if tokens:
                    feeds = feeds.next_tokens([tokens if i == row else () for i in range(feeds.batch)])
                    session.decode(feeds)
            feeds = feeds.next_tokens([A[7:8], *[(9,) if i % 2 == 0 else () for i in range(len(neighbours))]])
            found.append(session.decode(feeds)[0])
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("logits", ["last", "all"])
def test_a_token_beside_a_chunk_is_the_same_to_the_bit(logits: str, exported: Callable[..., OnnxProgram]) -> None:
    """One token of a row, alone and beside chunks of any width, of a prompt or on a past."""
    with OrtSession(exported("chatglm2", "ort", logits), CPU) as session:
        held = standing(session, 3).next_tokens([A[:7], (), C[:5]])
        session.decode(held)
        found = []
        for others in [((), ()), (B[:2], ()), (B[:13], ()), ((), C[5:9]), (B[:5], C[5:6]), (B[:20], C[5:20])]:
            feeds = held.next_tokens([A[7:8], *others])
            found.append(session.decode(feeds)[0, 0])
            for row, length in enumerate(held.lengths):
                cut = session.truncate(feeds, row, int(length))
                assert isinstance(cut, RightPaddedFeeds)
                feeds = cut
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


def test_a_token_beside_a_row_at_its_end_is_the_same_to_the_bit(exported: Callable[..., OnnxProgram]) -> None:
    """That row leaves no column for padding; the other is read as ever."""
    program = exported("chatglm2", "ort", "last")
    long = tuple(int(i) for i in np.random.default_rng(0).integers(5, 60, program.config.max_positions))
    found = []
    with OrtSession(program, CPU) as session:
        for neighbour in (long[:-1], B[:5]):
            feeds = standing(session, 2).next_tokens([A[:7], neighbour])
            session.decode(feeds)
            found.append(session.decode(feeds.next_tokens([A[7:8], (9,)]))[0, 0])
    np.testing.assert_array_equal(found[0], found[1])


def test_rows_join_and_leave_between_ragged_calls(exported: Callable[..., OnnxProgram]) -> None:
    with OrtSession(exported("glm4_hf", "ort", "last"), CPU) as session:
        expected = [session.prefill(session.feeds([Prompt(ids=row)]))[0, -1] for row in (A[:9], C[:8])]
        feeds = standing(session, 2).next_tokens([A[:7], B[:9]])
        session.decode(feeds)
        joined, _ = session.join(session.leave(feeds, [1]), session.feeds([Prompt(ids=C[:3])]))
        assert isinstance(joined, RightPaddedFeeds)
        logits = session.decode(joined.next_tokens([A[7:9], C[3:8]]))
        np.testing.assert_allclose(logits[:, 0], expected, atol=WITHIN)


def test_rows_that_come_and_go_leave_the_others_where_they_are(exported: Callable[..., OnnxProgram]) -> None:
    """With rows reserved no buffer is made anew; those whose place changes are moved, the rest is not touched."""
    with OrtSession(exported("chatglm2", "ort", "last"), CPU) as session:
        expected = [session.prefill(session.feeds([Prompt(ids=row)]))[0, -1] for row in (A[:9], B[:9], C[:9])]
        session.cache.clear()
        session.cache.reserve_rows(4)
        feeds = session.admit(RightPaddedFeeds.holding([]), [RowValues(length=0)] * 2).next_tokens([A[:7], B[:5]])
        session.decode(feeds)
        places = [value.data_ptr() for value in session.cache._values]
        kept = session.cache.row(0)
        feeds = session.admit(feeds, [RowValues(length=0), kept]).next_tokens([(), (), C[:4], (1, 2)])
        session.decode(feeds)
        # The last takes the place of the first, which leaves: it is the same row as it was.
        chosen = session.select(feeds, [3, 1, 2])
        assert isinstance(chosen, RightPaddedFeeds)
        cut = session.truncate(chosen, 0, 7)
        assert isinstance(cut, RightPaddedFeeds)
        logits = session.decode(cut.next_tokens([A[7:9], B[5:9], C[4:9]]))
        np.testing.assert_allclose(logits[:, 0], expected, atol=WITHIN)
        assert [value.data_ptr() for value in session.cache._values] == places


def test_rows_change_places_in_place(exported: Callable[..., OnnxProgram]) -> None:
    """Each takes the other's: no order of copying does without a copy apart."""
    with OrtSession(exported("glm4_hf", "ort", "last"), CPU) as session:
        expected = [session.prefill(session.feeds([Prompt(ids=row)]))[0, -1] for row in (C[:9], A[:9], B[:9])]
        session.cache.clear()
        session.cache.reserve_rows(3)
        feeds = session.admit(RightPaddedFeeds.holding([]), [RowValues(length=0)] * 3)
        feeds = feeds.next_tokens([A[:8], B[:6], C[:7]])
        session.decode(feeds)
        turned = session.select(feeds, [2, 0, 1])
        assert isinstance(turned, RightPaddedFeeds)
        logits = session.decode(turned.next_tokens([C[7:9], A[8:9], B[6:9]]))
        np.testing.assert_allclose(logits[:, 0], expected, atol=WITHIN)


def test_a_row_at_the_end_of_the_context_beside_a_chunk(exported: Callable[..., OnnxProgram]) -> None:
    """Padding behind a full row has no columns to stand in: then rows are read apart."""
    program = exported("chatglm2", "ort", "last")
    context = program.config.max_positions
    long = tuple(int(i) for i in np.random.default_rng(0).integers(5, 60, context))
    with OrtSession(program, CPU) as session:
        expected = [session.prefill(session.feeds([Prompt(ids=row)]))[0, -1] for row in (long, B[:6])]
        feeds = standing(session, 2).next_tokens([long[:-1], B[:2]])
        session.decode(feeds)
        feeds = feeds.next_tokens([long[-1:], B[2:6]])
        np.testing.assert_allclose(session.decode(feeds)[:, 0], expected, atol=WITHIN)
        with pytest.raises(InputError, match="1 too many"):
            session.decode(feeds.next_tokens([(7,), (7, 8)]))


@pytest.mark.parametrize(("recipe", "within"), [("int8-token", WITHIN), ("int8-kv", 0.05)])
def test_quantized_programs(recipe: str, within: float, tmp_path: Path) -> None:
    """Also over a cache of integers: there chunks see a rounded past, and a prompt read at once does not."""
    checkpoint = api.open_checkpoint(Golden("chatglm2").folder)
    corpus = random_corpus(checkpoint.config)
    ranges = api.calibrate(checkpoint, tmp_path / "ranges", corpus=corpus) if recipe == "int8-kv" else None
    program = api.export(checkpoint, tmp_path / "program", dialect="ort", recipe=recipe, ranges=ranges)
    with OrtSession(program, CPU) as session:
        expected = [session.prefill(session.feeds([Prompt(ids=row)]))[0, -1] for row in (A[:8], B[:9])]
        feeds = standing(session, 2).next_tokens([A[:7], B[:4]])
        session.decode(feeds)
        logits = session.decode(feeds.next_tokens([A[7:8], B[4:9]]))
        np.testing.assert_allclose(logits[:, 0], expected, atol=within)


@pytest.mark.skipif(not reads_ragged(CPU), reason=f"ONNX Runtime {onnxruntime.__version__} has no such input")
@pytest.mark.parametrize(
    ("recipe", "lengths"), [(None, (2, 40, 0)), ("int8-token", (2, 40, 0)), ("int4-int8-prompt", (0, 40, 0))]
)
def test_padding_is_not_multiplied(recipe: str | None, lengths: tuple[int, ...], tmp_path: Path) -> None:
    """Inside there are real tokens alone; logits and hidden states are those of rows read by the other graph alone.

    Of the last recipe's products one scale is all tokens': the padding that was multiplied had a part in it.
    """
    checkpoint = api.open_checkpoint(Golden("chatglm2").folder)
    options: dict[str, Any] = {"dialect": "ort", "logits": "all", "hidden_states": "all", "recipe": recipe}
    program = api.export(checkpoint, tmp_path / "program", **options)
    assert program.ragged is not None
    graph = onnx.load(program.ragged.model_path)
    inside = next(node.output[0] for node in graph.graph.node if node.op_type == "SkipSimplifiedLayerNormalization")
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(inside))
    alone, together = (
        onnxruntime.InferenceSession(source, providers=CPU)
        for source in (str(program.model_path), graph.SerializeToString())
    )
    config = checkpoint.config
    past = np.zeros((3, config.kv_heads, 44, config.head_dim), np.float32)
    given: dict[str, np.ndarray] = {name: past for layer in range(config.num_layers) for name in past_names(layer)}
    given["input_ids"] = np.random.default_rng(0).integers(5, 60, (3, 40))
    given["attention_mask"] = (np.arange(40) < np.maximum(lengths, 1)[:, None]).astype(np.int64)
    names = [output.name for output in alone.get_outputs() if "present" not in output.name]
    *found, tokens = together.run([*names, inside], given | {"query_seqlens": np.array(lengths, np.int32)})
    assert tokens.shape == (1, sum(lengths), config.hidden_size)
    assert [array.shape[:2] for array in found] == [(3, 40)] * (config.num_layers + 2)
    for row, count in enumerate(lengths):
        if count:
            own = {name: array[row : row + 1] for name, array in given.items()}
            own |= {name: own[name][:, :count] for name in ("input_ids", "attention_mask")}
            for array, expected in zip(found, alone.run(names, own), strict=True):
                np.testing.assert_allclose(array[row, :count], expected[0], atol=WITHIN)


def test_the_control_a_row_told_another_number(exported: Callable[..., OnnxProgram]) -> None:
    """One token fewer than the row has: the comparison above would see it."""
    with OrtSession(exported("chatglm2", "ort", "all"), CPU) as session:
        expected = alone(session, A[:9])
        feeds = standing(session, 2).next_tokens([A[:7], B[:2]])
        session.decode(feeds)
        wrong = feeds.next_tokens([A[7:8], B[2:6]])
        logits = session.decode(wrong)
        assert np.abs(logits[0, 0] - expected[8]).max() > 100 * WITHIN


def test_tokens_are_wanted_for_each_row(exported: Callable[..., OnnxProgram]) -> None:
    with OrtSession(exported("chatglm2", "ort", "last"), CPU) as session:
        feeds = standing(session, 2)
        for tokens in ([(), ()], [(5,)]):
            with pytest.raises(InputError, match="at least one"):
                feeds.next_tokens(tokens)
