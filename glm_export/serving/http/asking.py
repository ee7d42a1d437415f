"""From what a request says to rows of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request as HttpRequest

from glm_export.inputs.prompts import Prompt
from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.forms import Forms
from glm_export.serving.http.literal import literal, names_of
from glm_export.serving.http.schemas import Written
from glm_export.serving.http.served import ServedModel
from glm_export.serving.http.writing import Choice
from glm_export.serving.options import ServeOptions
from glm_export.serving.request import Matcher, Request
from glm_export.serving.written_text import WrittenText

DEFAULT_COMPLETION_TOKENS = 16
"""Of a completion that does not say, as OpenAI has it; a chat may fill the context."""


def model_of(http: HttpRequest, name: str | None) -> ServedModel:
    """The model a request names; the first one where it names none.

    Raises:
        HttpError: there is none of this name.
    """
    models: dict[str, ServedModel] = http.app.state.models
    if not name:
        return next(iter(models.values()))
    if name not in models:
        known = ", ".join(models)
        raise HttpError(404, f"there is no model {name!r}; known: {known}", param="model", code="model_not_found")
    return models[name]


def options_of(http: HttpRequest) -> ServeOptions:
    """How the server was started."""
    options: ServeOptions = http.app.state.options
    return options


def as_text(http: HttpRequest, model: ServedModel, given: Any) -> Any:
    """What people write, as the model is told it: names of special tokens in it are text, unless they are allowed."""
    return given if options_of(http).allow_special_tokens else literal(given, names_of(model.tokenizer))


def forms_of(http: HttpRequest, model: ServedModel) -> Forms:
    """Grammars of a model."""
    known: dict[str, Forms] = http.app.state.forms
    return known[model.name]


def biases(asked: Written, model: ServedModel) -> dict[int, float]:
    """What is added to logits, by token.

    Raises:
        HttpError: a key is no token of the model, or a value beyond -100 to 100.
    """
    found: dict[int, float] = {}
    for key, value in (asked.logit_bias or {}).items():
        if not key.isascii() or not key.isdigit() or int(key) >= model.session.config.vocab_size:
            raise HttpError(400, f"logit_bias wants ids of tokens as keys, found {key[:40]!r}", param="logit_bias")
        if not -100 <= value <= 100:
            raise HttpError(400, f"logit_bias wants values from -100 to 100, found {value}", param="logit_bias")
        found[int(key)] = value
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """What a door asks of its rows.

    ``max_new_tokens``: of each. ``names``: whether text has the names of special tokens that say something.
    ``top_logprobs``: alternatives told with each token; None tells none. ``prompt_logprobs``: those of the prompts,
    too. ``matcher``: makes one for each row, where a grammar says what may be written.
    """

    max_new_tokens: int
    names: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    matcher: Callable[[], Matcher] | None = None


def choices(
    http: HttpRequest, model: ServedModel, asked: Written, prompts: Sequence[Prompt], rows: RowOptions
) -> list[Choice]:
    """Rows for each prompt, ``n`` of each.

    Args:
        http: names the request and whose it is.
        model: which writes.
        asked: how tokens are drawn, and where a row ends.
        prompts: read by the model.
        rows: what else is asked of them.

    Raises:
        HttpError: what is asked does not go together.
    """
    if asked.ignore_eos and rows.matcher is not None:
        raise HttpError(400, "a text with a form ends where that is complete; leave ignore_eos out", param="ignore_eos")
    # An id that is no token never comes.
    own = (token for token in asked.stop_token_ids or () if 0 <= token < model.session.config.vocab_size)
    stop_ids = frozenset(own) | (frozenset() if asked.ignore_eos else model.stop_ids)
    bias = biases(asked, model)
    made: list[Choice] = []
    for prompt in prompts:
        for number in range(asked.n or 1):
            text = WrittenText(model.tokenizer.detokenizer(names=rows.names), asked.stops)
            request = Request(
                key=f"{http.state.key}-{len(made)}",
                prompt=prompt,
                sampling=replace(asked.sampling(number), logit_bias=bias),
                max_new_tokens=rows.max_new_tokens,
                min_new_tokens=asked.min_tokens or 0,
                stop_ids=stop_ids,
                ends=text.push,
                tenant=http.state.tenant,
                priority=asked.priority or 0,
                top_logprobs=rows.top_logprobs,
                prompt_logprobs=rows.prompt_logprobs,
                matcher=rows.matcher() if rows.matcher is not None else None,
            )
            made.append(Choice(index=len(made), request=request, text=text))
    return made


def token_name(model: ServedModel, token: int) -> str:
    """A token as a text of its own."""
    return model.tokenizer.decode([token])


def token_object(model: ServedModel, token: int, logprob: float) -> dict[str, Any]:
    """A token with its log-probability, as chats tell it."""
    name = token_name(model, token)
    return {"token": name, "logprob": logprob, "bytes": list(name.encode())}
