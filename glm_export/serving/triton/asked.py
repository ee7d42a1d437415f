"""What a Triton request asks: its tensors, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError, shown
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.model_folder import parse_json
from glm_export.serving.triton.tensors import (
    EXCLUDE,
    IDS,
    JSON,
    LENGTHS,
    MESSAGES,
    PROMPTS,
    SAMPLING,
    STOP_WORDS,
    STREAM,
    TEMPLATE,
    TEXT,
    TOOLS,
)
from glm_export.spec.option import options_of

Tensors = Mapping[str, NDArray[Any]]
DEFAULT_TOKENS = 128
"""Written at most where a request does not say, as ``glm-export generate`` has it."""
WHOLE = 1 << 31
MOST_STOPS = 16
JSON_ALONE = ("stop", "stop_token_ids", "ignore_eos")
"""Of ``sampling_parameters``, by vLLM's names; the others are those of tensors."""
KNOWN = (*LENGTHS, *SAMPLING, *JSON_ALONE, STOP_WORDS)
FLOATS = frozenset(name for name, dtype in SAMPLING.items() if dtype == "FP32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request. Of ``text``, ``ids`` and ``messages`` one is given, the others are None.

    ``echo``: whether the answer begins with what was asked. ``stop_token_ids``: end an answer, beside the model's own
    unless ``ignore_eos``.
    """

    text: str | None = None
    ids: tuple[int, ...] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    template_options: dict[str, Any] | None = None
    stream: bool = False
    echo: bool = False
    max_tokens: int = DEFAULT_TOKENS
    min_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stop_words: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


def read_request(tensors: Tensors) -> Asked:
    """What the tensors of a request say.

    Args:
        tensors: those that were given, by name: STRING as an array of bytes, others in their own dtype, ``[1]`` or
            ``[N]``.

    Raises:
        InputError: a value is none that can be had, or two of them contradict each other.
    """
    prompts = [name for name in PROMPTS if name in tensors]
    if len(prompts) != 1:
        raise InputError(f"a request has one of {', '.join(PROMPTS)}; found {' and '.join(prompts) or 'none'}")
    if MESSAGES not in tensors and (TOOLS in tensors or TEMPLATE in tensors):
        raise InputError(f"{TOOLS} and {TEMPLATE} belong to {MESSAGES}; found {prompts[0]}")
    return Asked(
        text=_text(tensors, TEXT) if TEXT in tensors else None,
        ids=tuple(int(token) for token in tensors[IDS].reshape(-1)) if IDS in tensors else None,
        messages=_objects(tensors, MESSAGES),
        tools=_objects(tensors, TOOLS),
        template_options=_object(tensors, TEMPLATE),
        stream=_flag(tensors, STREAM, unless_said=False),
        echo=not _flag(tensors, EXCLUDE, unless_said=True),
        **_parameters(tensors),
    )


def _parameters(tensors: Tensors) -> dict[str, Any]:
    """How tokens are chosen and where an answer ends, out of tensors and of ``sampling_parameters``."""
    said = _object(tensors, JSON) or {}
    unknown = sorted(said.keys() - set(KNOWN))
    if unknown:
        raise InputError(f"{JSON} has no {', '.join(map(shown, unknown))}; known: {', '.join(KNOWN)}")
    for name in (*LENGTHS, *SAMPLING, STOP_WORDS):
        if name in tensors:
            if name in said:
                raise InputError(f"{name} is said twice, as a tensor and in {JSON}; leave one of them out")
            said[name] = _texts(tensors, name) if name == STOP_WORDS else _value(tensors, name)
    asked: dict[str, Any] = {
        "max_tokens": _whole(said, "max_tokens", DEFAULT_TOKENS, least=1),
        "min_tokens": _whole(said, "min_tokens", 0, least=0),
        "sampling": _sampling(said),
        "stop_words": _stops(said),
        "stop_token_ids": _stop_ids(said),
        "ignore_eos": said.get("ignore_eos", False),
    }
    if not isinstance(asked["ignore_eos"], bool):
        raise InputError(f"ignore_eos is true or false, found {shown(asked['ignore_eos'])}")
    return asked


def _sampling(said: Mapping[str, Any]) -> Sampling:
    given: dict[str, Any] = {name: _number(said[name], name) for name in SAMPLING if said.get(name) is not None}
    if given.get("top_k") == -1:  # vLLM's word for all of them
        given["top_k"] = 0
    assert set(SAMPLING) == set(options_of(Sampling))
    return Sampling(**given)


def _number(value: Any, name: str) -> int | float:
    """A number; vLLM's own example writes them as texts."""
    try:
        if isinstance(value, str) and len(value) < 32:
            value = float(value) if name in FLOATS else int(value)
    except ValueError:
        pass
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is a number, found {shown(value)}")
    return value


def _whole(said: Mapping[str, Any], name: str, default: int, *, least: int) -> int:
    value = default if said.get(name) is None else _number(said[name], name)
    if not isinstance(value, int) or not least <= value < WHOLE:
        raise InputError(f"{name} is a whole number, {least} or more, found {shown(value)}")
    return value


def _stops(said: Mapping[str, Any]) -> tuple[str, ...]:
    given = [word for name in ("stop", STOP_WORDS) for word in _listed(said.get(name), name)]
    if not all(isinstance(word, str) for word in given) or len(given) > MOST_STOPS:
        raise InputError(f"{STOP_WORDS} are texts, {MOST_STOPS} at most, found {shown(given)}")
    return Stopping(stop_strings=tuple(given)).stop_strings


def _stop_ids(said: Mapping[str, Any]) -> tuple[int, ...]:
    given = _listed(said.get("stop_token_ids"), "stop_token_ids")
    if not all(type(token) is int for token in given) or len(given) > MOST_STOPS:
        raise InputError(f"stop_token_ids are whole numbers, {MOST_STOPS} at most, found {shown(given)}")
    return tuple(given)


def _listed(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise InputError(f"{name} is a list, found {shown(value)}")
    return value


def _value(tensors: Tensors, name: str) -> Any:
    """The one value of a tensor.

    A float32 is read as the shortest decimal that it is: 0.7 is 0.7 and not 0.699999988079071, as it is for who
    types it for another verb.
    """
    array = tensors[name].reshape(-1)
    if len(array) != 1:
        raise InputError(f"{name} has one value, found {len(array)}")
    value = array[0]
    return float(str(value)) if isinstance(value, np.float32) else value.item() if hasattr(value, "item") else value


def _flag(tensors: Tensors, name: str, *, unless_said: bool) -> bool:
    return bool(_value(tensors, name)) if name in tensors else unless_said


def _texts(tensors: Tensors, name: str) -> list[str]:
    found = []
    for value in tensors[name].reshape(-1):
        try:
            found.append(bytes(value).decode("utf-8") if not isinstance(value, str) else value)
        except UnicodeDecodeError as error:
            raise InputError(f"{name} should be UTF-8, found byte 0x{error.object[error.start]:02X}") from error
    return found


def _text(tensors: Tensors, name: str) -> str:
    texts = _texts(tensors, name)
    if len(texts) != 1:
        raise InputError(f"{name} is one text, found {len(texts)}")
    return texts[0]


def _json(tensors: Tensors, name: str) -> Any:
    try:
        return parse_json(_text(tensors, name))
    except ValueError as error:
        raise InputError(f"{name} is no JSON: {error}") from error


def _object(tensors: Tensors, name: str) -> dict[str, Any] | None:
    value = _json(tensors, name) if name in tensors else None
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{name} is a JSON object, found {shown(value)}")
    return value


def _objects(tensors: Tensors, name: str) -> list[dict[str, Any]] | None:
    value = _json(tensors, name) if name in tensors else None
    if value is None and name not in tensors:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise InputError(f"{name} is a JSON list of objects, found {shown(value)}")
    return value
