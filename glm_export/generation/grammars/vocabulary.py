"""A model's tokens as bytes, for grammars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.tokenizers import Tokenizer

INSTALL = "pip install 'glm-export[serve]'"


def llguidance() -> Any:
    """The library.

    Raises:
        EnvironmentMissingError: it is not installed.
    """
    try:
        import llguidance as library
    except ImportError as error:
        raise EnvironmentMissingError(f"grammars need llguidance ({error}); {INSTALL}") from error
    return library


def token_bytes(tokenizer: Tokenizer, vocab_size: int, *, first: bool = False) -> list[bytes | None]:
    """What each token adds to a text, in UTF-8; a character may be cut between two.

    None where it adds nothing, or is no text: special and added tokens, ids that no vocabulary has.

    Args:
        tokenizer: the model's.
        vocab_size: of the model, which may be more than the tokenizer's.
        first: of a token that a text begins with: SentencePiece's loses the blank in front.
    """
    detokenizer = tokenizer.detokenizer()
    return [detokenizer.bytes_of(index, first=first) for index in range(vocab_size)]


class _Tokens:
    """What llguidance asks a tokenizer for."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], stop: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, stop
        self._ids = {token: index for index, token in enumerate(tokens)}
        self._longest = max(map(len, tokens))

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of bytes, the longest first; they serve to look ahead only."""
        data = text.encode() if isinstance(text, str) else text
        ids, at = list[int](), 0
        while at < len(data):
            size = next((n for n in range(self._longest, 0, -1) if data[at : at + n] in self._ids), 1)
            ids.append(self._ids.get(data[at : at + size], self.eos_token_id))
            at += size
        return ids


class GrammarVocabulary:
    """A tokenizer made ready once for all grammars.

    Behind the model's own tokens stand those of them that mean something else where a text begins: T in all.
    ``text_T``: which a text may be made of, whatever its grammar says; bool ``[T]``.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Iterable[int]) -> None:
        """Read the tokens; a second for large vocabularies.

        Args:
            tokenizer: the model's.
            vocab_size: V, how many logits the model has.
            stop_ids: what ends a text.

        Raises:
            EnvironmentMissingError: llguidance is not installed.
            InputError: the tokenizer's tokens are no bytes (BERT's word pieces), or nothing ends a text.
        """
        self.vocab_size = vocab_size
        self.stop_ids = tuple(sorted(index for index in set(stop_ids) if 0 <= index < vocab_size))
        plain = token_bytes(tokenizer, vocab_size)
        if not self.stop_ids or not any(plain):
            missing = "token that ends a text" if any(plain) else "tokens that are bytes"
            raise InputError(f"grammars need {missing}, and this model's tokenizer has none; leave the grammar out")
        begins = token_bytes(tokenizer, vocab_size, first=True)
        self._variants = [i for i in range(vocab_size) if begins[i] != plain[i] and plain[i] is not None]
        texts = [*plain, *(begins[index] for index in self._variants)]
        special = [index for index, text in enumerate(texts) if not text or index in self.stop_ids]
        tokens = [text or b"" for text in texts]
        for index in special:  # llguidance's spelling: no text has this byte
            tokens[index] = b"\xff[%d]" % index
        library = llguidance()
        wrapped = library.TokenizerWrapper(_Tokens(tokens, special, self.stop_ids[0]))
        self.tokenizer: Any = library.LLTokenizer(wrapped, n_vocab=len(tokens), eos_token=list(self.stop_ids))
        self.text_T = np.ones(len(tokens), bool)
        self.text_T[special] = False
        self.text_T[list(self.stop_ids)] = True

    def beginning(self, allowed_T: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which tokens may begin a text: bool ``[V]``, given what the grammar allows of all, ``[T]``."""
        allowed_V = allowed_T[: self.vocab_size].copy()
        allowed_V[self._variants] = allowed_T[self.vocab_size :]
        return allowed_V

    def at_beginning(self, token: int) -> int:
        """The place, below T, of a token that begins a text."""
        return self._place.get(token, token)

    @cached_property
    def _place(self) -> dict[int, int]:
        return {index: self.vocab_size + place for place, index in enumerate(self._variants)}
