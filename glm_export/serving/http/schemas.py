"""What requests may say: OpenAI's fields, and those vLLM has besides. What is not known is left alone."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from glm_export.generation.sampling import Sampling

TokenId = int
MOST_CHOICES, MOST_TOP, MOST_STOPS, MOST_BIASED = 32, 20, 16, 1024
WHOLE = 1 << 31


class StreamOptions(BaseModel):
    """Of a stream."""

    include_usage: bool = False


class Written(BaseModel):
    """What chat and completions have in common."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str | None = None
    max_tokens: int | None = Field(None, ge=0, lt=WHOLE)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=WHOLE)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MOST_STOPS)
    min_tokens: int | None = Field(None, ge=0, lt=WHOLE)
    ignore_eos: bool | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, float] | None = Field(None, max_length=MOST_BIASED)
    priority: int | None = Field(None, ge=-100, le=100)
    response_format: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    grammar: str | None = None

    def sampling(self, choice: int = 0, temperature: float = 1.0) -> Sampling:
        """How tokens of one choice are drawn; each choice draws its own."""
        seed = None if self.seed is None else (self.seed % (1 << 62)) + choice
        asked = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": seed,
            "top_k": max(0, self.top_k) if self.top_k is not None else None,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
        }
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return Sampling(**({"temperature": temperature} | given))

    @property
    def stops(self) -> list[str]:
        """Stop strings, none of them empty."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Written):
    """``POST /v1/chat/completions``."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=0, lt=WHOLE)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    tools: list[dict[str, Any]] | None = Field(None, max_length=256)
    tool_choice: Any = None
    documents: list[dict[str, Any]] | None = Field(None, max_length=256)
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Written):
    """``POST /v1/completions``."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)


class InfillRequest(Written):
    """``POST /v1/infill``: blanks in a text, filled from the left."""

    text: str


class ScoreRequest(BaseModel):
    """``POST /v1/score``: which label fits a pattern's blank."""

    model: str | None = None
    text: str
    pattern: str
    labels: list[str] = Field(min_length=1, max_length=256)
    normalize: bool = True


class TokenizeRequest(BaseModel):
    """``POST /tokenize``: a text, or a conversation as the model would read it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(BaseModel):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: list[TokenId] = Field(max_length=1 << 20)


class TemplateRequest(BaseModel):
    """``POST /apply-template``."""

    model: str | None = None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
