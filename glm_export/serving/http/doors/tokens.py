"""Texts to ids and back, by vLLM's names; what evaluations ask of a tokenizer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request as HttpRequest

from glm_export.serving.http.asking import as_text, model_of
from glm_export.serving.http.failures import HttpError
from glm_export.serving.http.schemas import DetokenizeRequest, TemplateRequest, TokenizeRequest

router = APIRouter()


@router.post("/tokenize")
async def tokenize(http: HttpRequest, asked: TokenizeRequest) -> dict[str, Any]:
    """Ids of a text or a conversation."""
    model = model_of(http, asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise HttpError(400, "give prompt or messages, one of them")
    if asked.messages is not None:
        ids = model.tokenizer.chat(as_text(http, model, asked.messages))
    else:
        text = asked.prompt or ""
        ids = model.tokenizer.encode(text) if asked.add_special_tokens else model.tokenizer.encode_plain(text)
    return {"tokens": ids, "count": len(ids), "max_model_len": model.context}


@router.post("/detokenize")
async def detokenize(http: HttpRequest, asked: DetokenizeRequest) -> dict[str, Any]:
    """The text of ids."""
    model = model_of(http, asked.model)
    size = model.session.config.vocab_size
    strange = [token for token in asked.tokens if not 0 <= token < size]
    if strange:
        raise HttpError(400, f"ids are from 0 to {size - 1}, found {strange[0]}", param="tokens")
    return {"prompt": model.tokenizer.decode(asked.tokens)}


@router.post("/apply-template")
async def apply_template(http: HttpRequest, asked: TemplateRequest) -> dict[str, Any]:
    """A conversation as the model would read it: ids, and their text with the names of special tokens."""
    model = model_of(http, asked.model)
    ids = model.tokenizer.chat(
        as_text(http, model, asked.messages),
        tools=as_text(http, model, asked.tools),
        options=asked.chat_template_kwargs,
    )
    detokenizer = model.tokenizer.detokenizer(names=True)
    return {"prompt": detokenizer.feed(ids) + detokenizer.finish(), "tokens": ids}


@router.get("/tokenizer_info")
async def tokenizer_info(http: HttpRequest) -> dict[str, Any]:
    """What an evaluation asks before it sends ids."""
    model = model_of(http, None)
    tokenizer = model.tokenizer
    ends = sorted(model.stop_ids)
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": model.session.config.vocab_size,
        "eos_token": tokenizer.decode(ends[:1]) or None,
        "eos_token_id": ends[0] if ends else None,
        "bos_token": None,
        "pad_token_id": model.session.config.pad_token_id,
        "max_model_len": model.context,
        "chat_template": None,
    }
