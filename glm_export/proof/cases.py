"""What is compared: prefill, chunks, cached decode, padded batches, the end of the context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from glm_export.calibration.corpus.load import load_corpus
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import ComparisonFailedError
from glm_export.generation.finite import way_out
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.proof.compare import EmptyComparisonError
from glm_export.proof.options import CheckOptions
from glm_export.sessions.session import SessionDescription, Tensors
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import (
    BATCH,
    PAST,
    Cache,
    Signature,
    past_names,
    present_names,
)

SINGLE_PROMPT, BATCH_PROMPTS = 33, (17, 9, 2)
"""Tokens of the prompts compared."""
RANDOM_PAST_BYTES = 256 << 20
LONGEST_TEXT = 256
"""Tokens of a text that is compared: logits of each are held on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call to compare: its feeds, and the past the reference computed for it."""

    name: str
    tensors: Tensors


class SpeaksAlone(Protocol):
    """What pasts are asked of: a session, or a model that is one layer at a time."""

    config: GlmConfig

    def run(self, tensors: Tensors) -> Tensors:
        """One call with the cache handed in and out."""

    def first_past(self, rows: int) -> Tensors:
        """What a batch begins with."""

    def describe(self) -> SessionDescription:
        """Which runtime it is."""


def parity_cases(
    reference: SpeaksAlone,
    config: GlmConfig,
    signature: Signature,
    cache: Cache = Cache.GROWING,
    max_tokens: int = 0,
    *,
    rows: int = len(BATCH_PROMPTS),
    tokens: int = SINGLE_PROMPT,
) -> list[Case]:
    """Prefill, chunked prefill, cached decode, a padded batch and its decode, and the end of the context.

    Token ids are random; pasts come from the reference, so each case stands alone.

    Args:
        reference: computes the pasts.
        config: the sizes.
        signature: the canonical one; cases are in its layout.
        cache: the program's. Where a token's position is its column, far positions need a long past: random keys.
        max_tokens: tokens the program can hold; 0: the context.
        rows: at most, in the batch.
        tokens: at most, read at once.

    Raises:
        EmptyComparisonError: the reference's keys or values are not finite.
        ComparisonFailedError: they are beyond what the program's cache can hold.
    """
    random = np.random.default_rng(0)
    max_tokens = min(max_tokens or config.max_columns, config.max_columns)

    def token() -> int:
        return int(random.integers(0, config.vocab_size))

    def prompt(length: int) -> Prompt:
        return random_prompt(random, max(2, min(length, max_tokens - config.prefix_length - 8, tokens)), config)

    single = prefill_feeds([prompt(SINGLE_PROMPT)], config)
    head, tail = single.chunks(max(1, single.input_ids.shape[1] * 2 // 3))[:2]
    batch = prefill_feeds([prompt(length) for length in BATCH_PROMPTS[:rows]], config)
    last = min(max_tokens, config.max_positions) - 1
    pairs: list[tuple[str, Feeds | None, Feeds]] = [
        ("prefill", None, single),
        ("chunk on a past", head, tail),
        ("decode", single, single.next_step([token()], last)),
        ("padded batch", None, batch),
        ("batch decode", batch, batch.next_step([token() for _ in range(batch.batch)], last)),
    ]
    cases = [Case(name=name, tensors=_tensors(reference, signature, past, feeds)) for name, past, feeds in pairs]
    distant = prefill_feeds([prompt(16)], config)
    if cache is Cache.GROWING or config.prefix_mask:
        far = replace(
            distant, position_ids=distant.position_ids + config.max_positions - 1 - distant.position_ids.max()
        )
        return [*cases, Case(name="end of context", tensors=_tensors(reference, signature, None, far))]
    return [*cases, _behind_random_past(random, config, signature, distant, max_tokens)]


def _behind_random_past(
    random: np.random.Generator, config: GlmConfig, signature: Signature, feeds: Feeds, max_tokens: int
) -> Case:
    """A prompt at the end of what the program can hold, or of what fits :data:`RANDOM_PAST_BYTES`."""
    column_bytes = 4 * config.num_layers * 2 * config.kv_size
    columns = min(max_tokens - feeds.input_ids.shape[1], RANDOM_PAST_BYTES // column_bytes)
    spec = signature.input(past_names(0)[0])
    shape = spec.shape(**{BATCH: 1, PAST: columns})
    names = [name for layer in range(config.num_layers) for name in past_names(layer)]
    past = {name: random.standard_normal(shape, np.float32).astype(np.dtype(spec.dtype)) for name in names}
    placed = replace(
        feeds,
        attention_mask=np.ones((1, columns + feeds.input_ids.shape[1]), np.int64),
        position_ids=feeds.position_ids - feeds.prefix_length + columns,
    )
    end = columns + feeds.input_ids.shape[1]
    return Case(
        name="end of context" if end == config.max_positions else f"at {end} tokens", tensors=placed.named() | past
    )


def text_cases(
    checkpoint: Checkpoint, options: CheckOptions, signature: Signature, reference: SpeaksAlone, most_tokens: int
) -> list[Case]:
    """Prompts of a corpus, each read at once.

    Args:
        checkpoint: whose tokenizer reads the text.
        options: which corpus, and how much of it.
        signature: the canonical one.
        reference: has what a batch begins with.
        most_tokens: of a prompt.

    Raises:
        InputError: the corpus cannot be read.
    """
    config = checkpoint.config
    assert options.corpus is not None
    length = min(LONGEST_TEXT, most_tokens - config.prefix_length)
    corpus = load_corpus(
        options.corpus, checkpoint.tokenizer, config, sequence_length=length, max_samples=options.max_samples
    )
    prompts = [prefill_feeds([sample.prompt], config) for sample in corpus.samples]
    return [
        Case(name=f"text {number}", tensors=_tensors(reference, signature, None, feeds))
        for number, feeds in enumerate(prompts, 1)
    ]


def random_prompt(random: np.random.Generator, length: int, config: GlmConfig) -> Prompt:
    """Random ids; for a prefix family two thirds are context, and the written part stands for a place within it."""
    ids = tuple(int(i) for i in random.integers(0, config.vocab_size, length))
    if not config.prefix_mask:
        return Prompt(ids=ids)
    context = max(1, length * 2 // 3)
    return Prompt(ids=ids, context_length=context, mask_position=int(random.integers(0, context)))


def _tensors(reference: SpeaksAlone, signature: Signature, past: Feeds | None, feeds: Feeds) -> Tensors:
    layers = range(reference.config.num_layers)
    cache_dtype = np.dtype(signature.input(past_names(0)[0]).dtype)
    beginning = {name: array.astype(cache_dtype) for name, array in reference.first_past(feeds.batch).items()}
    tensors: Tensors = {**feeds.named(), **beginning}
    if past is not None:
        before = reference.run({**past.named(), **beginning})
        for i in layers:
            tensors |= {name: before[kept] for name, kept in zip(past_names(i), present_names(i), strict=True)}
    return {name: _kept(array, cache_dtype, reference) for name, array in tensors.items()}


def _kept(array: NDArray[np.generic], dtype: np.dtype[Any], reference: SpeaksAlone) -> NDArray[np.generic]:
    """A past as the program keeps it; other inputs as they are."""
    if array.dtype.kind != "f":
        return array
    described = reference.describe()
    if not np.isfinite(array).all():
        raise EmptyComparisonError(
            f"the reference ({described.runtime} {described.dtype}) computes keys or values that are not finite, so "
            f"nothing can be compared with it; {way_out(described)}"
        )
    with np.errstate(over="ignore"):
        kept = array.astype(dtype)
    if not np.isfinite(kept).all():
        raise ComparisonFailedError(
            f"keys and values should fit the program's {dtype}, which ends at {np.finfo(dtype).max:.0f}, found "
            f"{np.abs(array).max():.3g} in the reference: its cache cannot hold them; "
            "export with --dtype bfloat16 or float32"
        )
    return kept
