"""Data sets as people have them: each shape becomes the prompt its family was trained on, the reply behind it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from glm_export import api
from glm_export.calibration.corpus import files
from glm_export.calibration.corpus.corpus import Sample
from glm_export.calibration.corpus.load import load_corpus
from glm_export.calibration.corpus.shapes import SHAPES
from glm_export.errors import InputError
from glm_export.sessions.session import Session
from glm_export.tokenizers.chat import Message
from tests.helpers.golden_data import WITH_TOKENIZER, Golden

FILLER = json.dumps({"text": "床前明月光，疑是地上霜。" * 40}, ensure_ascii=False)
MODELS = {
    "demo": "demo", "demo-glm": "demo-glm", "chatglm": Golden("chatglm").folder,
    "chatglm3": Golden("chatglm3").folder, "glm4": Golden("glm4_remote").folder,
}  # fmt: skip
SYSTEM, ASK, REPLY, AGAIN = "be brief", "why?", "hello", "so what"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "quantization.md"


def turns(*contents: str, system: bool = False) -> list[Message]:
    roles = ("user", "assistant") * len(contents)
    spoken = [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]
    return [*([Message(role="system", content=SYSTEM)] if system else []), *spoken]


def share(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


ROWS: dict[str, tuple[dict[str, Any], list[Message]]] = {
    "alpaca": ({"instruction": ASK, "input": "", "output": REPLY}, turns(ASK, REPLY)),
    "alpaca, with input": ({"instruction": ASK, "input": "x", "output": REPLY}, turns(f"{ASK}\nx", REPLY)),
    "alpaca, as released": ({"instruction": ASK, "output": REPLY, "text": "Below is …"}, turns(ASK, REPLY)),
    "alpaca, with history": (
        {"instruction": AGAIN, "output": REPLY, "system": SYSTEM, "history": [[ASK, REPLY]]},
        turns(ASK, REPLY, AGAIN, REPLY, system=True),
    ),
    "dolly": ({"instruction": ASK, "context": "x", "response": REPLY, "category": "qa"}, turns(f"{ASK}\nx", REPLY)),
    "ShareGPT": ({"id": "a", "conversations": share(("human", ASK), ("gpt", REPLY))}, turns(ASK, REPLY)),
    "ShareGPT, several": (
        {"conversations": share(("system", SYSTEM), ("human", ASK), ("gpt", REPLY), ("human", AGAIN))},
        turns(ASK, REPLY, AGAIN, system=True),
    ),
    "ShareGPT, system apart": (
        {"system": SYSTEM, "conversations": share(("user", ASK), ("assistant", REPLY))},
        turns(ASK, REPLY, system=True),
    ),
    "ChatGLM3": (
        {"conversations": [{"role": "user", "content": ASK}, {"role": "assistant", "content": REPLY, "loss": True}]},
        turns(ASK, REPLY),
    ),
    "GLM-4": ({"messages": turns(ASK, REPLY, system=True)}, turns(ASK, REPLY, system=True)),
    "UltraChat": ({"prompt": ASK, "prompt_id": "7", "messages": turns(ASK, REPLY)}, turns(ASK, REPLY)),
    "ADGEN": ({"content": "类型#裤", "summary": "牛仔裤"}, turns("类型#裤", "牛仔裤")),
    "prompt and response": (
        {"prompt": AGAIN, "response": REPLY, "history": [[ASK, REPLY]]}, turns(ASK, REPLY, AGAIN, REPLY)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Session]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(api.load_session(source)) for name, source in MODELS.items()}


@pytest.fixture
def first(models: dict[str, Session], tmp_path: Path) -> Callable[[str, Any], Sample]:
    """The sample made of a row, with enough text after it not to be too small."""

    def read(name: str, row: Any) -> Sample:
        path = tmp_path / "rows.jsonl"
        path.write_text(f"{json.dumps(row, ensure_ascii=False)}\n{FILLER}\n", encoding="utf-8")
        return load_corpus(path, models[name].tokenizer, models[name].config).samples[0]

    return read


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("name", ["demo", "chatglm", "chatglm3", "glm4"])
def test_every_shape_is_the_chat_of_its_family_and_the_reply_behind_it(
    name: str, shape: str, first: Callable[[str, Any], Sample], models: dict[str, Session]
) -> None:
    row, messages = ROWS[shape]
    session = models[name]
    if messages[0]["role"] == "system" and name in ("demo", "chatglm"):
        with pytest.raises(InputError, match=r"line 1 of .*: .*system"):
            first(name, row)
        return
    ids, tokenizer = list(first(name, row).prompt.ids), session.tokenizer
    if messages[-1]["role"] == "user":
        assert ids == tokenizer.chat(messages)
        return
    *given, reply = messages
    start, encode = tokenizer.chat(given), tokenizer.encode_plain
    written = {"chatglm3": [*encode("\n"), *encode(reply["content"])], "glm4": encode(f"\n{reply['content']}")}
    assert ids == [*start, *written.get(name, encode(reply["content"]))]
    assert first(name, row).task is None
    # A prefix family's question is read, its reply written; elsewhere all of it is text.
    assert first(name, row).counted_from == (len(start) if name == "chatglm" else 2)


@pytest.mark.parametrize("name", [name for name in WITH_TOKENIZER if name not in ("chatglm2", "chatglm2_32k")])
def test_a_reply_stands_where_the_publishers_tokenizer_puts_it(name: str, tmp_path: Path) -> None:
    """The publisher's ids of a conversation that goes on begin with those of the same one up to the reply."""
    golden = Golden(name)
    cases = {case["turns"]: case for case in golden.tokenizer["chat"]}
    [[question, reply]] = cases[1]["history"]
    row = {"conversations": share(("human", question), ("gpt", reply))}
    (tmp_path / "rows.json").write_text(f"{json.dumps([row, {'text': 'hello ' * 400}])}\n")
    with api.load_session(golden.folder) as session:
        corpus = load_corpus(tmp_path / "rows.json", session.tokenizer, session.config)
        ids = list(corpus.samples[0].prompt.ids)
        assert ids == cases[1]["ids"][: len(ids)]
        assert cases[1]["ids"][len(ids)] == session.tokenizer.special["<|user|>"]


@pytest.mark.parametrize("shape", ["alpaca", "ADGEN", "prompt and response"])
def test_a_family_without_chats_continues_the_question(
    shape: str, first: Callable[[str, Any], Sample], models: dict[str, Session]
) -> None:
    row, messages = ROWS[shape]
    session = models["demo-glm"]
    sample, (question, reply) = first("demo-glm", row), (message["content"] for message in messages[-2:])
    given = session.encode(question)
    assert sample.prompt == session.prompt([*given, *session.tokenizer.encode_plain(reply)])
    assert (sample.counted_from, sample.task) == (len(given), None)
    with pytest.raises(InputError, match="trained on no conversations"):
        first("demo-glm", ROWS["ShareGPT"][0])


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("ending", [".jsonl", ".json", "array.json", "array.jsonl", ".txt"])
def test_files_of_every_form_hold_the_same_rows(
    ending: str, packed: bool, tmp_path: Path, models: dict[str, Session]
) -> None:
    rows = [{"text": f"{number} " + "明月" * 200} for number in range(3)]
    if ending == ".txt":
        text = "\n\n".join(row["text"] for row in rows)
    elif "array" in ending:
        text = json.dumps(rows, indent=2, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    session, data = models["demo"], text.encode()
    path = tmp_path / f"rows{ending}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    corpus = load_corpus(path, session.tokenizer, session.config)
    written = [session.tokenizer.decode(list(sample.prompt.ids)) for sample in corpus.samples]
    assert "".join(written).replace("\n", "") == "".join(row["text"] for row in rows)
    # As downloads are often named: the bytes say that they are packed.
    path.rename(tmp_path / f"again{ending.replace('array', '')}")
    again = load_corpus(tmp_path / f"again{ending.replace('array', '')}", session.tokenizer, session.config)
    assert (again.samples, again.sha256) == (corpus.samples, corpus.sha256)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"text": "a"}, 3]', r"^row 2 of .*a.json: a JSON object is expected, found int"),
        ("a.json", b'[\n{"text": "a"},\n{"text" "b"}\n]', r"^line 3 of .*an array of JSON objects is expected .*mend"),
        ("a.json", b'{\n"text": "a"\n}', r"^line 1 of .*a JSON object is expected.*one a line, or one array"),
        ("a.json", b"[" * 100_000, r"line 1 of .*nested deeper than 64 levels"),
        ("a.json", b"[]", "has 0 tokens, at least 256"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-6], "damaged gzip file.*pack it again"),
        ("a.jsonl.gz", gzip.compress(b"\xff\xfe", mtime=0), "line 1 of .* is not UTF-8"),
        ("a.gz", b"x", "should end in .txt, .jsonl or .json, with .gz behind it"),
        ("a.parquet", b"x", "should end in .txt, .jsonl or .json"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    name: str, data: bytes, message: str, tmp_path: Path, models: dict[str, Session]
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        load_corpus(tmp_path / name, models["demo"].tokenizer, models["demo"].config)
    assert "\n" not in str(raised.value)


def test_a_small_file_cannot_unpack_to_more_than_memory(
    tmp_path: Path, models: dict[str, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b" " * (2 << 20)))
    with pytest.raises(InputError, match="unpacks to more than"):
        load_corpus(tmp_path / "a.txt.gz", models["demo"].tokenizer, models["demo"].config)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, r"one of the shapes text, .*instruction \+ output.*, found none in the keys question;"),
        ({"prompt": "a", "title": "t"}, "found none in the keys prompt, title; rename or drop keys"),
        ({"text": "a", "input_ids": [1]}, r"found several \(text, input_ids\) in the keys"),
        ({"instruction": "a", "output": ""}, "output should be a string that is not blank, found ''"),
        ({"instruction": "a", "input": 3, "output": "b"}, "input should be a string"),
        ({"content": "a", "summary": None}, "summary should be a string"),
        ({"prompt": "a", "response": "b", "history": ["a"]}, "history should be a list of pairs"),
        ({"prompt": "a", "response": "b", "history": [["a", 3]]}, "content should be a string"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "a reply needs a question before it"),
        ({"conversations": [{"value": "a"}]}, "role should be a string"),
        ({"conversations": "hi"}, "conversations should be a list of objects"),
        ({"conversations": share(("human", "a \ud800"))}, "half of a surrogate pair"),
        ({"conversations": share(("human", "a")), "tools": "{"}, "tools should be a list, or one written as JSON"),
        ({"conversations": [{"role": "tool", "name": "f", "parameters": [], "observation": "x"}]}, "tool's parameters"),
        ({"conversations": [{"role": "user", "content": ""}]}, "content should be a string that is not blank"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(
    row: dict[str, Any], message: str, first: Callable[[str, Any], Sample], tmp_path: Path, models: dict[str, Session]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{FILLER}\n{json.dumps(row)}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^line 2 of .*rows.jsonl: .*" + message) as raised:
        load_corpus(path, models["demo"].tokenizer, models["demo"].config)
    assert "\n" not in str(raised.value)


FUNCTION = {"name": "get_books", "description": "", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL, ANSWER = '{"name": "get_books", "arguments": {"topic": "history"}}', '{"books": []}'
# As the publisher's README of fine-tuning GLM-4 has it.
GLM4_ROW = {
    "messages": [
        {"role": "system", "content": "", "tools": TOOLS}, {"role": "user", "content": ASK},
        {"role": "assistant", "content": CALL}, {"role": "observation", "content": ANSWER},
        {"role": "assistant", "content": REPLY},
    ]
}  # fmt: skip
CHATGLM3_ROW = {
    "tools": [FUNCTION],
    "conversations": [
        {"role": "user", "content": ASK},
        {"role": "tool", "name": "get_books", "parameters": {"topic": "history", "most": 3}, "observation": {"n": 0}},
        {"role": "assistant", "content": REPLY},
    ],
}


def test_official_rows_of_glm4_with_tools(first: Callable[[str, Any], Sample], models: dict[str, Session]) -> None:
    """Each turn as ``process_batch`` of the publisher's ``finetune.py`` puts them one behind the other."""
    tokenizer = models["glm4"].tokenizer
    special = tokenizer.special
    shown = json.dumps(FUNCTION, indent=4, ensure_ascii=False)
    ids = list(first("glm4", GLM4_ROW).prompt.ids)
    assert ids[:3] == [special["[gMASK]"], special["<sop>"], special["<|system|>"]]
    system = tokenizer.decode(ids[3 : ids.index(special["<|user|>"])])
    assert "# 可用工具" in system
    assert f"## get_books\n\n{shown}\n" in system
    turns = [("user", ASK), ("assistant", CALL), ("observation", ANSWER), ("assistant", REPLY)]
    spelled = [(special[f"<|{role}|>"], *tokenizer.encode_plain(f"\n{content}")) for role, content in turns]
    assert ids[ids.index(special["<|user|>"]) :] == [index for turn in spelled for index in turn]
    apart = {"tools": json.dumps(TOOLS), "messages": [{"role": "user", "content": ASK}]}
    within = {"messages": GLM4_ROW["messages"][:2]}
    assert first("glm4", apart).prompt == first("glm4", within).prompt


def test_official_rows_of_chatglm3_with_tools(first: Callable[[str, Any], Sample], models: dict[str, Session]) -> None:
    """As the publisher's ``format_conversation`` builds them, without the end of text behind."""
    tokenizer = models["chatglm3"].tokenizer
    system = "Answer the following questions as best as you can. You have access to the following tools:\n"
    parts = [
        ("system", "", system + json.dumps([FUNCTION], indent=4, ensure_ascii=False)), ("user", "", ASK),
        ("assistant", "get_books", "```python\ntool_call(topic='history', most=3)\n```"),
        ("observation", "", '{"n": 0}'), ("assistant", "", REPLY),
    ]  # fmt: skip
    ids = [tokenizer.special[token] for token in ("[gMASK]", "sop")]
    for role, metadata, content in parts:
        ids += [tokenizer.special[f"<|{role}|>"], *tokenizer.encode_plain(f"{metadata}\n")]
        ids += tokenizer.encode_plain(content)
    assert list(first("chatglm3", CHATGLM3_ROW).prompt.ids) == ids
    # The same call in the words of the data sets that came after.
    turns = [
        {"from": "human", "value": ASK},
        {"from": "function_call", "value": json.dumps({"name": "get_books", "arguments": {"topic": "a", "most": 3}})},
        {"from": "observation", "value": '{"n": 0}'}, {"from": "gpt", "value": REPLY},
    ]  # fmt: skip
    expected = json.loads(json.dumps(CHATGLM3_ROW).replace('"history"', '"a"'))
    shared = {"tools": json.dumps([FUNCTION]), "conversations": turns}
    assert first("chatglm3", shared).prompt == first("chatglm3", expected).prompt


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_a_chat_may_end_with_a_call(name: str, first: Callable[[str, Any], Sample], models: dict[str, Session]) -> None:
    call = {"type": "function", "function": {"name": "get_books", "arguments": {"topic": "history"}}}
    asked = [{"role": "user", "content": ASK}]
    row = {"tools": TOOLS, "messages": [*asked, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    tokenizer = models[name].tokenizer
    given, ids = tokenizer.chat(asked, tools=TOOLS), list(first(name, row).prompt.ids)
    assert ids[: len(given)] == given
    written = tokenizer.parse_reply(ids[len(given) :], TOOLS)["tool_calls"][0]["function"]
    assert (written["name"], written["arguments"]) == ("get_books", {"topic": "history"})


@pytest.mark.parametrize("row", [GLM4_ROW, CHATGLM3_ROW], ids=["GLM-4", "ChatGLM3"])
@pytest.mark.parametrize("name", ["demo", "chatglm"])
def test_tools_are_never_passed_over(name: str, row: dict[str, Any], first: Callable[[str, Any], Sample]) -> None:
    """ChatGLM2's prompt has none; a row that has some is refused, not read without them."""
    with pytest.raises(InputError, match=r"line 1 of .*: ChatGLM.*'s prompt has no place for tool"):
        first(name, row)


def test_the_table_of_the_documentation_names_every_shape() -> None:
    table = DOCUMENTATION.read_text(encoding="utf-8").split("## The corpus")[1].split("\n## ")[0]
    for keys in SHAPES:
        assert any(all(f"`{key}`" in line for key in keys) for line in table.splitlines() if line.startswith("|")), keys
