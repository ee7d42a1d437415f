"""Text that must have a form: tokens as bytes, masks, and the embedded model under a schema."""

# ruff: noqa: F811 - fixtures of other files are arguments here

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from glm_export import api
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.generation.grammars import Grammar, GrammarMatcher, GrammarVocabulary, token_bytes
from glm_export.generation.grammars.grammar import ANY_OBJECT, LONGEST
from glm_export.sessions.session import Session
from glm_export.tokenizers import Tokenizer, load_tokenizer
from glm_export.tokenizers.marks import clean_up
from tests.tokenizers.streams.test_detokenizer import folder_of, reader, size_of  # noqa: F401 - a fixture
from tests.tokenizers.test_infilling_vocabularies import bert, gpt2  # noqa: F401 - fixtures

POEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12}, "lines": {"type": "integer", "minimum": 1, "maximum": 9},
        "read": {"type": "boolean"}, "by": {"enum": ["李白", "杜甫"]},
    },
    "required": ["title", "lines", "by"], "additionalProperties": False,
}  # fmt: skip
STEPS = 120
TEXTS = ('{"title": "静夜思", "n": [1, 2.5e3]}', "a\tb\n😀", "你好 world")


def tokenizer_of(name: str) -> tuple[Tokenizer, Any]:
    config = open_checkpoint(folder_of(name)).config
    return load_tokenizer(folder_of(name), config), config


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with api.load_session("demo") as made:
        yield made


@pytest.fixture(scope="module")
def vocabulary(session: Session) -> GrammarVocabulary:
    stops = api.stopping_for(session, 1).stop_ids
    return GrammarVocabulary(session.tokenizer, session.config.vocab_size, stops)


@pytest.fixture(scope="module")
def ranks() -> GrammarVocabulary:
    tokenizer, config = tokenizer_of("glm4_remote")
    return GrammarVocabulary(tokenizer, config.vocab_size, tokenizer.stop_ids)


# -- tokens as bytes ---------------------------------------------------------------------------------------------------


Pieces = list[bytes | None]


@pytest.fixture(scope="module")
def pieces(reader: Tokenizer) -> tuple[Pieces, Pieces]:
    """Of every kind of vocabulary: each token's bytes, and those of one that begins a text."""
    size = max(size_of(reader), *(index + 1 for text in TEXTS for index in reader.encode_plain(text)))
    return token_bytes(reader, size), token_bytes(reader, size, first=True)


def test_bytes_of_texts_are_the_text(reader: Tokenizer, pieces: tuple[Pieces, Pieces]) -> None:
    plain, begins = pieces
    for text in TEXTS:
        ids = reader.encode_plain(text)
        parts = [(plain if place else begins)[index] for place, index in enumerate(ids)]
        if not any(plain):  # word pieces, and decoders of which nothing is known
            assert not any(parts)
        elif None not in parts[1:]:
            # A first piece may be the blank alone that SentencePiece puts there, and is dropped.
            assert b"".join(part or b"" for part in parts).decode() == reader.decode(ids)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_of_any_tokens_are_their_text(
    reader: Tokenizer, pieces: tuple[Pieces, Pieces], data: st.DataObject
) -> None:
    plain, begins = pieces
    first, others = ([index for index, part in enumerate(parts) if part] for parts in (begins, plain))
    if not first:
        return
    ids = [data.draw(st.sampled_from(first)), *data.draw(st.lists(st.sampled_from(others), max_size=12))]
    together = b"".join([begins[ids[0]] or b"", *(plain[index] or b"" for index in ids[1:])])
    try:
        text = together.decode()
    except UnicodeDecodeError:
        return
    if getattr(reader, "_clean_up", False):
        text = clean_up(text)
    assert reader.decode(ids) == text


def test_special_tokens_are_no_text() -> None:
    tokenizer, config = tokenizer_of("chatglm3")
    plain = token_bytes(tokenizer, config.vocab_size)
    special: Mapping[str, int] = tokenizer.special
    assert len(plain) == config.vocab_size
    assert not any(plain[index] for index in (*special.values(), *tokenizer.stop_ids, config.vocab_size - 1))
    assert plain[tokenizer.encode_plain("你好")[-1]]


# -- masks -------------------------------------------------------------------------------------------------------------


def written(matcher: GrammarMatcher, choose: random.Random, most: int = STEPS) -> list[int]:
    """Any text that is allowed, with its end."""
    ids: list[int] = []
    while len(ids) < most:
        places = np.flatnonzero(matcher.allowed)
        token = int(choose.choice(places))
        matcher.accept(token)
        if token in matcher._vocabulary.stop_ids:
            return ids
        ids.append(token)
    return []


@pytest.mark.parametrize(
    ("kind", "text", "right"),
    [
        ("regex", "[0-9]{2,4}|ab?c", "[0-9]{2,4}|ab?c"),
        ("lark", 'start: word ("," word)*\nword: /[a-c]/ | "你好"', "(?:[a-c]|你好)(?:,(?:[a-c]|你好))*"),
        ("gbnf", 'root ::= word ("," word)?\nword ::= [a-c] | "好"', "(?:[a-c]|好)(?:,(?:[a-c]|好))?"),
        ("json_schema", {"enum": [[1, "a"], None]}, r'\[\s*1\s*,\s*"a"\s*\]|null'),
    ],
)
@pytest.mark.parametrize("name", ["vocabulary", "ranks"])
def test_any_allowed_text_has_the_form(
    name: str, kind: Any, text: Any, right: str, request: pytest.FixtureRequest, session: Session
) -> None:
    vocabulary = request.getfixturevalue(name)
    tokenizer = session.tokenizer if name == "vocabulary" else tokenizer_of("glm4_remote")[0]
    grammar = Grammar(vocabulary, kind, text)
    choose, found = random.Random(1), set()
    for _ in range(30):
        ids = written(grammar.matcher(), choose)
        if ids:
            found.add(tokenizer.decode(ids))
    assert len(found) > 1
    assert all(re.fullmatch(right, text) for text in found), found


def test_stop_ids_come_where_the_text_may_end(ranks: GrammarVocabulary) -> None:
    tokenizer, _ = tokenizer_of("glm4_remote")
    matcher = Grammar(ranks, "regex", "12?").matcher()
    one, two = (tokenizer.encode_plain(text)[0] for text in "12")
    allowed = []
    for token in (one, two, ranks.stop_ids[-1]):
        allowed.append(set(np.flatnonzero(matcher.allowed)))
        matcher.accept(token)
    stops = set(ranks.stop_ids)
    assert one in allowed[0]
    assert not allowed[0] & stops
    assert allowed[1] == {two, *stops}
    assert allowed[2] == stops
    assert matcher.ended
    assert matcher.error is None
    assert matcher.allowed.shape == (ranks.vocab_size,)


def test_a_blank_that_is_dropped_begins_no_text(vocabulary: GrammarVocabulary, session: Session) -> None:
    """SentencePiece's first piece loses its blank: the natural ids of a text are allowed, and mean that text."""
    for text in ("12", '{"a": 12}', "你"):
        ids = session.tokenizer.encode_plain(text)
        matcher = Grammar(vocabulary, "regex", re.escape(text)).matcher()
        if session.tokenizer.decode(ids[:1]) == "":  # a blank alone, which is nothing
            ids = ids[1:]
        for token in ids:
            assert matcher.allowed[token], (text, token)
            matcher.accept(token)
        assert matcher.ended


def test_a_piece_that_loses_its_blank_goes_on_without_it() -> None:
    tokenizer, config = tokenizer_of("chatglm2")
    vocabulary = GrammarVocabulary(tokenizer, config.vocab_size, tokenizer.stop_ids)
    plain, begins = (token_bytes(tokenizer, config.vocab_size, first=first) for first in (False, True))
    pieces = [index for index, part in enumerate(begins) if part and part != plain[index]]
    assert len(pieces) > 5
    for token in pieces[:5]:
        text = tokenizer.decode([token])
        matcher = Grammar(vocabulary, "regex", f"{re.escape(text)}1").matcher()
        assert matcher.allowed[token]
        matcher.accept(token)
        assert {tokenizer.decode([0, int(index)])[-1] for index in np.flatnonzero(matcher.allowed)} == {"1"}


def test_a_grammar_of_any_token_gives_no_special_one(ranks: GrammarVocabulary) -> None:
    tokenizer, _ = tokenizer_of("glm4_remote")
    special = tokenizer.special
    allowed = Grammar(ranks, "lark", 'start: <[*]> "a"').matcher().allowed
    assert allowed[tokenizer.encode_plain("1")[0]]
    assert not allowed[list(special.values())].any()


def test_what_is_not_allowed_is_refused(vocabulary: GrammarVocabulary) -> None:
    matcher = Grammar(vocabulary, "regex", "[0-9]+").matcher()
    wrong = int(np.flatnonzero(~matcher.allowed)[0])
    for token in (wrong, -1, vocabulary.vocab_size):
        with pytest.raises(InputError, match="not allowed"):
            matcher.accept(token)


def test_a_text_that_no_token_continues_ends_and_says_why() -> None:
    """A vocabulary without bytes for what it does not know."""
    tokenizer, _ = tokenizer_of("glm")
    vocabulary = GrammarVocabulary(tokenizer, max(tokenizer.stop_ids) + 1, tokenizer.stop_ids)
    matcher = Grammar(vocabulary, "regex", "\U00020000").matcher()
    assert set(np.flatnonzero(matcher.allowed)) == set(vocabulary.stop_ids)
    assert matcher.ended
    assert matcher.error == "no token continues the text"


def test_two_matchers_of_a_grammar_know_nothing_of_each_other(vocabulary: GrammarVocabulary) -> None:
    grammar = Grammar(vocabulary, "json_schema", POEM)
    first, second = grammar.matcher(), grammar.matcher()
    before = second.allowed.copy()
    written(first, random.Random(3))
    assert (grammar.matcher().allowed == before).all()
    assert (second.allowed == before).all()


# -- the embedded model ------------------------------------------------------------------------------------------------


def greedy(session: Session, prompt: str, matcher: GrammarMatcher | None) -> str:
    ids = session.encode(prompt)
    feeds = session.feeds([session.prompt(ids)])
    logits_V = feeds.last_logits(session.prefill(feeds))[0]
    new: list[int] = []
    while len(new) < STEPS:
        scores_V = logits_V if matcher is None else np.where(matcher.allowed, logits_V, -np.inf)
        token = int(scores_V.argmax())
        if token in api.stopping_for(session, 1).stop_ids:
            break
        new.append(token)
        if matcher is not None:
            matcher.accept(token)
        feeds = feeds.next_step([token], session.last_position(feeds))
        logits_V = feeds.last_logits(session.decode(feeds))[0]
    return session.tokenizer.decode(new)


def require_poem(text: str) -> None:
    value = json.loads(text)
    assert set(value) <= POEM["properties"].keys()
    assert set(POEM["required"]) <= set(value)
    assert isinstance(value["title"], str)
    assert len(value["title"]) <= 12
    assert type(value["lines"]) is int
    assert 1 <= value["lines"] <= 9
    assert value["by"] in {"李白", "杜甫"}
    assert isinstance(value.get("read", True), bool)


def test_a_model_under_a_schema(session: Session, vocabulary: GrammarVocabulary) -> None:
    """Greedy, from a model that writes poems; without the schema it does so, which is the control."""
    prompt = "床前明月光，疑是地上霜。"
    require_poem(greedy(session, prompt, Grammar(vocabulary, "json_schema", POEM).matcher()))
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(greedy(session, prompt, None))


@pytest.mark.parametrize("seed", range(5))
def test_any_object_is_one(seed: int, ranks: GrammarVocabulary) -> None:
    tokenizer, _ = tokenizer_of("glm4_remote")
    ids = written(Grammar(ranks, "json_schema", ANY_OBJECT).matcher(), random.Random(seed), 3000)
    assert not ids or isinstance(json.loads(tokenizer.decode(ids)), dict)


# -- what is refused ---------------------------------------------------------------------------------------------------

CHAIN = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(4000)}
HOSTILE: dict[str, tuple[str, Any]] = {
    "no schema": ("json_schema", "[]"), "no JSON": ("json_schema", "{"),
    "deep JSON": ("json_schema", '{"items":' * 200), "special tokens": ("lark", "start: <[314]>"),
    "unknown type": ("json_schema", {"type": "obj"}), "no such definition": ("json_schema", {"$ref": "#/x"}),
    "not for us": ("json_schema", {"not": {}}),
    "endless": ("json_schema", {"allOf": [{"$ref": "#"}, {"minLength": 1}]}),
    "open": ("regex", "(a"), "looks ahead": ("regex", "(?=a)b"), "nested": ("regex", "(" * 30_000 + ")" * 30_000),
    "no rule": ("lark", "start: b"), "itself": ("lark", "start: T\nT: T"), "long": ("regex", "a" * (LONGEST + 1)),
    "nested rules": ("gbnf", "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000), "unknown kind": ("yacc", ""),
    # These end a process that compiles them: a stack that is full, doubling without end
    "a chain": ("json_schema", {"$defs": CHAIN | {"d4000": {"type": "string"}}, "$ref": "#/$defs/d0"}),
    "doubling": ("lark", "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(400)) + "\nT400: /a/"),
    "a chain of rules": ("lark", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(20_000)) + "r20000: /a/"),
    "too many": ("json_schema", {"type": "object", "properties": {f"k{i}": {"type": "object", "properties": {
        f"j{j}": {"type": "string"} for j in range(60)}} for i in range(300)}}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_are_refused_in_one_line(name: str, vocabulary: GrammarVocabulary) -> None:
    kind, text = HOSTILE[name]
    with pytest.raises(InputError) as raised:
        Grammar(vocabulary, kind, text)
    assert "\n" not in str(raised.value)


def test_a_model_without_bytes_or_ends_takes_none() -> None:
    tokenizer, config = tokenizer_of("chatglm2")
    with pytest.raises(InputError, match="ends a text"):
        GrammarVocabulary(tokenizer, config.vocab_size, [config.vocab_size])


def test_without_the_extra_the_line_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, config = tokenizer_of("chatglm2")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EnvironmentMissingError, match=r"glm-export\[serve\]"):
        GrammarVocabulary(tokenizer, config.vocab_size, tokenizer.stop_ids)
