"""Prove an ONNX program equal to the PyTorch reference: Polygraphy runs both, ``compare`` judges."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from glm_export.artifacts import OnnxProgram
from glm_export.calibration import recipes
from glm_export.calibration.quantization import Quantization
from glm_export.calibration.recipe import Recipe
from glm_export.checkpoint import Checkpoint
from glm_export.compare import TOLERANCES, ParityReport, compare_runs
from glm_export.config import GlmConfig
from glm_export.errors import InputError
from glm_export.feeds import Feeds, Prompt, prefill_feeds
from glm_export.generation import Stopping, generate_ids
from glm_export.layout import IntegerCache, without_padding
from glm_export.model_folder import file_sha256
from glm_export.program_weights import ProgramIntegers
from glm_export.sessions import Session, Tensors
from glm_export.sessions.ort import OrtSession
from glm_export.sessions.torch import TorchSession
from glm_export.signature import (
    BATCH,
    LOGITS,
    PAST,
    Cache,
    Signature,
    decoder_signature,
    past_names,
    present_names,
)  # fmt: skip

GREEDY_TOKENS = 32
SINGLE_PROMPT, BATCH_PROMPTS = 33, (17, 9, 2)
"""Tokens of the prompts compared."""
RANDOM_PAST_BYTES = 256 << 20


class Runs(Protocol):
    """Single calls in the canonical program's layout, cache handed in and out."""

    def run(self, tensors: Tensors) -> Tensors:
        """One call by the names of the canonical signature."""


class SessionRunner(BaseRunner):  # type: ignore[misc]  # polygraphy has no types
    """A session as a Polygraphy runner, fed in the canonical program's layout."""

    def __init__(self, name: str, session: Runs, signature: Signature) -> None:
        super().__init__(name=name, prefix=name)
        self._session = session
        self._signature = signature

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and shapes of the canonical signature."""
        metadata = TensorMetadata()
        for spec in self._signature.inputs:
            metadata.add(spec.name, np.dtype(spec.dtype), [None if isinstance(dim, str) else dim for dim in spec.dims])
        return metadata

    def infer_impl(self, feed_dict: Tensors) -> OrderedDict[str, np.ndarray]:
        """One call of the session."""
        outputs = self._outputs(dict(feed_dict))
        self.inference_time = 0.0
        # Polygraphy views them as bytes.
        return OrderedDict((name, np.ascontiguousarray(array)) for name, array in outputs.items())

    def _outputs(self, tensors: Tensors) -> Tensors:
        return self._session.run(tensors)


class ReferenceRunner(SessionRunner):
    """The reference, saying as much as the program does: its logits, and padding only where it has any."""

    def __init__(self, session: Session, program: OnnxProgram, signature: Signature, name: str = "pytorch") -> None:
        super().__init__(name, session, signature)
        self._program = program

    def _outputs(self, tensors: Tensors) -> Tensors:
        outputs = self._session.run(tensors)
        if self._program.signature.last_logits_only:
            outputs[LOGITS] = outputs[LOGITS][:, -1:]
        own_lengths = self._program.signature.cache is not Cache.GROWING and not self._program.config.prefix_mask
        return without_padding(outputs, tensors) if own_lengths else outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call to compare: its feeds, and the past the reference computed for it."""

    name: str
    tensors: Tensors


def parity_cases(
    reference: Session,
    config: GlmConfig,
    signature: Signature,
    cache: Cache = Cache.GROWING,
    room: int = 0,
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
        room: tokens the program can hold; 0: the context.
        rows: at most, in the batch.
        tokens: at most, read at once.
    """
    random = np.random.default_rng(0)
    room = min(room or config.max_positions, config.max_positions)

    def token() -> int:
        return int(random.integers(0, config.vocab_size))

    def prompt(length: int) -> Prompt:
        return random_prompt(random, max(2, min(length, room - 8, tokens)), config)

    single = prefill_feeds([prompt(SINGLE_PROMPT)], config)
    head, tail = single.chunks(max(1, single.input_ids.shape[1] * 2 // 3))[:2]
    batch = prefill_feeds([prompt(length) for length in BATCH_PROMPTS[:rows]], config)
    last = room - 1
    pairs: list[tuple[str, Feeds | None, Feeds]] = [
        ("prefill", None, single),
        ("chunk on a past", head, tail),
        ("decode", single, single.followed_by([token()], last)),
        ("padded batch", None, batch),
        ("batch decode", batch, batch.followed_by([token() for _ in range(batch.batch)], last)),
    ]
    cases = [Case(name=name, tensors=_tensors(reference, signature, past, feeds)) for name, past, feeds in pairs]
    distant = prefill_feeds([prompt(16)], config)
    if cache is Cache.GROWING or config.prefix_mask:
        far = replace(
            distant, position_ids=distant.position_ids + config.max_positions - 1 - distant.position_ids.max()
        )
        return [*cases, Case(name="end of context", tensors=_tensors(reference, signature, None, far))]
    return [*cases, _behind_random_past(random, config, signature, distant, room)]


def _behind_random_past(
    random: np.random.Generator, config: GlmConfig, signature: Signature, feeds: Feeds, room: int
) -> Case:
    """A prompt at the end of what the program can hold, or of what fits :data:`RANDOM_PAST_BYTES`."""
    column_bytes = 4 * config.num_layers * 2 * config.kv_size
    columns = min(room - feeds.input_ids.shape[1], RANDOM_PAST_BYTES // column_bytes)
    spec = signature.input(past_names(0)[0])
    shape = spec.shape(**{BATCH: 1, PAST: columns})
    names = [name for layer in range(config.num_layers) for name in past_names(layer)]
    past = {name: random.standard_normal(shape, np.float32).astype(np.dtype(spec.dtype)) for name in names}
    placed = replace(
        feeds,
        attention_mask=np.ones((1, columns + feeds.input_ids.shape[1]), np.int64),
        position_ids=feeds.position_ids + columns,
    )
    end = columns + feeds.input_ids.shape[1]
    return Case(
        name="end of context" if end == config.max_positions else f"at {end} tokens", tensors=placed.named() | past
    )


def random_prompt(random: np.random.Generator, length: int, config: GlmConfig) -> Prompt:
    """Random ids; for a prefix family two thirds are context, and the written part stands for a place within it."""
    ids = tuple(int(i) for i in random.integers(0, config.vocab_size, length))
    if not config.prefix_mask:
        return Prompt(ids=ids)
    context = max(1, length * 2 // 3)
    return Prompt(ids=ids, context_length=context, mask_position=int(random.integers(0, context)))


def _tensors(reference: Session, signature: Signature, past: Feeds | None, feeds: Feeds) -> Tensors:
    layers = range(reference.config.num_layers)
    cache_dtype = np.dtype(signature.input(past_names(0)[0]).dtype)
    empty = {
        name: np.zeros(signature.input(name).shape(**{BATCH: feeds.batch, PAST: 0}), cache_dtype)
        for i in layers
        for name in past_names(i)
    }
    tensors: Tensors = {**feeds.named(), **empty}
    if past is not None:
        before = reference.run({**past.named(), **empty})
        for i in layers:
            tensors |= {name: before[kept] for name, kept in zip(past_names(i), present_names(i), strict=True)}
    return {name: array.astype(cache_dtype) if array.dtype.kind == "f" else array for name, array in tensors.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Parity of single calls, and whether both sides write the same greedy tokens, each with its own cache."""

    parity: ParityReport
    greedy_equal: int
    greedy_total: int
    recipe: str | None = None
    usual_bound: float | None = None
    others: tuple[ParityReport, ...] = ()
    """The same cases through other runners of the same program."""

    @property
    def usual(self) -> float:
        """The median over cases of the smallest passing tolerance: what a case needs where no value is a tie."""
        worst: dict[str, float] = {}
        for output in self.parity.outputs:
            worst[output.case] = max(worst.get(output.case, 0.0), output.needed)
        return float(np.median(list(worst.values())))

    @property
    def passed(self) -> bool:
        """Outputs within tolerance; in float32 the greedy tokens equal too, or the usual where the recipe bounds it."""
        within = self.parity.passed and all(other.passed for other in self.others)
        within = within and (self.usual_bound is None or self.usual <= self.usual_bound)
        exact = self.parity.dtype == "float32" and self.recipe is None
        return within and (not exact or self.greedy_equal == self.greedy_total)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return self.parity.to_json() | {
            "passed": self.passed, "recipe": self.recipe, "usual": self.usual, "usual_bound": self.usual_bound,
            "greedy_tokens_equal": self.greedy_equal, "greedy_tokens": self.greedy_total,
            "others": [other.to_json() for other in self.others],
        }  # fmt: skip


def run_both(reference: TorchSession, program: OnnxProgram, candidate: OrtSession, cases: Sequence[Case]) -> RunResults:
    """Record both runs; Polygraphy calls each runner once a case."""
    signature = canonical_signature(candidate.program)
    own = SessionRunner("onnxruntime", candidate, signature)
    # Where the program's layout is the canonical one, Polygraphy runs it without our session between.
    own_cache = candidate.program.signature.cache is not Cache.GROWING or candidate.program.signature.cache_is_integer
    runners = [
        ReferenceRunner(reference, program, signature),
        OnnxrtRunner(lambda: candidate.runtime, name="onnxruntime") if not own_cache else own,
    ]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        return Comparator.run(runners, data_loader=[case.tensors for case in cases])


def canonical_signature(program: OnnxProgram) -> Signature:
    """The inputs and outputs the program would have in the canonical dialect."""
    return decoder_signature(program.config, dtype=program.dtype, logits=program.logits)


def check(program: OnnxProgram, checkpoint: Checkpoint, reference_dtype: str = "float32") -> CheckReport:
    """Run the PyTorch reference and the ONNX program side by side.

    The reference of a quantized program computes with the weights its recipe keeps, in floating point: so what
    differs is the rounding of activations, and any defect. How much the recipe itself costs is another question.

    Args:
        program: an exported folder.
        checkpoint: what it was exported from.
        reference_dtype: of the reference; with float16 or bfloat16 the bound is that dtype's.

    Raises:
        InputError: the program was exported from another checkpoint.
        CheckpointError: the checkpoint's tensors do not fit.
        EnvironmentMissingError: no runtime here can load the program.
    """
    refuse_other_checkpoint(program, checkpoint)
    looser = max(program.dtype, reference_dtype, key=TOLERANCES.__getitem__)
    quantization = quantization_of(program)
    recipe = quantization.recipe if quantization else None
    with (
        TorchSession(checkpoint, reference_dtype, quantization=quantization) as reference,
        OrtSession(program) as candidate,
    ):
        signature = candidate.program.signature
        room = signature.static_length if signature.cache is Cache.STATIC else 0
        canonical = canonical_signature(candidate.program)
        cases = parity_cases(reference, program.config, canonical, signature.cache, room)
        if quantization is not None and signature.cache_is_integer:
            integers = IntegerCache(scales=np.array(quantization.kv_scales, np.float32))
            cases = [replace(case, tensors=integers.rounded(case.tensors)) for case in cases]
        granted = recipe.granted(experts=program.config.experts is not None) if recipe else 0.0
        results = run_both(reference, program, candidate, cases)
        parity = compare_runs(results, [case.name for case in cases], looser, granted)
        equal, total = greedy_agreement(reference, candidate)
    usual_bound = recipe.usual if recipe is not None and looser == "float32" else None
    return CheckReport(
        parity=parity, greedy_equal=equal, greedy_total=total, recipe=program.recipe, usual_bound=usual_bound
    )


def recipe_of(program: OnnxProgram) -> Recipe | None:
    """A program's recipe in the forms of its dialect; None where it is not quantized."""
    return None if program.recipe is None else recipes.load(program.recipe).carried_by(program.dialect)


def quantization_of(program: OnnxProgram) -> Quantization | None:
    """What a program was quantized with; None where it was not."""
    recipe = recipe_of(program)
    if recipe is None:
        return None
    quantization = Quantization.load(program.folder, recipe, program.manifest["left_in_float"])
    return replace(quantization, rounded=ProgramIntegers(program)) if recipe.rounding != "nearest" else quantization


def greedy_agreement(
    reference: Session, candidate: Session, seed: int = 1, *, rows: int = 3, room: int = 0
) -> tuple[int, int]:
    """Greedy tokens both sides write alike, of how many: prompts one after another and as a padded batch.

    ``rows``: of the batch at most. ``room``: tokens the candidate can hold; 0: the context.
    """
    config = reference.config
    random = np.random.default_rng(seed)
    prompts = [random_prompt(random, length, config) for length in (12, 5, 2)[:rows]]
    stopping = Stopping(max_new_tokens=min(GREEDY_TOKENS, (room or config.max_positions) - 16))
    batch = generate_ids(reference, prompts, stopping=stopping)
    answers = generate_ids(candidate, prompts, stopping=stopping)
    alone = [generate_ids(candidate, [prompt], stopping=stopping)[0] for prompt in prompts]
    pairs = [
        (a, b)
        for expected, rows in zip(batch, zip(answers, alone, strict=True), strict=True)
        for row in rows
        for a, b in zip(expected.ids, row.ids, strict=True)
    ]
    return sum(a == b for a, b in pairs), len(pairs)


def refuse_other_checkpoint(program: OnnxProgram, checkpoint: Checkpoint) -> None:
    """Compare file names and the config's hash; weights themselves are compared by running.

    Raises:
        InputError: naming what differs.
    """
    recorded = program.manifest["source_sha256"]
    found = {path.name for path in checkpoint.files} | {"config.json"}
    config_hash = file_sha256(checkpoint.folder / "config.json")
    if set(recorded) != found or recorded["config.json"] != config_hash:
        raise InputError(
            f"{program.folder} was exported from {program.manifest['checkpoint']!r}, and {checkpoint.folder} is "
            "another checkpoint (files or config.json differ); give the one it came from"
        )
