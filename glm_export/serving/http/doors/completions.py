"""``POST /v1/completions``: a text written on, with what an evaluation asks of its tokens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request as HttpRequest
from fastapi.responses import Response

from glm_export.inputs.prompts import Prompt
from glm_export.serving.http.asking import (
    DEFAULT_COMPLETION_TOKENS,
    RowOptions,
    choices,
    forms_of,
    model_of,
    options_of,
    token_name,
)
from glm_export.serving.http.connection import while_connected
from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.forms import matcher_for
from glm_export.serving.http.schemas import CompletionRequest
from glm_export.serving.http.served import ServedModel
from glm_export.serving.http.streaming import event, streamed
from glm_export.serving.http.writing import Choice, Writing
from glm_export.serving.request import Event, TokenLogprobs

router = APIRouter()
MOST_PROMPTS = 256


@dataclass(slots=True, kw_only=True)
class Told:
    """Log-probabilities of a choice's tokens, as completions tell them."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    length: int = 0

    def add(self, model: ServedModel, token: int, found: TokenLogprobs | None) -> None:
        """One token more; the first of a prompt has none."""
        name = token_name(model, token)
        self.tokens.append(name)
        self.token_logprobs.append(found.logprob if found is not None else None)
        top: dict[str, float] = {}
        for other, logprob in found.top if found is not None else ():
            top.setdefault(token_name(model, other), logprob)
        self.top_logprobs.append(top if found is not None else None)
        self.text_offset.append(self.length)
        self.length += len(name)

    def to_json(self) -> dict[str, Any]:
        """By OpenAI's names."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


@router.post("/v1/completions")
async def complete(http: HttpRequest, asked: CompletionRequest) -> Response:
    """What the model writes behind each prompt."""
    model = model_of(http, asked.model)
    prompts = prompts_of(model, asked)
    most = DEFAULT_COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
    wanted = asked.logprobs is not None
    rows = RowOptions(
        max_new_tokens=most,
        top_logprobs=asked.logprobs,
        prompt_logprobs=bool(asked.echo) and wanted,
        matcher=await matcher_for(forms_of(http, model), asked),
    )
    made = choices(http, model, asked, prompts, rows)
    answer = _Answer(http, asked, model)
    writing = Writing(model, made, options_of(http), http.state.tally)
    if asked.stream:
        return streamed(writing, answer.stream(writing))
    with writing:
        return await while_connected(http, answer.whole(writing))


def prompts_of(model: ServedModel, asked: CompletionRequest) -> list[Prompt]:
    """Texts or ids, one or several.

    Raises:
        HttpError: there is none, or there are too many.
        InputError: one cannot be read.
    """
    given = asked.prompt
    alone = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    several: Sequence[str | list[int]] = [given] if alone else given  # type: ignore[list-item, assignment]
    if not 0 < len(several) * (asked.n or 1) <= MOST_PROMPTS:
        raise HttpError(400, f"1 to {MOST_PROMPTS} texts are written at once, found {len(several)}", param="prompt")
    return [model.prompt(model.session.encode(one) if isinstance(one, str) else one) for one in several]


class _Answer:
    """What is told of a completion's choices, whole or piece by piece."""

    def __init__(self, http: HttpRequest, asked: CompletionRequest, model: ServedModel) -> None:
        self._asked, self._model = asked, model
        self._id, self._created = f"cmpl-{http.state.request_id.removeprefix('req-')}", int(time.time())

    def _body(self, told: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.name,
            "choices": told,
        }

    async def whole(self, writing: Writing) -> dict[str, Any]:
        """All of it."""
        texts = [self._echoed(choice) for choice in writing.choices]
        told = [Told() for _ in writing.choices]
        async for choice, event_ in writing.events():
            texts[choice.index] += choice.new
            self._tell(choice, event_, told[choice.index])
        return self._body(
            [
                {
                    "index": choice.index,
                    "text": text,
                    "finish_reason": choice.finish_reason,
                    "logprobs": found.to_json() if self._asked.logprobs is not None else None,
                }
                for choice, text, found in zip(writing.choices, texts, told, strict=True)
            ]
        ) | {"usage": writing.usage}

    async def stream(self, writing: Writing) -> AsyncIterator[bytes]:
        """Piece by piece."""
        for choice in writing.choices:
            if text := self._echoed(choice):
                yield event(self._chunk(choice.index, text))
        async for choice, event_ in writing.events():
            told = Told()
            self._tell(choice, event_, told)
            if choice.new or told.tokens or choice.finish_reason is not None:
                yield event(self._chunk(choice.index, choice.new, reason=choice.finish_reason, told=told))
        if self._asked.include_usage:
            yield event(self._body([]) | {"usage": writing.usage})

    def _chunk(self, index: int, text: str, *, reason: str | None = None, told: Told | None = None) -> dict[str, Any]:
        logprobs = told.to_json() if told is not None and told.tokens else None
        return self._body([{"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}])

    def _echoed(self, choice: Choice) -> str:
        return self._model.tokenizer.decode(list(choice.request.prompt.ids)) if self._asked.echo else ""

    def _tell(self, choice: Choice, event_: Event, told: Told) -> None:
        """What an event brings of log-probabilities; those of an echoed prompt come with its first."""
        if event_.prompt_logprobs:
            told.add(self._model, choice.request.prompt.ids[0], None)
            for found in event_.prompt_logprobs:
                told.add(self._model, found.token, found)
        if event_.logprobs is not None:
            told.add(self._model, event_.logprobs.token, event_.logprobs)
