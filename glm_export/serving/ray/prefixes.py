"""Which replica has read the beginning of a prompt: what one router sent where, as chained hashes of its pieces."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

PIECE = 64
"""Characters whose hash is one step, ids written out among them; an end that is shorter is left out."""
MOST_PIECES = 1 << 17
"""Kept by a router; the ones not met for longest go."""
Replica = TypeVar("Replica", bound=Hashable)


def pieces_of(body: Any, salt: str = "") -> tuple[bytes, ...]:
    """A request's beginning as hashes, each of all that is before it and one piece more.

    Args:
        body: of any door: what a model reads of it comes in the order of the prompt, whatever the template.
        salt: whose it is; what one tenant's rows have read begins no other's.

    Returns:
        A hash a piece, as many as the text is long; two requests that begin alike have the first ones in common.
    """
    told = _told(body)
    chain, hashed = salt.encode(), []
    for start in range(0, len(told) - PIECE + 1, PIECE):
        chain = hashlib.blake2b(chain + told[start : start + PIECE].encode(), digest_size=16).digest()
        hashed.append(chain)
    return tuple(hashed)


def _told(body: Any) -> str:
    """What is read of a request, as one text."""
    if not isinstance(body, Mapping):
        return ""
    parts = [body.get(name) for name in ("tools", "system", "instructions", "messages", "input", "prompt", "text")]
    parts += [body.get("pattern")]
    return "\x1e".join(_words(part) for part in parts if part)


def _words(part: Any) -> str:
    # Text as it is, so that a longer one begins like a shorter; anything else as JSON, whose order is the request's.
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "\x1f".join(_words(one) for one in part)
    if isinstance(part, Mapping) and "role" in part:
        return f"{part['role']}\x1f{_words(part.get('content'))}{_words(part.get('tool_calls') or '')}"
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    return json.dumps(part, ensure_ascii=False)


class SentPrefixes(Generic[Replica]):
    """Pieces of prompts, and the replicas they were sent to. Bounded; whose pieces are not met any more go first."""

    def __init__(self, most: int = MOST_PIECES) -> None:
        self._most = most
        self._sent: OrderedDict[bytes, set[Replica]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sent)

    def sent(self, pieces: Iterable[bytes], replica: Replica) -> None:
        """A prompt of these pieces is read by a replica from now on."""
        for piece in pieces:
            self._sent.setdefault(piece, set()).add(replica)
            self._sent.move_to_end(piece)
        while len(self._sent) > self._most:
            self._sent.popitem(last=False)

    def longest(self, pieces: Sequence[bytes], among: Iterable[Replica]) -> set[Replica]:
        """The replicas that were sent more of the pieces, from the first on, than the others; none where none was."""
        left: set[Replica] = set()
        for number, piece in enumerate(pieces):
            known = self._sent.get(piece, set()) & (left if number else set(among))
            if not known:
                break
            left = known
        return left

    def forget(self, gone: set[Replica]) -> None:
        """Replicas that are no more have read nothing."""
        for piece in [piece for piece, replicas in self._sent.items() if replicas & gone]:
            self._sent[piece] -= gone
            if not self._sent[piece]:
                del self._sent[piece]


def rendezvous(key: bytes, among: Sequence[Replica], name: Callable[[Replica], str]) -> Replica:
    """The one that every router chooses for a key, without asking another (Thaler and Ravishankar, 1998).

    A replica that comes or goes moves only the keys that are its own.

    Args:
        key: of what is to be placed.
        among: one at least.
        name: of a replica, the same in every process.
    """
    return max(among, key=lambda one: hashlib.blake2b(key + name(one).encode(), digest_size=8).digest())
