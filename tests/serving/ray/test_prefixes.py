"""Beginnings as hashes, who was sent them, and a choice that needs nobody else; without Ray."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, strategies as st

from glm_export.serving.ray.prefixes import PIECE, SentPrefixes, pieces_of, rendezvous

TURN = "春眠不觉晓，处处闻啼鸟。" * 12


def chat(*words: str) -> dict[str, object]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": word} for n, word in enumerate(words)]}


def alike(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=400))
def test_what_begins_alike_has_its_first_pieces_in_common(begin: str, one: str, other: str) -> None:
    first, second = pieces_of({"prompt": begin + one}), pieces_of({"prompt": begin + other})
    assert alike(first, second) >= len(begin) // PIECE
    assert len(first) == len(begin + one) // PIECE


def test_a_conversation_that_goes_on_begins_like_it_did() -> None:
    before = pieces_of(chat(TURN))
    after = pieces_of(chat(TURN, TURN, "再来"))
    assert alike(before, after) == len(before) >= 2
    # Whose it is tells beginnings apart, and so do tools before the first word.
    assert alike(pieces_of(chat(TURN), "somebody"), pieces_of(chat(TURN), "else")) == 0
    assert alike(before, pieces_of(chat(TURN) | {"tools": [{"type": "function"}]})) == 0


def test_what_is_no_request_has_no_pieces() -> None:
    bodies: tuple[Any, ...] = ({}, [], "text", None, {"prompt": 7}, {"messages": None}, {"prompt": [[1, 2], "x"]})
    for body in bodies:
        assert pieces_of(body) == ()


def test_the_longest_beginning_wins_and_replicas_that_are_gone_have_none() -> None:
    sent: SentPrefixes[str] = SentPrefixes(most=50)
    short, long = pieces_of({"prompt": "a" * 128}), pieces_of({"prompt": "a" * 128 + "b" * 640})
    sent.sent(short, "A")
    sent.sent(long, "B")
    assert sent.longest(long, ["A", "B"]) == {"B"}
    assert sent.longest(short, ["A", "B"]) == {"A", "B"}
    assert sent.longest(long, ["A"]) == {"A"}
    assert sent.longest(pieces_of({"prompt": "c" * 128}), ["A", "B"]) == set()
    sent.forget({"B"})
    assert sent.longest(long, ["A", "B"]) == {"A"}
    for number in range(100):
        sent.sent([bytes([number])], "A")
    assert len(sent) == 50
    assert sent.longest(short, ["A"]) == set()


def test_routers_choose_alike_and_a_new_replica_moves_its_share_alone() -> None:
    keys = [str(number).encode() for number in range(3000)]
    three = {key: rendezvous(key, ["A", "B", "C"], str) for key in keys}
    assert three == {key: rendezvous(key, ["C", "A", "B"], str) for key in keys}
    assert min(Counter(three.values()).values()) > 850
    four = {key: rendezvous(key, ["A", "B", "C", "D"], str) for key in keys}
    moved = [key for key in keys if four[key] != three[key]]
    assert {four[key] for key in moved} == {"D"}
    assert 600 < len(moved) < 900
