"""The form an answer must have: a JSON schema, any JSON object, or a grammar."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from glm_export.generation.grammars import Grammar, GrammarVocabulary
from glm_export.generation.grammars.grammar import ANY_OBJECT, Kind
from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.schemas import Written
from glm_export.serving.http.served import ServedModel
from glm_export.serving.request import Matcher

KEPT = 64
"""Compiled grammars of one model, the last that were asked for."""
FORMS = "text, json_object or json_schema"


@dataclass(slots=True)
class Forms:
    """Grammars of one model, compiled once; used by several threads."""

    model: ServedModel
    _vocabulary: GrammarVocabulary | None = None
    _kept: OrderedDict[tuple[Kind, str], Grammar] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def grammar(self, kind: Kind, text: str) -> Grammar:
        """Compiled, now or before.

        Raises:
            InputError: it is no grammar, or asks for too much.
        """
        with self._lock:
            if (kind, text) not in self._kept:
                if self._vocabulary is None:
                    size = self.model.session.config.vocab_size
                    self._vocabulary = GrammarVocabulary(self.model.tokenizer, size, self.model.stop_ids)
                self._kept[kind, text] = Grammar(self._vocabulary, kind, text)
            self._kept.move_to_end((kind, text))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[kind, text]


async def matcher_for(forms: Forms, asked: Written) -> Callable[[], Matcher] | None:
    """Makes what says which tokens may come; None where an answer may have any form.

    Raises:
        HttpError: several forms are asked for, or one nobody knows.
        InputError: the form is no grammar.
    """
    found = form_of(asked)
    if found is None:
        return None
    # Compiling takes up to seconds, in which others are answered.
    grammar = await asyncio.to_thread(forms.grammar, *found)
    return grammar.matcher


def form_of(asked: Written) -> tuple[Kind, str] | None:
    """Kind and text of the one form that is asked for, by OpenAI's field or vLLM's and llama.cpp's.

    Raises:
        HttpError: there are several, or it is none of those known.
    """
    given: list[tuple[Kind, Any]] = [
        ("json_schema", asked.guided_json), ("regex", asked.guided_regex), ("lark", asked.guided_grammar),
        ("gbnf", asked.grammar),
    ]  # fmt: skip
    if asked.response_format is not None:
        given.append(("json_schema", _schema(asked.response_format)))
    wanted = [(kind, value) for kind, value in given if value is not None]
    if len(wanted) > 1:
        raise HttpError(400, "an answer has one form: response_format, guided_… or grammar, one of them")
    if not wanted:
        return None
    ((kind, value),) = wanted
    return kind, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _schema(response_format: dict[str, Any]) -> Any:
    match response_format.get("type"):
        case "text":
            return None
        case "json_object":
            return ANY_OBJECT
        case "json_schema":
            holder = response_format.get("json_schema")
            if isinstance(holder, dict) and isinstance(holder.get("schema"), dict):
                return holder["schema"]
            raise HttpError(400, "response_format.json_schema.schema should be an object", param="response_format")
    raise HttpError(400, f"response_format.type is {FORMS}", param="response_format")
