"""GLM's tasks: blanks filled in turn, labels judged by cloze, in PyTorch and ONNX alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.generation.generate import generate_ids
from glm_export.generation.infilling import continuation_log_probabilities
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import prefill_feeds
from glm_export.sessions.session import Session
from glm_export.tokenizers.infilling import InfillingTokenizer
from tests.helpers.golden_data import BOUND, PREFIX, Golden, difference

GLM = Golden("glm")


@pytest.fixture(params=["torch", "onnxruntime"])
def load(request: pytest.FixtureRequest, exported: Callable[[str], OnnxProgram]) -> Callable[[str], Session]:
    """Sessions of golden checkpoints in each runtime."""
    return lambda name: api.load_session(Golden(name).folder if request.param == "torch" else exported(name))


def test_multiple_choice_equals_the_official_sums(load: Callable[[str], Session]) -> None:
    """The official code packs the choices into one sequence; here each is decoded alone over the cache."""
    inputs = GLM.facts["multiple_choice_inputs"]
    with load("glm") as session:
        for row, text in enumerate(inputs["texts"]):
            tokenizer = session.tokenizer
            assert isinstance(tokenizer, InfillingTokenizer)
            context = [*tokenizer.encode(text), tokenizer.sop_id]
            found = continuation_log_probabilities(session, context, inputs["choice_ids"][row])
            assert np.abs(np.array(found) - GLM["multiple_choice.logits"][row]).max() <= BOUND
            scores = api.score(session, text, pattern="{}", labels=inputs["choices"][row], normalize=False)
            assert [s.log_probability for s in scores] == sorted(found, reverse=True)


def test_score_ranks_by_the_mean_where_asked(load: Callable[[str], Session]) -> None:
    with load("glm") as session:
        scores = api.score(session, "hello", pattern="{} [MASK] world", labels=["你好", "in", "on the 12"])
        assert [s.mean for s in scores] == sorted((s.mean for s in scores), reverse=True)
        choices = {"pattern": "{} [MASK] world", "labels": ["你好", "in", "on the 12"]}
        whole = {s.label: s.log_probability for s in api.score(session, "hello", **choices, normalize=False)}
        assert whole == pytest.approx({s.label: s.log_probability for s in scores})
        assert scores[0].mean == pytest.approx(scores[0].log_probability / scores[0].tokens)


def test_labels_that_a_score_does_not_tell_apart_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with api.load_session("demo-glm") as session:
        cloze = {"text": "疑是地上霜。", "pattern": "床前明月[MASK]，{}"}
        api.score(session, **cloze, labels=["光", "风"])
        assert caplog.messages == []
        api.score(session, **cloze, labels=["光", "☃", "光"])
    assert caplog.messages == [
        "the label ☃ holds what the tokenizer has no token for: its score is of an unknown",
        "the labels 光 and 光 are the same tokens, and so have the same score",
    ]


def test_blanks_are_filled_from_the_left_each_seeing_the_last(load: Callable[[str], Session]) -> None:
    """Two blanks in one call are what two calls would have written one after the other."""
    with load("glm") as session:
        tokenizer = session.tokenizer
        assert isinstance(tokenizer, InfillingTokenizer)
        ids = tokenizer.encode("hello [MASK] world [MASK] 12")
        mask = tokenizer.mask_ids["[MASK]"]
        stopping = Stopping(max_new_tokens=6, stop_ids=frozenset(tokenizer.stop_ids))
        fills = []
        for _ in range(2):
            (row,) = generate_ids(session, [[*ids, tokenizer.sop_id]], stopping=stopping)
            written = [token for token in row.ids if token not in tokenizer.mask_ids.values()]
            place = ids.index(mask)
            ids = [*ids[:place], *written, *ids[place + 1 :]]
            fills.append(tokenizer.decode(written).strip())
        result = api.infill(session, "hello [MASK] world [MASK] 12", max_new_tokens=6)
    assert result.fills == tuple(fills)
    assert result.text == f"hello {fills[0]} world {fills[1]} 12"


@pytest.mark.parametrize("name", PREFIX)
def test_both_runtimes_fill_alike(name: str, exported: Callable[[str], OnnxProgram]) -> None:
    texts = ["北京是中国的[MASK]。", "a [MASK] b"]
    with api.load_session(Golden(name).folder) as one, api.load_session(exported(name)) as other:
        for text in texts:
            assert api.infill(one, text, max_new_tokens=12) == api.infill(other, text, max_new_tokens=12)


def test_generation_without_a_blank_writes_on(load: Callable[[str], Session]) -> None:
    """Conditional generation puts [gMASK] at the end; unconditional generation starts from nothing else."""
    case = next(c for c in GLM.facts["greedy"] if c["text"] == "The quick brown [gMASK]")
    with load("glm") as session:
        assert session.encode("The quick brown [gMASK]") == case["prompt_ids"]
        assert session.encode("The quick brown") == case["prompt_ids"]
        tokenizer = session.tokenizer
        assert isinstance(tokenizer, InfillingTokenizer)
        gmask = tokenizer.mask_ids["[gMASK]"]
        assert session.encode("") == [tokenizer.cls_id, gmask, tokenizer.eos_id, tokenizer.sop_id]
        assert api.generate(session, "", max_new_tokens=5) != ""


@pytest.mark.parametrize("name", PREFIX)
def test_neighbours_and_chunks_do_not_change_an_answer(name: str, load: Callable[[str], Session]) -> None:
    with load(name) as session:
        prompts = [session.prompt(case["prompt_ids"]) for case in Golden(name).facts["greedy"]]
        together = prefill_feeds(prompts, session.config)
        logits = session.prefill(together)
        for row, prompt in enumerate(prompts):
            alone = session.prefill(prefill_feeds([prompt], session.config))
            assert difference(logits[row, -len(prompt.ids) :], alone[0]) <= BOUND
        # Written tokens are part of the prompt: the context must be read at once, the rest may come in pieces.
        longer = [
            type(p)(ids=(*p.ids, 5, 6, 7, 8), context_length=p.context_length, mask_position=p.mask_position)
            for p in prompts
        ]
        feeds = prefill_feeds(longer, session.config)
        whole = session.prefill(feeds)
        for size in (1, 3):
            first, *others = feeds.chunks(size)
            assert others
            parts = [session.prefill(first), *(session.decode(part) for part in others)]
            real = feeds.real
            assert difference(np.concatenate(parts, axis=1), whole, real) <= BOUND


def test_padding_on_the_right_answers_alike(load: Callable[[str], Session]) -> None:
    """GLM's official batches are padded between context and <sop>; ours before the context."""
    with load("glm") as session:
        ids = GLM["batch.input_ids"]
        visible = GLM["batch.attention_mask"][:, 0, -1].astype(bool)
        ours = prefill_feeds([session.prompt(row[seen].tolist()) for row, seen in zip(ids, visible, strict=True)],
                             session.config)  # fmt: skip
        logits = session.prefill(ours)
    assert difference(logits[:, -1], GLM["batch.logits"][:, -1]) <= BOUND


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no blank here", "has no blank"),
        ("[MASK] and [gMASK]", "2 kinds"),
        ("[MASK] " + "12 " * 200, "shorten"),
    ],
)
def test_texts_that_cannot_be_filled(text: str, message: str, load: Callable[[str], Session]) -> None:
    with load("glm") as session, pytest.raises(InputError, match=message):
        api.infill(session, text)


@pytest.mark.parametrize(
    ("pattern", "labels", "message"),
    [
        ("no place [MASK]", ["a"], "has no {}"),
        ("{} no blank", ["a"], "has no blank"),
        ("{} [MASK] [MASK]", ["a"], "one blank"),
        ("{} [MASK]", [], "needs labels"),
        ("{} [MASK]", ["a", ""], "tokenizes to nothing"),
    ],
)
def test_clozes_that_cannot_be_scored(
    pattern: str, labels: list[str], message: str, load: Callable[[str], Session]
) -> None:
    with load("glm") as session, pytest.raises(InputError, match=message):
        api.score(session, "hello", pattern=pattern, labels=labels)


def test_other_families_have_no_blanks(exported: Callable[[str], OnnxProgram]) -> None:
    with api.load_session(exported("chatglm2")) as session, pytest.raises(InputError, match="no blanks"):
        api.infill(session, "[MASK]")


def test_prompts_of_prefix_families_need_their_marks(load: Callable[[str], Session]) -> None:
    with load("chatglm") as session:
        with pytest.raises(InputError, match="start-of-piece"):
            generate_ids(session, [[5, 6]], stopping=Stopping())
        with pytest.raises(InputError, match="no mask token"):
            generate_ids(session, [[5, 174]], stopping=Stopping())
        with pytest.raises(InputError, match="outside"):
            generate_ids(session, [[99999, 171, 174]], stopping=Stopping())


def test_glm_has_no_chat(load: Callable[[str], Session]) -> None:
    with load("glm") as session, pytest.raises(InputError, match="no conversations"):
        api.chat(session, [{"role": "user", "content": "hi"}])


def test_chatglm_6b_chats(load: Callable[[str], Session]) -> None:
    with load("chatglm") as session:
        reply = api.chat(session, [{"role": "user", "content": "你好"}], max_new_tokens=6)
        case = Golden("chatglm").facts["greedy"][0]
        assert session.tokenizer.chat([{"role": "user", "content": "你好"}]) == case["prompt_ids"]
        assert reply == session.tokenizer.decode(case["new_ids"][:6]).strip()


def test_writing_stops_where_the_position_table_ends() -> None:
    """GLM's second position counts the written tokens; a row at its end waits for others without passing it."""
    with api.load_session(GLM.folder) as session:
        prompt = session.prompt(GLM.facts["greedy"][0]["prompt_ids"])
        (row,) = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=500))
    assert row.finish_reason == "context"
    assert len(row.ids) == session.config.max_positions - 2


def test_guesses_fill_alike_in_fewer_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "床前明月光，疑是地上霜。举头望明月，低头思故乡。床前明月光，[sMASK]"
    program = api.export("demo-glm", tmp_path / "recent", dialect="ort", logits="recent")
    fills, calls = [], []
    with api.load_session(program) as session:
        decode = session.decode
        for speculate in (False, True):
            counted: list[int] = []
            monkeypatch.setattr(session, "decode", lambda feeds, kept=counted: kept.append(1) or decode(feeds))
            fills.append(api.infill(session, text, max_new_tokens=24, speculate=speculate).fills)
            calls.append(len(counted))
    assert fills[0] == fills[1]
    assert 0 < calls[1] < calls[0]
    # What it takes: logits of more than the last token.
    last = api.export("demo-glm", tmp_path / "last", dialect="ort")
    with api.load_session(last) as session, pytest.raises(InputError, match="--logits recent"):
        api.infill(session, text, speculate=True)
