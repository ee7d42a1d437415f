"""Inputs and outputs of the model: their names, as users of tensorrtllm_backend and vllm_backend know them."""

from __future__ import annotations

from dataclasses import dataclass

ANY = -1
"""A dim of any size, as Triton writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonTensor:
    """One input or output. ``dtype``: Triton's name without ``TYPE_``. ``size``: of its one dim, or :data:`ANY`."""

    name: str
    dtype: str
    size: int = 1


TEXT, IDS, MESSAGES, TOOLS, TEMPLATE = "text_input", "input_ids", "messages", "tools", "chat_template_kwargs"
STREAM, EXCLUDE, JSON = "stream", "exclude_input_in_output", "sampling_parameters"
PROMPTS = (TEXT, IDS, MESSAGES)
"""A request has one of these."""
STOP_WORDS = "stop_words"
SAMPLING = {
    "temperature": "FP32",
    "top_p": "FP32",
    "top_k": "INT32",
    "min_p": "FP32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "seed": "UINT64",
}
"""Fields of :class:`~glm_export.generation.sampling.Sampling`, each a tensor of one value."""
LENGTHS = ("max_tokens", "min_tokens")
INPUTS = (
    TritonTensor(name=TEXT, dtype="STRING"),
    TritonTensor(name=IDS, dtype="INT32", size=ANY),
    TritonTensor(name=MESSAGES, dtype="STRING"),
    TritonTensor(name=TOOLS, dtype="STRING"),
    TritonTensor(name=TEMPLATE, dtype="STRING"),
    TritonTensor(name=STREAM, dtype="BOOL"),
    TritonTensor(name=EXCLUDE, dtype="BOOL"),
    TritonTensor(name=JSON, dtype="STRING"),
    *(TritonTensor(name=name, dtype="INT32") for name in LENGTHS),
    *(TritonTensor(name=name, dtype=dtype) for name, dtype in SAMPLING.items()),
    TritonTensor(name=STOP_WORDS, dtype="STRING", size=ANY),
)
"""All of them optional."""

TEXT_OUT, REASON, IDS_OUT, READ, WRITTEN = (
    "text_output",
    "finish_reason",
    "output_ids",
    "num_input_tokens",
    "num_output_tokens",
)
OUTPUTS = (
    TritonTensor(name=TEXT_OUT, dtype="STRING"),
    TritonTensor(name=REASON, dtype="STRING"),
    TritonTensor(name=IDS_OUT, dtype="INT32", size=ANY),
    TritonTensor(name=READ, dtype="UINT32"),
    TritonTensor(name=WRITTEN, dtype="UINT32"),
)
"""Every response has all of them that its request names; a request that names none gets all."""
