"""What GLM was made for: ``POST /v1/infill`` fills the blanks of a text, ``POST /v1/score`` judges by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request as HttpRequest
from fastapi.responses import Response

from glm_export.generation.infilling import LabelScore, blank_context, blank_tokenizer, filled, ranked
from glm_export.generation.sampling import Sampling
from glm_export.serving.http.asking import RowOptions, choices, model_of, options_of
from glm_export.serving.http.connection import while_connected
from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.schemas import InfillRequest, ScoreRequest
from glm_export.serving.http.served import ServedModel
from glm_export.serving.http.writing import Choice, Writing
from glm_export.serving.request import Request
from glm_export.serving.written_text import WrittenText

router = APIRouter()
FILL_TOKENS = 128


@router.post("/v1/infill")
async def infill(http: HttpRequest, asked: InfillRequest) -> Response:
    """Each blank in turn, from the left; what was written is part of the text for the next."""
    if asked.stream or (asked.n or 1) > 1:
        raise HttpError(400, "blanks are filled once, and told when all are; leave stream and n out")
    return await while_connected(http, _fill(http, model_of(http, asked.model), asked))


async def _fill(http: HttpRequest, model: ServedModel, asked: InfillRequest) -> dict[str, Any]:
    tokenizer = blank_tokenizer(model.session)
    ids = blank_context(tokenizer, asked.text)
    blanks = set(tokenizer.mask_ids.values())
    fills, read, written = [], 0, 0
    for number in range(sum(token in blanks for token in ids)):
        place = next(index for index, token in enumerate(ids) if token in blanks)
        prompt = model.prompt([*ids, tokenizer.sop_id])
        most = FILL_TOKENS if asked.max_tokens is None else asked.max_tokens
        (choice,) = choices(http, model, asked, [prompt], RowOptions(max_new_tokens=most))
        choice.request = replace(choice.request, key=f"{choice.request.key}-{number}")
        with Writing(model, [choice], options_of(http), http.state.tally) as writing:
            async for _ in writing.events():
                pass
        # A blank within an answer would be filled forever.
        new = [token for token in choice.tokens if token not in blanks]
        fills.append(tokenizer.decode(new).strip())
        ids = [*ids[:place], *new, *ids[place + 1 :]]
        read, written = read + len(prompt.ids), written + len(choice.tokens)
    whole = filled(tokenizer, asked.text, fills)
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {"object": "infill", "model": model.name, "text": whole.text, "fills": list(whole.fills), "usage": usage}


@router.post("/v1/score")
async def score(http: HttpRequest, asked: ScoreRequest) -> Response:
    """Labels by how likely each is in the pattern's blank, the likeliest first."""
    return await while_connected(http, _score(http, model_of(http, asked.model), asked))


async def _score(http: HttpRequest, model: ServedModel, asked: ScoreRequest) -> dict[str, Any]:
    tokenizer = blank_tokenizer(model.session)
    if "{}" not in asked.pattern:
        raise HttpError(400, "the pattern has no {} for the text", param="pattern")
    context = [*blank_context(tokenizer, asked.pattern.replace("{}", asked.text)), tokenizer.sop_id]
    labels = [tokenizer.encode_plain(label) for label in asked.labels]
    made = []
    for number, (label, ids) in enumerate(zip(asked.labels, labels, strict=True)):
        if not ids:
            raise HttpError(400, f"the label {label!r} tokenizes to nothing; give it a word", param="labels")
        request = Request(
            key=f"{http.state.key}-{number}",
            prompt=model.prompt([*context, *ids]),
            sampling=Sampling(),
            max_new_tokens=0,
            tenant=http.state.tenant,
            prompt_logprobs=True,
        )
        made.append(Choice(index=number, request=request, text=WrittenText(tokenizer.detokenizer())))
    totals = [0.0] * len(made)
    with Writing(model, made, options_of(http), http.state.tally) as writing:
        async for choice, event in writing.events():
            own = event.prompt_logprobs[len(context) - 1 :]
            totals[choice.index] += sum(found.logprob for found in own)
    scores = [
        LabelScore(label=label, tokens=len(ids), log_probability=total)
        for label, ids, total in zip(asked.labels, labels, totals, strict=True)
    ]
    found = [
        {"label": one.label, "tokens": one.tokens, "log_probability": one.log_probability, "mean": one.mean}
        for one in ranked(scores, normalize=asked.normalize)
    ]
    return {"object": "list", "model": model.name, "data": found}
