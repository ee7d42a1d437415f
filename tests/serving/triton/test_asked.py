"""What a request's tensors say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glm_export.errors import InputError
from glm_export.generation.sampling import Sampling
from glm_export.serving.triton.asked import Asked, read_request


def tensors(**given: Any) -> dict[str, np.ndarray]:
    """As Triton hands them over: texts are bytes."""
    kinds: dict[str, type[np.generic]] = {
        "input_ids": np.int32,
        "max_tokens": np.int32,
        "min_tokens": np.int32,
        "top_k": np.int32,
    }
    kinds |= {"seed": np.uint64, "stream": np.bool_, "exclude_input_in_output": np.bool_}
    found = {}
    for name, value in given.items():
        items = value if isinstance(value, list) else [value]
        if items and isinstance(items[0], str):
            found[name] = np.array([item.encode() for item in items], np.object_)
        elif items and isinstance(items[0], bytes):
            found[name] = np.array(items, np.object_)
        else:
            found[name] = np.array(items, kinds.get(name, np.float32))
    return found


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"text_input": "春"}, Asked(text="春")),
        ({"text_input": ""}, Asked(text="")),
        ({"input_ids": [1, 2]}, Asked(ids=(1, 2))),
        ({"input_ids": []}, Asked(ids=())),
        (
            {"messages": '[{"role": "user"}]', "tools": "[{}]", "chat_template_kwargs": '{"enable_thinking": false}'},
            Asked(messages=[{"role": "user"}], tools=[{}], template_options={"enable_thinking": False}),
        ),
        (
            {"text_input": "春", "stream": True, "exclude_input_in_output": False},
            Asked(text="春", stream=True, echo=True),
        ),
        (
            {"text_input": "春", "max_tokens": 3, "min_tokens": 2, "stop_words": ["a", "b"]},
            Asked(text="春", max_tokens=3, min_tokens=2, stop_words=("a", "b")),
        ),
        # As it is typed, and not as float32 has it.
        (
            {"text_input": "春", "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": (1 << 63) + 1},
            Asked(text="春", sampling=Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=(1 << 63) + 1)),
        ),
        (
            {"text_input": "春", "sampling_parameters": '{"temperature": "0.1", "top_k": -1, "stop": "a"}'},
            Asked(text="春", sampling=Sampling(temperature=0.1), stop_words=("a",)),
        ),
        (
            {"text_input": "春", "sampling_parameters": '{"stop_token_ids": [2], "ignore_eos": true, "seed": null}'},
            Asked(text="春", stop_token_ids=(2,), ignore_eos=True),
        ),
    ],
)
def test_what_is_said(given: dict[str, Any], asked: Asked) -> None:
    assert read_request(tensors(**given)) == asked


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "a request has one of text_input, input_ids, messages; found none"),
        ({"text_input": "春", "input_ids": [1]}, "found text_input and input_ids"),
        ({"text_input": "春", "tools": "[{}]"}, "belong to messages; found text_input"),
        ({"text_input": b"\xff"}, "text_input should be UTF-8, found byte 0xFF"),
        ({"text_input": ["a", "b"]}, "text_input is one text, found 2"),
        ({"messages": "[]"}, "messages is a JSON list of objects"),
        ({"messages": "null"}, "messages is a JSON list of objects, found nothing"),
        ({"messages": "{"}, "messages is no JSON"),
        ({"text_input": "a", "sampling_parameters": "[]"}, "sampling_parameters is a JSON object"),
        ({"text_input": "a", "sampling_parameters": '{"best_of": 2}'}, "has no 'best_of'; known: max_tokens, "),
        ({"text_input": "a", "sampling_parameters": '{"seed": 1}', "seed": 1}, "seed is said twice"),
        ({"text_input": "a", "sampling_parameters": '{"top_k": "many"}'}, "top_k is a number, found 'many'"),
        ({"text_input": "a", "sampling_parameters": '{"temperature": true}'}, "temperature is a number, found true"),
        ({"text_input": "a", "sampling_parameters": '{"ignore_eos": 1}'}, "ignore_eos is true or false, found 1"),
        ({"text_input": "a", "sampling_parameters": '{"stop": {}}'}, "stop is a list"),
        ({"text_input": "a", "sampling_parameters": '{"stop": ["\\ud800"]}'}, "sampling_parameters is no JSON"),
        ({"text_input": "a", "sampling_parameters": '{"stop_token_ids": ["2"]}'}, "stop_token_ids are whole numbers"),
        ({"text_input": "a", "temperature": -1.0}, "temperature must be a number, 0 "),
        ({"text_input": "a", "temperature": float("nan")}, "temperature must be a number, 0 "),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens is a whole number, 1 or more, found 0"),
        ({"text_input": "a", "max_tokens": [1, 2]}, "max_tokens has one value, found 2"),
        ({"text_input": "a", "stop_words": ["a", ""]}, "a stop string needs at least one character"),
        ({"text_input": "a", "stop_words": ["a"] * 17}, "stop_words are texts, 16 at most"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        read_request(tensors(**given))
    assert told in str(error.value)
