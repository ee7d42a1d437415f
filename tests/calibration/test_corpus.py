"""Corpora: every format becomes the prompts a session makes, what cannot be read is named, and provenance travels."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from glm_export import api
from glm_export.calibration.corpus.corpus import Corpus
from glm_export.calibration.corpus.load import EMBEDDED_SETS, load_corpus
from glm_export.embedded import EMBEDDED, poems
from glm_export.errors import InputError
from glm_export.evaluation.recall import MOST_LINES, blanked
from glm_export.generation.generate import generate_ids
from glm_export.generation.infilling import blank_context, blank_tokenizer
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.sessions.session import Session
from glm_export.tokenizers import load_tokenizer
from glm_export.tokenizers.chat import Message
from tests.helpers.golden_data import Golden

LINE = "床前明月光，疑是地上霜。"
FILLER = json.dumps({"text": LINE * 40}, ensure_ascii=False)
MODELS = {
    "demo": "demo", "demo-glm": "demo-glm", "chatglm": Golden("chatglm").folder, "glm4": Golden("glm4_remote").folder,
}  # fmt: skip
PREFIX = ("demo-glm", "chatglm")
FILES = {"poems": ["tang_poems.jsonl"], "technical": ["technical.jsonl"]}
FILES["default"] = [*FILES["poems"], *FILES["technical"]]
TEXTS = [json.loads(line)["text"] for line in (EMBEDDED / "technical.jsonl").read_text(encoding="utf-8").splitlines()]
IDEOGRAPH = re.compile("[\u4e00-\u9fff]")
CHINESE = [text for text in TEXTS if len(IDEOGRAPH.findall(text)) > 20]


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Session]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(api.load_session(source)) for name, source in MODELS.items()}


def read(model: Session, source: str | Path, **options: Any) -> Corpus:
    return load_corpus(source, model.tokenizer, model.config, **options)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def write(path: Path, *values: Any) -> Path:
    """Rows, and enough text after them not to be too small."""
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    path.write_text("\n".join([*lines, FILLER]) + "\n", encoding="utf-8")
    return path


# -- embedded sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "demo-glm"])
@pytest.mark.parametrize("source", EMBEDDED_SETS)
def test_embedded_sets_suit_both_models_and_say_where_they_come_from(
    name: str, source: str, models: dict[str, Session]
) -> None:
    corpus = read(models[name], source)
    data = b"".join((EMBEDDED / file).read_bytes() for file in FILES[source])
    assert corpus.sha256 == hashlib.sha256(data).hexdigest()
    licences = {"poems": "public domain", "technical": "Apache-2.0", "default": "public domain; Apache-2.0"}
    assert (corpus.name, corpus.licence) == (source, licences[source])
    assert "not stated" not in corpus.origin
    known = {"poems": {"demo": 313, "demo-glm": 276}[name], "technical": 0}
    known["default"] = known["poems"]
    assert sum(sample.task is not None for sample in corpus.samples) == known[source]
    assert corpus.tokens == sum(len(sample.prompt.ids) for sample in corpus.samples) > 4000
    assert corpus.to_json() == {
        "name": source, "origin": corpus.origin, "licence": corpus.licence, "sha256": corpus.sha256,
        "samples": len(corpus.samples), "tokens": corpus.tokens,
    }  # fmt: skip
    json.dumps(corpus.to_json())
    prefill_feeds([sample.prompt for sample in corpus.samples[:64]], models[name].config)
    assert all(0 < sample.counted_from < len(sample.prompt.ids) for sample in corpus.samples)
    assert corpus == read(models[name], source)
    assert read(models[name], Path(source)) == corpus


def test_poems_ask_what_recall_asks(models: dict[str, Session]) -> None:
    session = models["demo"]
    tokenizer = session.tokenizer
    samples = [sample for sample in read(models["demo"], "poems").samples if sample.task]
    for poem, sample in zip(poems(), samples, strict=True):
        assert sample.task is not None
        assert sample.task.prompt == session.prompt(session.encode(poem.lines[0]))
        assert sample.task.completion == poem.lines[1]
        assert sample.task.longest == len(tokenizer.encode_plain(poem.lines[1])) + 1
        whole = session.encode("\n".join(poem.lines))
        assert list(sample.prompt.ids) == whole[: len(sample.prompt.ids)]
        assert len(sample.prompt.ids) == len(whole) or len(whole) > 512


def test_blanked_poems_ask_what_fill_recall_asks(models: dict[str, Session]) -> None:
    session = models["demo-glm"]
    tokenizer = blank_tokenizer(session)
    known = [blanked(poem) for poem in poems() if len(poem.lines) <= MOST_LINES]
    for (text, line), sample in zip(known, read(models["demo-glm"], "poems").samples, strict=True):
        asked = [*blank_context(tokenizer, text), tokenizer.sop_id]
        assert sample.task is not None
        assert (sample.task.prompt, sample.task.completion) == (session.prompt(asked), line)
        written = tokenizer.encode_plain(line)
        assert sample.task.longest == len(written) + 1
        assert sample.prompt == session.prompt([*asked, *written])
        assert sample.counted_from == len(asked)


@pytest.mark.parametrize("name", ["demo", "demo-glm"])
def test_tasks_are_done_in_the_tokens_they_grant(name: str, models: dict[str, Session]) -> None:
    session = models[name]
    tasks = [sample.task for sample in read(models[name], "poems", max_samples=5).samples if sample.task]
    stop_ids = frozenset(api.stopping_for(session, 1).stop_ids)
    done = 0
    for task in tasks:
        stopping = Stopping(max_new_tokens=task.longest, stop_ids=stop_ids)
        (row,) = generate_ids(session, [task.prompt], stopping=stopping)
        done += session.tokenizer.decode(row.ids).strip().split("\n")[0] == task.completion
    assert done >= len(tasks) - 1 >= 3


def test_technical_texts_are_in_two_languages_and_no_vocabulary_with_bytes_loses_any() -> None:
    assert len(TEXTS) == len(set(TEXTS)) == 60
    assert len(CHINESE) == 30
    assert all(60 <= len(text.split()) <= 250 for text in TEXTS if text not in CHINESE)
    assert all(60 <= len(IDEOGRAPH.findall(text)) <= 250 for text in CHINESE)
    for name in ("chatglm2", "chatglm3", "glm4_remote"):
        checkpoint = api.open_checkpoint(Golden(name).folder)
        tokenizer = load_tokenizer(checkpoint.folder, checkpoint.config)
        assert all(tokenizer.decode(tokenizer.encode_plain(text)) == text for text in TEXTS)


def test_what_the_demo_vocabularies_do_with_modern_text(models: dict[str, Session]) -> None:
    """The ChatGLM2 spells unknown characters in bytes and joins blanks; the GLM knows the poems' characters alone."""
    tokenizer = models["demo"].tokenizer
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode_plain(text)) == re.sub(" {2,}", " ", text)
    tokenizer = models["demo-glm"].tokenizer
    ids = [index for text in CHINESE for index in tokenizer.encode_plain(text)]
    assert ids.count(0) / len(ids) < 0.25
    assert all(tokenizer.encode_plain(text) == [0] for text in TEXTS if text not in CHINESE)


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "glm4"])
def test_text_of_a_causal_family_is_what_a_session_encodes(name: str, rows: Path, models: dict[str, Session]) -> None:
    sample = read(models[name], write(rows, {"text": LINE, "id": 7})).samples[0]
    session = models[name]
    assert sample.prompt == session.prompt(session.encode(LINE))
    # [gMASK] and sop are no text.
    assert (sample.counted_from, sample.task) == (2, None)


@pytest.mark.parametrize("name", PREFIX)
def test_text_of_a_prefix_family_is_half_read_and_half_written(
    name: str, rows: Path, models: dict[str, Session]
) -> None:
    session, text = models[name], {"demo-glm": LINE, "chatglm": "3 + 4 = 7, 8 + 9 = 17"}[name]
    sample = read(session, write(rows, {"text": text})).samples[0]
    ids, plain = list(sample.prompt.ids), session.tokenizer.encode_plain(text)
    half = len(plain) // 2
    assert sample.prompt == session.prompt(ids)
    assert ids[sample.counted_from :] == plain[half:]
    # Here the half ends with a word, and a session makes the same of it.
    assert ids[: sample.counted_from] == session.encode(session.tokenizer.decode(plain[:half]))


def test_a_mask_within_plain_text_is_not_what_is_written_for(rows: Path, models: dict[str, Session]) -> None:
    sample = read(models["demo-glm"], write(rows, {"text": f"[MASK]{LINE}"})).samples[0]
    gmask = models["demo-glm"].tokenizer.encode_plain("[gMASK]")
    assert [sample.prompt.ids[sample.prompt.mask_position]] == gmask


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("demo", "床前明月光，"), ("glm4", "hel"), ("demo-glm", "床前明月光，"), ("demo-glm", "[sMASK]疑是地上霜。"),
        ("chatglm", "床前明月光，"), ("chatglm", "a [MASK] b"),
    ],
)  # fmt: skip
def test_a_completion_follows_its_prompt(name: str, prompt: str, rows: Path, models: dict[str, Session]) -> None:
    session, completion = models[name], "lo 疑是"
    tokenizer = session.tokenizer
    sample = read(models[name], write(rows, {"prompt": prompt, "completion": completion})).samples[0]
    given = session.encode(prompt)
    if prompt == "a [MASK] b":  # as infill asks it; generate adds a [gMASK]
        given = [*blank_context(blank_tokenizer(session), prompt), given[-1]]
    assert sample.task is not None
    assert sample.task.prompt == session.prompt(given)
    assert (sample.task.completion, sample.task.longest) == (completion, len(tokenizer.encode_plain(completion)) + 1)
    if name in PREFIX:
        assert sample.prompt == session.prompt([*given, *tokenizer.encode_plain(completion)])
        assert sample.counted_from == len(given)
        return
    assert sample.prompt == session.prompt(session.encode(prompt + completion))
    kept = list(sample.prompt.ids[: sample.counted_from])
    # "hel" and "lo" share a token in GLM-4's vocabulary; it counts as the completion's.
    assert kept == given if name == "demo" else kept == given[: len(kept)] != given


@pytest.mark.parametrize("name", ["demo", "chatglm", "glm4"])
def test_a_chat_is_the_prompt_of_its_family(name: str, rows: Path, models: dict[str, Session]) -> None:
    turns = [("user", "hi"), ("assistant", "你好"), ("user", "why?")]
    messages = [Message(role=role, content=content) for role, content in turns]
    sample = read(models[name], write(rows, {"messages": messages})).samples[0]
    session = models[name]
    assert sample.prompt == session.prompt(session.tokenizer.chat(messages))
    assert sample.counted_from == (len(sample.prompt.ids) if name == "chatglm" else 2)


def test_ids_are_taken_as_they_are(rows: Path, models: dict[str, Session]) -> None:
    prefixed = models["demo"].encode(LINE)
    samples = read(models["demo"], write(rows, {"input_ids": [5, 6, 7]}, {"input_ids": prefixed})).samples
    assert samples[0].prompt == Prompt(ids=(5, 6, 7))
    assert [sample.counted_from for sample in samples[:2]] == [1, 2]
    asked = models["demo-glm"].encode("床前[MASK]")
    sample = read(models["demo-glm"], write(rows, {"input_ids": [*asked, 5, 6]})).samples[0]
    assert sample.prompt == models["demo-glm"].prompt([*asked, 5, 6])
    assert sample.counted_from == len(asked)


def test_long_text_is_cut_into_rows_of_like_length(rows: Path, models: dict[str, Session]) -> None:
    rows.write_text(json.dumps({"text": LINE * 50}, ensure_ascii=False), encoding="utf-8")
    for name, options, limit in (("demo", {"sequence_length": 64}, 64), ("demo", {}, 512), ("demo-glm", {}, 256)):
        model = models[name]
        corpus = read(model, rows, **options)
        lengths = [len(sample.prompt.ids) for sample in corpus.samples]
        assert limit >= max(lengths) > limit / 2
        assert max(lengths) - min(lengths) <= 1
        frame = 2 if name == "demo" else 4
        assert sum(lengths) - frame * len(lengths) == len(model.tokenizer.encode_plain(LINE * 50))


def test_paragraphs_share_rows(tmp_path: Path, models: dict[str, Session]) -> None:
    paragraphs = [poem.lines[0] for poem in poems()[:60]] + [LINE * 20, "终。"]
    path = tmp_path / "text.txt"
    path.write_text("\ufeff\r\n" + "\r\n \r\n".join(paragraphs) + "\r\n\r\n\r\n", encoding="utf-8")
    tokenizer = models["demo"].tokenizer
    samples = read(models["demo"], path, sequence_length=100).samples
    texts = [tokenizer.decode(list(sample.prompt.ids)) for sample in samples]
    assert all(len(sample.prompt.ids) <= 100 for sample in samples)
    # Nothing is lost, added or moved.
    assert "".join(texts).replace("\n", "") == "".join(paragraphs)
    assert texts[0].startswith("\n".join(paragraphs[:5]))
    # Of the first rows none had room for the next paragraph.
    longer = [tokenizer.encode(f"{text}\n{after.splitlines()[0]}") for text, after in pairwise(texts)]
    assert all(len(ids) > 100 for ids in longer[:4])


def test_rows_may_hold_what_unicode_calls_a_line_end(rows: Path, models: dict[str, Session]) -> None:
    write(rows, {"text": "床前\u2028明月\x85光"}, {"text": LINE})
    rows.write_bytes(b"\xef\xbb\xbf" + rows.read_bytes().replace(b"\n", b"\r\n\r\n"))
    samples = read(models["demo"], rows).samples
    assert models["demo"].tokenizer.decode(list(samples[0].prompt.ids)) == "床前\u2028明月\x85光"
    assert list(samples[1].prompt.ids) == models["demo"].tokenizer.encode(LINE)


def test_samples_are_taken_evenly_and_the_same_each_time(models: dict[str, Session]) -> None:
    model = models["demo"]
    whole, some = read(model, "default"), read(model, "default", max_samples=10)
    count = len(whole.samples)
    assert some.samples == tuple(whole.samples[index * count // 10] for index in range(10))
    assert some.samples == read(model, "default", max_samples=10).samples
    assert (some.sha256, some.to_json()["samples"]) == (whole.sha256, 10)
    assert read(model, "default", max_samples=10**6).samples == whole.samples


def test_a_model_without_room_passes_poems_over(models: dict[str, Session]) -> None:
    glm, demo = models["demo-glm"], models["demo"]
    narrow = replace(glm.config, max_positions=40)
    samples = load_corpus("poems", glm.tokenizer, narrow).samples
    assert 0 < len(samples) < 276
    assert max(sample.prompt.context_length for sample in samples) <= 40
    with pytest.raises(InputError, match=r"line 1 of .*poems.*: prompt and completion have \d+ tokens.*shorten"):
        load_corpus("poems", demo.tokenizer, replace(demo.config, max_positions=20))


# -- provenance and errors ---------------------------------------------------------------------------------------------


def test_provenance_lies_beside_the_file(rows: Path, models: dict[str, Session]) -> None:
    model, beside = models["demo"], rows.with_name("rows.jsonl.source.json")
    corpus = read(model, write(rows, {"text": LINE}))
    assert (corpus.name, corpus.origin, corpus.licence) == ("rows.jsonl", "not stated", "not stated")
    assert corpus.sha256 == hashlib.sha256(rows.read_bytes()).hexdigest()
    beside.write_text(json.dumps({"origin": "our tickets", "year": 2024}))
    assert (read(model, rows).origin, read(model, rows).licence) == ("our tickets", "not stated")
    for damaged in ("[1]", "{", '{"origin": 7}'):
        beside.write_text(damaged)
        with pytest.raises(InputError, match=r"rows.jsonl.source.json should be a JSON object with origin and licence"):
            read(model, rows)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("absent.txt", None, "is no file; give a .txt, .jsonl or .json file .*, or one of default, poems, technical"),
        ("a.csv", b"1,2", "should end in .txt, .jsonl or .json, .* found '.csv'"),
        ("a.txt", b"", "is empty"),
        ("a.jsonl", b" \n\n", "is empty"),
        ("a.txt", b"one\ntwo\0", "line 2 of .* NUL byte.*binary"),
        ("a.txt", "床前".encode("utf-16"), "NUL byte|not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}', "line 3 of .* is not UTF-8"),
        ("a.txt", LINE.encode(), "tokens, at least 256 are expected: too small.*add text.*'default'"),
    ],
)
def test_files_that_hold_no_corpus(
    name: str, data: bytes | None, message: str, tmp_path: Path, models: dict[str, Session]
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        read(models["demo"], path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "line", "message"),
    [
        ("demo", "plain", "a JSON object is expected, found 'plain'"),
        ("demo", "[1]", "a JSON object is expected, found list"),
        ("demo", "{}", "one of the shapes text, .* is expected, found none in the keys \\(no keys\\)"),
        ("demo", '{"text": "a", "input_ids": [1]}', r"found several \(text, input_ids\)"),
        ("demo", '{"prompt": "a", "completion": " "}', "completion should be a string that is not blank, found ' '"),
        ("demo", '{"prompt": null, "completion": "a"}', "prompt should be a string that is not blank"),
        ("demo", '{"text": 3}', "text should be a string that is not blank, found '3'"),
        ("demo", '{"text": "a \\ud800"}', "half of a surrogate pair"),
        ("demo", '{"lines": []}', "a poem's lines"),
        ("demo", '{"lines": ["a", 1]}', "a line should be a string that is not blank"),
        ("demo", '{"messages": "hi"}', "messages should be a list of objects"),
        ("demo", '{"messages": [{"role": "user"}]}', "content should be a string that is not blank"),
        ("demo", '{"messages": []}', "at least one message"),
        ("demo", '{"messages": [{"role": "assistant", "content": "a"}]}', "a reply needs a question before it"),
        (
            "demo",
            '{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]}',
            "role 'system' is not in",
        ),
        ("demo-glm", '{"messages": [{"role": "user", "content": "a"}]}', "trained on no conversations"),
        ("demo", '{"input_ids": []}', "at least one whole number"),
        ("demo", '{"input_ids": [1, true]}', "at least one whole number"),
        ("demo", '{"input_ids": [1, 2816]}', r"\[2816\] lie outside the vocabulary of 2816"),
        ("demo", '{"input_ids": [-1]}', r"\[-1\] lie outside the vocabulary"),
        ("demo-glm", '{"input_ids": [1, 2]}', "a mask and then the start of a piece"),
        ("demo", json.dumps({"input_ids": [5] * 513}), "513 tokens, the model's context 512"),
        ("demo-glm", json.dumps({"prompt": LINE * 40, "completion": "a"}), "the model's context 256"),
        ("demo", json.dumps({"prompt": LINE * 40, "completion": LINE * 9}), "the model's context 512"),
        ("demo", json.dumps({"messages": [{"role": "user", "content": LINE * 50}]}), "the model's context 512"),
        ("chatglm", '{"text": "\\u200b"}', "the text has no token"),
        ("chatglm", '{"prompt": "a", "completion": "\\u200b"}', "the completion has no token"),
    ],
)
def test_rows_that_cannot_be_read_are_named(
    model: str, line: str, message: str, rows: Path, models: dict[str, Session]
) -> None:
    rows.write_text(f"{FILLER}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^line 3 of .*rows.jsonl: .*" + message) as raised:
        read(models[model], rows)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [{"sequence_length": 15}, {"max_samples": 0}])
def test_senseless_sizes_are_refused(options: dict[str, int], models: dict[str, Session]) -> None:
    with pytest.raises(InputError, match="at least 16 tokens and at least 1 sample"):
        read(models["demo"], "default", **options)


def test_a_family_without_prefix_predicts_from_the_second_token(rows: Path, models: dict[str, Session]) -> None:
    class Bare:
        encode = encode_plain = staticmethod(models["demo"].tokenizer.encode_plain)

    sample = load_corpus(write(rows, {"text": LINE}), Bare(), models["demo"].config).samples[0]
    assert (list(sample.prompt.ids), sample.counted_from) == (Bare.encode(LINE), 1)


def test_reading_a_corpus_needs_no_torch() -> None:
    script = (
        "import sys, glm_export.calibration.corpus.load\nsys.exit(', '.join({'torch', 'onnx'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
