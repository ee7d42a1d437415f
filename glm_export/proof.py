"""Prove an ONNX program equal to the PyTorch reference: Polygraphy runs both, ``compare`` judges."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from glm_export.artifacts import OnnxProgram
from glm_export.checkpoint import Checkpoint, file_sha256
from glm_export.compare import TOLERANCES, ParityReport, compare_runs
from glm_export.config import GlmConfig
from glm_export.errors import InputError
from glm_export.feeds import Feeds, Prompt, prefill_feeds
from glm_export.generation import Stopping, generate_ids
from glm_export.sessions import Session, Tensors
from glm_export.sessions.ort import OrtSession
from glm_export.sessions.torch import TorchSession
from glm_export.signature import BATCH, LOGITS, PAST, Signature, past_names, present_names

GREEDY_TOKENS = 32


class ReferenceRunner(BaseRunner):  # type: ignore[misc]  # polygraphy has no types
    """The PyTorch reference as a Polygraphy runner."""

    def __init__(self, session: TorchSession, signature: Signature, *, last_logits_only: bool) -> None:
        super().__init__(name="pytorch", prefix="pytorch")
        self._session = session
        self._signature = signature
        self._last = last_logits_only

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and shapes of the program's signature."""
        metadata = TensorMetadata()
        for spec in self._signature.inputs:
            metadata.add(spec.name, np.dtype(spec.dtype), [None if isinstance(dim, str) else dim for dim in spec.dims])
        return metadata

    def infer_impl(self, feed_dict: Tensors) -> OrderedDict[str, np.ndarray]:
        """One call of the reference; only the last row of logits where the program has no other."""
        outputs = self._session.run(dict(feed_dict))
        if self._last:
            outputs[LOGITS] = outputs[LOGITS][:, -1:]
        self.inference_time = 0.0
        return OrderedDict(outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call to compare: its feeds, and the past the reference computed for it."""

    name: str
    tensors: Tensors


def parity_cases(reference: Session, config: GlmConfig, signature: Signature, seed: int = 0) -> list[Case]:
    """Prefill, chunked prefill, cached decode, a left-padded batch and its decode, and the end of the context.

    Token ids are random; pasts come from the reference, so each case stands alone.
    """
    random = np.random.default_rng(seed)
    room = config.max_positions

    def token() -> int:
        return int(random.integers(0, config.vocab_size))

    def prompt(length: int) -> Prompt:
        return random_prompt(random, min(length, room - 8), config)

    single = prefill_feeds([prompt(33)], config)
    head, tail = single.chunks(max(1, single.input_ids.shape[1] * 2 // 3))[:2]
    batch = prefill_feeds([prompt(17), prompt(9), prompt(2)], config)
    distant = prefill_feeds([prompt(16)], config)
    distant = replace(distant, position_ids=distant.position_ids + room - 1 - distant.position_ids.max())
    last = room - 1
    pairs: list[tuple[str, Feeds | None, Feeds]] = [
        ("prefill", None, single),
        ("chunk on a past", head, tail),
        ("decode", single, single.followed_by([token()], last)),
        ("left-padded batch", None, batch),
        ("batch decode", batch, batch.followed_by([token() for _ in range(3)], last)),
        ("end of context", None, distant),
    ]
    return [Case(name=name, tensors=_tensors(reference, signature, past, feeds)) for name, past, feeds in pairs]


def random_prompt(random: np.random.Generator, length: int, config: GlmConfig) -> Prompt:
    """Random ids; for a prefix family two thirds are context, and the written part stands for a place within it."""
    ids = tuple(int(i) for i in random.integers(0, config.vocab_size, length))
    if not config.prefix_mask:
        return Prompt(ids=ids)
    context = max(1, length * 2 // 3)
    return Prompt(ids=ids, context_length=context, mask_position=int(random.integers(0, context)))


def _tensors(reference: Session, signature: Signature, past: Feeds | None, feeds: Feeds) -> Tensors:
    layers = range(reference.config.num_layers)
    empty = {
        name: np.zeros(signature.input(name).shape(**{BATCH: feeds.batch, PAST: 0}), np.float32)
        for i in layers
        for name in past_names(i)
    }
    tensors: Tensors = {**feeds.named(), **empty}
    if past is not None:
        before = reference.run({**past.named(), **empty})
        for i in layers:
            tensors |= {name: before[kept] for name, kept in zip(past_names(i), present_names(i), strict=True)}
    cache_dtype = np.dtype(signature.input(past_names(0)[0]).dtype)
    return {name: array.astype(cache_dtype) if array.dtype.kind == "f" else array for name, array in tensors.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Parity of single calls, and whether both sides write the same greedy tokens, each with its own cache."""

    parity: ParityReport
    greedy_equal: int
    greedy_total: int

    @property
    def passed(self) -> bool:
        """Outputs within tolerance; in float32 the greedy tokens must be equal too."""
        return self.parity.passed and (self.parity.dtype != "float32" or self.greedy_equal == self.greedy_total)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return self.parity.to_json() | {
            "passed": self.passed, "greedy_tokens_equal": self.greedy_equal, "greedy_tokens": self.greedy_total,
        }  # fmt: skip


def run_both(reference: TorchSession, program: OnnxProgram, candidate: OrtSession, cases: Sequence[Case]) -> RunResults:
    """Record both runs; Polygraphy calls each runner once a case."""
    runners = [
        ReferenceRunner(reference, candidate.program.signature, last_logits_only=program.logits == "last"),
        OnnxrtRunner(lambda: candidate.runtime, name="onnxruntime"),
    ]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        return Comparator.run(runners, data_loader=[case.tensors for case in cases])


def check(program: OnnxProgram, checkpoint: Checkpoint, reference_dtype: str = "float32") -> CheckReport:
    """Run the PyTorch reference and the ONNX program side by side.

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
    with TorchSession(checkpoint, reference_dtype) as reference, OrtSession(program) as candidate:
        cases = parity_cases(reference, program.config, candidate.program.signature)
        results = run_both(reference, program, candidate, cases)
        parity = compare_runs(results, [case.name for case in cases], looser)
        equal, total = greedy_agreement(reference, candidate)
    return CheckReport(parity=parity, greedy_equal=equal, greedy_total=total)


def greedy_agreement(reference: Session, candidate: Session, seed: int = 1) -> tuple[int, int]:
    """Greedy tokens both sides write alike, of how many: three prompts, one after another and as a padded batch."""
    config = reference.config
    random = np.random.default_rng(seed)
    prompts = [random_prompt(random, length, config) for length in (12, 5, 2)]
    stopping = Stopping(max_new_tokens=min(GREEDY_TOKENS, config.max_positions - 16))
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
