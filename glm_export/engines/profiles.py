"""Optimization profiles: what shapes an engine is built for, from a program's signature and three limits.

B rows, S new tokens, P tokens before them, T = P + S.
"""

from __future__ import annotations

from glm_export.errors import InputError
from glm_export.spec.optimization_profile import DECODE, PREFILL, Limits, OptimizationProfile
from glm_export.spec.signature import BATCH, PAST, SEQUENCE, TOTAL, Cache, Signature

USUAL_PROMPT = 512
"""Tokens a prefill is tuned for, where the limits allow as many."""
ALIGNMENT_BYTES = 256
"""Of the addresses TensorRT takes."""


def resolve_limits(
    signature: Signature,
    positions: int,
    *,
    max_batch: int,
    max_context: int | None = None,
    prefill_tokens: int | None = None,
    prefill_batch: int | None = None,
) -> Limits:
    """Fill in what was left open.

    Args:
        signature: of the program.
        positions: the model's context.
        max_batch: rows of a decode step.
        max_context: tokens of a row; None takes what the program holds. A static cache has its own, for good.
        prefill_tokens: tokens read at once; None takes :data:`USUAL_PROMPT` or the context. Longer prompts are read
            in several calls, except by a prefix family, whose context sees itself: there None takes
            the context, or half of it where the cache grows.
        prefill_batch: rows read at once; None takes one where the cache is static. Where it grows, all rows are read
            together: their keys and values become one tensor.

    Raises:
        InputError: the limits exceed the program's, or cannot be met at the addresses TensorRT takes.
    """
    static = signature.cache is Cache.STATIC
    holds = signature.static_length if static else positions
    context = holds if max_context is None else max_context
    if context > holds or (static and context != holds):
        hint = "export with another --max-length" if static else "ask for less"
        raise InputError(f"--max-context is {context}, and the program holds {holds} tokens; {hint}")
    together = (1 if static else max_batch) if prefill_batch is None else prefill_batch
    if not static and together != max_batch:
        raise InputError(f"--prefill-batch is --max-batch ({max_batch}) where the cache grows, found {together}")
    prefix = any(spec.dtype == "bool" for spec in signature.inputs)
    if prefill_tokens is None:
        prefill_tokens = _usual_prefill(context, static=static, prefix=prefix)
    limits = Limits(max_batch=max_batch, max_context=context, prefill_tokens=prefill_tokens, prefill_batch=together)
    if static and together < max_batch:
        _require_aligned_rows(signature)
    return limits


def _usual_prefill(context: int, *, static: bool, prefix: bool) -> int:
    # Where the cache grows, what is read at once and what stands before it share the context.
    most = context if static else (context + 1) // 2
    return most if prefix else min(USUAL_PROMPT, most)


def _require_aligned_rows(signature: Signature) -> None:
    """Rows read one after another are parts of one buffer, and each must begin where TensorRT takes an address."""
    for spec in signature.inputs:
        row = spec.nbytes(**{BATCH: 1}) if spec.is_cache else 0
        if row % ALIGNMENT_BYTES:
            raise InputError(
                f"a row of {spec.name} {list(spec.dims)} takes {row} bytes, which is no multiple of "
                f"{ALIGNMENT_BYTES}; take a rounder --max-length, or a --prefill-batch as large as --max-batch"
            )


def profiles_of(signature: Signature, limits: Limits) -> tuple[OptimizationProfile, OptimizationProfile]:
    """The two an engine has: reading prompts, and decoding one token a row."""
    growing = signature.cache is Cache.GROWING
    usual = min(USUAL_PROMPT, limits.prefill_tokens)
    # Dims that add up must do so at every corner: where tokens are many, fewer can stand before them.
    longest_past = limits.max_context - limits.prefill_tokens if growing else 0
    decoded = limits.max_context - 1 if growing else 0
    prefill = [(1, 1, 0), (1, usual, 0), (limits.prefill_batch, limits.prefill_tokens, longest_past)]
    decode = [(1, 1, 0), (1, 1, decoded // 2), (limits.max_batch, 1, decoded)]
    return _profile(PREFILL, signature, prefill), _profile(DECODE, signature, decode)


def _profile(name: str, signature: Signature, corners: list[tuple[int, int, int]]) -> OptimizationProfile:
    shapes = {}
    for spec in signature.inputs:
        least, usual, most = (
            spec.shape(**{BATCH: rows, SEQUENCE: new, PAST: past, TOTAL: past + new}) for rows, new, past in corners
        )
        shapes[spec.name] = (least, usual, most)
    return OptimizationProfile(name=name, shapes=shapes)
