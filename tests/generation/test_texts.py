"""Texts as the library has them: in pieces as they come, prompts as token ids."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from glm_export import Piece, Sampling, generate, load_session, stream
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError, SessionBusyError
from glm_export.generation.texts import TextOrIds
from glm_export.sessions.session import Session

FIRST = "千山鸟飞绝，万径人踪灭。\n"


@pytest.fixture(scope="module")
def session(demo_program: OnnxProgram) -> Iterator[Session]:
    with load_session(demo_program) as made:
        yield made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_new_tokens": 5},
        {"stop_strings": ["独钓"]},
        {"speculate": True},
        {"sampling": Sampling(temperature=2.0, seed=3)},
    ],
    ids=["to its end", "five tokens", "a stop string", "guesses", "drawn"],
)
def test_pieces_are_the_whole_text(session: Session, options: dict[str, Any]) -> None:
    pieces = list(stream(session, FIRST, **options))
    assert "".join(piece.text for piece in pieces) == generate(session, FIRST, **options)
    assert [bool(piece.finish_reason) for piece in pieces] == [*[False] * (len(pieces) - 1), True]
    assert pieces[-1].finish_reason == ("length" if "max_new_tokens" in options else "stop")
    written = [token for piece in pieces for token in piece.ids]
    assert session.tokenizer.decode(written).startswith("".join(piece.text for piece in pieces).rstrip("\n"))


def test_a_character_of_several_tokens_comes_whole(session: Session) -> None:
    """Greedy text of forced bytes: a bias writes the three bytes of a character that has no token."""
    ids = session.tokenizer.encode_plain("㐀")
    assert len(ids) > 1
    forced = iter(ids)

    def spell(written: Any, scores_V: Any) -> Any:
        scores_V[next(forced)] = 1e6
        return scores_V

    sampling = Sampling(processors=(spell,))
    pieces = list(stream(session, FIRST, max_new_tokens=len(ids), sampling=sampling))
    spelt = [piece for piece in pieces if piece.text.strip()]
    assert [piece.text for piece in spelt] == ["㐀"]
    assert spelt[0] is pieces[-1]


def test_a_stream_that_is_left_frees_the_session(session: Session) -> None:
    pieces = stream(session, FIRST)
    assert list(islice(pieces, 2)) == [Piece(text="孤", ids=(404,)), Piece(text="舟", ids=(439,))]
    with pytest.raises(SessionBusyError):
        generate(session, FIRST)
    pieces.close()
    assert generate(session, FIRST).startswith("孤舟")


def test_token_ids_are_a_prompt(session: Session) -> None:
    ids = session.encode(FIRST)
    assert generate(session, ids) == generate(session, FIRST)
    assert generate(session, tuple(ids)) == generate(session, FIRST)
    mixed: list[TextOrIds] = [ids, "床前明月光，疑是地上霜。\n"]
    both = generate(session, mixed)
    assert both == [generate(session, FIRST), generate(session, "床前明月光，疑是地上霜。\n")]
    assert "".join(piece.text for piece in stream(session, ids)) == both[0]


@pytest.mark.parametrize("prompt", [5, None, b"text", [1.5], [True], [[]], ["text", 5], {"a": 1}])
def test_what_is_neither_text_nor_ids_is_refused(session: Session, prompt: Any) -> None:
    with pytest.raises(InputError, match="prompt is"):
        generate(session, prompt)
    with pytest.raises(InputError, match="prompt is"):
        next(stream(session, prompt))


def test_ids_beyond_the_vocabulary_are_refused(session: Session) -> None:
    with pytest.raises(InputError, match="99999"):
        generate(session, [1, 99999])
