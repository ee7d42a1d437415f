"""Forms of text, and which tokens may come next."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError, shown
from glm_export.generation.grammars import trial
from glm_export.generation.grammars.vocabulary import GrammarVocabulary, llguidance
from glm_export.model_folder import parse_json

Kind = Literal["json_schema", "regex", "lark", "gbnf"]
ANY_OBJECT = '{"type": "object"}'
LONGEST = 1 << 18
"""Characters of a grammar."""
DEADLINE_SECONDS = 10.0
"""By the clock, for a grammar to be tried where the system cannot count what it computes."""


class Grammar:
    """A form, compiled once; each text that must have it takes a :meth:`matcher`."""

    def __init__(self, vocabulary: GrammarVocabulary, kind: Kind, text: str | Mapping[str, Any]) -> None:
        """Compile, in a process of its own first, which may compute for two seconds.

        Args:
            vocabulary: the model's.
            kind: ``json_schema`` (draft 2020-12, written in one line; :data:`ANY_OBJECT` is any object), ``regex``
                (Rust's), ``lark`` (llguidance's) or ``gbnf`` (llama.cpp's).
            text: the grammar; a schema may be an object.

        Raises:
            InputError: it is none of its kind, asks for what llguidance cannot do, or for too much.
            EnvironmentMissingError: llguidance is not installed.
        """
        if kind not in get_args(Kind):
            raise InputError(f"a grammar is one of {', '.join(get_args(Kind))}; found {shown(kind)}")
        library = llguidance()
        compiled = _tried(kind, _text_of(kind, text), Path(library.__file__).parents[1])
        self.vocabulary = vocabulary
        self._first: Any = library.LLMatcher(vocabulary.tokenizer, compiled, log_level=0)
        if self._first.is_error():
            raise _refused(kind, self._first.get_error())

    def matcher(self) -> GrammarMatcher:
        """For one text, from its beginning."""
        return GrammarMatcher(self.vocabulary, self._first.deep_copy())


class GrammarMatcher:
    """Where a text stands in its grammar.

    ``ended``: nothing but a stop id may follow. ``error``: why a text could not go on, where it ended before its form
    did: llguidance's limits for one step, or a grammar that asks for tokens no text has.
    """

    def __init__(self, vocabulary: GrammarVocabulary, matcher: Any) -> None:
        self._vocabulary, self._matcher = vocabulary, matcher
        self._begun = False
        self._allowed_V: NDArray[np.bool_] | None = None
        self.ended = False
        self.error: str | None = None

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Tokens that may come next: bool ``[V]``; stop ids where the text may end, and there is always one."""
        if self._allowed_V is None:
            self._allowed_V = self._mask()
        return self._allowed_V

    def accept(self, token: int) -> None:
        """Go on behind a token.

        Raises:
            InputError: it was not allowed.
        """
        if not (0 <= token < self._vocabulary.vocab_size and self.allowed[token]):
            raise InputError(f"token {token} is not allowed here; choose where `allowed` is True")
        self._allowed_V = None
        if token in self._vocabulary.stop_ids:
            self.ended = True
            return
        self._matcher.consume_token(token if self._begun else self._vocabulary.at_beginning(token))
        self._begun = True
        self.ended = bool(self._matcher.is_stopped())
        if self._matcher.is_error():
            self._fail(str(self._matcher.get_error()))

    def _mask(self) -> NDArray[np.bool_]:
        vocabulary = self._vocabulary
        if not self.ended:
            allowed_T = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) != 0
            allowed_T &= vocabulary.text_T
            allowed_V = allowed_T[: vocabulary.vocab_size] if self._begun else vocabulary.beginning(allowed_T)
            # Where nothing continues, the library has the text end, in its form or not.
            allowed_V[list(vocabulary.stop_ids)] = bool(self._matcher.is_accepting())
            if allowed_V.any():
                return allowed_V
            self._fail(str(self._matcher.get_error()) or "no token continues the text")
        only_stops_V = np.zeros(vocabulary.vocab_size, bool)
        only_stops_V[list(vocabulary.stop_ids)] = True
        return only_stops_V

    def _fail(self, error: str) -> None:
        self.error, self.ended = error.partition("\n")[0], True


def _text_of(kind: Kind, text: Any) -> str:
    """The grammar's text; a schema's only where it is JSON, in bounds."""
    if kind == "json_schema" and isinstance(text, Mapping):
        try:
            text = json.dumps(text, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"a JSON schema should be an object of JSON: {error}") from None
    if not isinstance(text, str):
        raise InputError(f"a grammar is a text, found {shown(text)}")
    if len(text) > LONGEST:
        raise InputError(f"a grammar has {LONGEST} characters at most, found {len(text)}; shorten it")
    if kind == "json_schema":
        try:
            parse_json(text)
        except ValueError as error:
            raise InputError(f"a JSON schema should be JSON: {error}") from None
    return text


def _tried(kind: Kind, text: str, library: Path) -> str:
    """The grammar in llguidance's form, compiled without harm."""
    command = [sys.executable, "-P", trial.__file__, str(library)]
    try:
        asked = json.dumps({"kind": kind, "text": text})
        done = subprocess.run(
            command, input=asked, capture_output=True, encoding="ascii", timeout=DEADLINE_SECONDS, check=False
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (subprocess.TimeoutExpired, ValueError):
        answer = {}
    if not answer:
        raise _refused(kind, f"it takes more than {trial.SECONDS} s to read, or is nested too deep")
    if "error" in answer:
        raise _refused(kind, answer["error"])
    grammar: str = answer["grammar"]
    return grammar


def _refused(kind: str, error: str) -> InputError:
    lines = [line.strip() for line in error.partition("<state>")[0].splitlines() if line.strip()]
    return InputError(f"the {kind} cannot be used as a grammar: {' '.join(lines[:4])}; simplify or correct it")
