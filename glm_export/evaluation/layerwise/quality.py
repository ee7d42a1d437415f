"""Quality in the memory of one layer: both sides go through the layers beside each other, hidden states on disk.

The reference is PyTorch, a layer of the checkpoint at a time; the program is ONNX Runtime, a slice of its graph at a
time. Each row is read alone, as one prompt, and only behind the last layer are there logits, of some tokens at a time.
The head stands in memory once at most: the reference's is read from the checkpoint in blocks of the vocabulary.

Shapes: S tokens of a row, H hidden size, V vocabulary, X tokens that are predicted together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import InputError
from glm_export.evaluation.layerwise.hidden_rows import HiddenRows
from glm_export.evaluation.measure import (
    Figures,
    compare_predictions,
    judged,
    predicted_samples,
    require_numbers,
    summed_up,
)
from glm_export.evaluation.report import QualityReport
from glm_export.evaluation.statistics import flips_of
from glm_export.graphs.slices import Slice, UncutError
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.machine.scratch import ScratchFolder
from glm_export.progress import Advance, NullProgress, Progress
from glm_export.proof.layers.program import SlicedProgram
from glm_export.proof.layers.reference import LayeredReference
from glm_export.sessions.onnxruntime.slices import describe_parts
from glm_export.sessions.session import Tensors
from glm_export.sessions.torch import numpy_of
from glm_export.spec.signature import LOGITS, Cache

LOGITS_BYTES = 64 << 20
"""Of one side, at a time."""
BLOCK_BYTES = 64 << 20
"""Of the reference's head, at a time, in its dtype."""


class TextRows:
    """Rows of text as calls of the canonical layout, each alone and without a past but the model's prefix."""

    def __init__(self, reference: LayeredReference, samples: Sequence[Sample]) -> None:
        self.reference, self.samples = reference, list(samples)
        self.lengths = [len(sample.prompt.ids) for sample in self.samples]
        self._past = reference.first_past(1)

    def tensors(self, row: int) -> Tensors:
        """The call that reads a row whole."""
        return prefill_feeds([self.samples[row].prompt], self.reference.config).named() | self._past

    def predicting(self, row: int) -> slice:
        """Places of the tokens whose logits predict what is counted."""
        return slice(self.samples[row].counted_from - 1, self.lengths[row] - 1)

    def parts(self, row: int) -> list[slice]:
        """What is predicted, some tokens at a time, so that logits of them fit memory."""
        return blocks(len(self.ids(row)), 4 * self.reference.config.vocab_size, LOGITS_BYTES)

    def ids(self, row: int) -> tuple[int, ...]:
        """What is predicted."""
        return tuple(self.samples[row].prompt.ids[self.samples[row].counted_from :])

    def hidden(self, path: Path) -> HiddenRows:
        """A place on disk for hidden states of all rows."""
        return HiddenRows(path, self.lengths, self.reference.config.hidden_size)


def measure_layer_by_layer(
    program: OnnxProgram,
    checkpoint: Checkpoint,
    corpus: Corpus,
    *,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> QualityReport:
    """As :func:`glm_export.evaluation.measure.measure`, one layer of each side in memory; nothing is written by either.

    A program that computes prompts otherwise than single tokens is measured on prompts: each row is one.

    Args:
        program: an exported folder, run by ONNX Runtime on the processor.
        checkpoint: what it was made of.
        corpus: of the model's own ids; samples with nothing to predict are passed over.
        dtype: of the reference.
        progress: shows how far it is.

    Raises:
        InputError: nothing to predict, or a graph that cannot be cut into layers.
        NonFiniteError: the reference's logits are NaN or infinite.
        ComparisonFailedError: the program's are.
    """
    samples = predicted_samples(corpus)
    order = sorted(samples, key=lambda index: len(samples[index].prompt.ids))
    rows = TextRows(LayeredReference(checkpoint, dtype), [samples[index] for index in order])
    try:
        sliced = SlicedProgram(program)
    except UncutError as error:
        raise InputError(
            f"{program.folder} cannot be measured layer by layer: {error}; leave --layer-by-layer out"
        ) from error
    with sliced:
        _require_room(sliced, rows, order)
        figures = _figures(rows, sliced, order, progress or NullProgress())
    return QualityReport(
        corpus=corpus.to_json(),
        samples=len(samples),
        **summed_up(figures, order),
        greedy_rows=0,
        greedy_tokens=0,
        greedy_identical=0,
        greedy_first_difference=None,
        tasks=0,
        reference_exact=0,
        candidate_exact=0,
        answer_flips=flips_of([]),
    )


def _require_room(sliced: SlicedProgram, rows: TextRows, numbers: Sequence[int]) -> None:
    signature = sliced.program.signature
    if signature.cache is not Cache.STATIC:
        return
    room = signature.static_length - rows.reference.config.prefix_length
    longest = max(range(len(numbers)), key=rows.lengths.__getitem__)
    if rows.lengths[longest] > room:
        raise InputError(
            f"sample {numbers[longest]} has {rows.lengths[longest]} tokens, and the program holds {room}; take a "
            "shorter --sequence-length, or export with a larger --max-length"
        )


def _figures(rows: TextRows, sliced: SlicedProgram, numbers: Sequence[int], progress: Progress) -> list[Figures]:
    scratch, reference = ScratchFolder(), rows.reference
    with ExitStack() as stack:
        stack.callback(scratch.close)
        expected = stack.enter_context(rows.hidden(scratch.path / "reference"))
        own: dict[str, HiddenRows] = {}
        files = count()
        *body, head = sliced.slices
        advance = progress.task("layers", len(body) * len(rows.lengths))
        for part in body:
            if part.layer is None:
                enter(rows, expected)
            else:
                with reference.layer(part.layer) as layer:
                    pass_rows(rows, layer, part.layer, expected)
            for crossing in part.outputs:
                own[crossing.value] = stack.enter_context(rows.hidden(scratch.path / f"own-{next(files)}"))
            _pass_program(rows, sliced, part, own, advance)
            for crossing in part.inputs:
                own.pop(crossing.value).close()
        return _compared(rows, sliced, head, expected, own, numbers, progress.task("rows compared", len(rows.lengths)))


def enter(rows: TextRows, hidden: HiddenRows) -> None:
    """What the first layer reads of every row."""
    for row in range(len(rows.lengths)):
        _, hidden_BSH = rows.reference.enter(rows.tensors(row))
        hidden.write(row, numpy_of(hidden_BSH)[0])


def pass_rows(rows: TextRows, layer: torch.nn.Module, number: int, hidden: HiddenRows) -> None:
    """Each row through one layer of the reference; its output takes the place of what it read."""
    for row in range(len(rows.lengths)):
        call, _ = rows.reference.enter(rows.tensors(row))
        read_BSH = torch.from_numpy(hidden.read(row))[None].to(rows.reference.dtype)
        output_BSH, _ = layer(read_BSH, call.rotary, call.mask_B1ST, call.past(number))
        hidden.write(row, numpy_of(output_BSH)[0])


def _pass_program(
    rows: TextRows, sliced: SlicedProgram, part: Slice, own: dict[str, HiddenRows], advance: Advance
) -> None:
    loaded = sliced.load(part)
    wanted = [crossing.value for crossing in part.outputs]
    for row in range(len(rows.lengths)):
        read = {
            crossing.value: own[crossing.value].read(row)[None].astype(sliced.numpy_type(crossing.value))
            for crossing in part.inputs
        }
        made = loaded.run(_given(sliced, rows.tensors(row)) | read, wanted)
        for name, array in made.items():
            own[name].write(row, array[0])
        advance(1)


def _given(sliced: SlicedProgram, tensors: Tensors) -> Tensors:
    """A canonical call as the program takes it, an empty past in its dtype as well."""
    given = sliced.given(tensors)
    return {spec.name: given[spec.name].astype(spec.dtype, copy=False) for spec in sliced.program.signature.inputs}


def _compared(
    rows: TextRows,
    sliced: SlicedProgram,
    head: Slice,
    expected: HiddenRows,
    own: dict[str, HiddenRows],
    numbers: Sequence[int],
    advance: Advance,
) -> list[Figures]:
    """Logits of both sides, some tokens at a time, and what is made of them."""
    found: list[Figures] = []
    program, loaded = sliced.program, sliced.load(head)
    described = describe_parts(program)
    references = reference_logits(rows, expected)
    for row, number in enumerate(numbers):
        read = {
            crossing.value: own[crossing.value]
            .read(row)[rows.predicting(row)]
            .astype(sliced.numpy_type(crossing.value))
            for crossing in head.inputs
        }
        ids, start, parts = rows.ids(row), rows.samples[row].counted_from, []
        for at in rows.parts(row):
            one_XV = next(references)
            require_numbers(rows.reference.describe(), one_XV, f"the reference, sample {number}", start + at.start)
            # One token a row: a head that takes the last token alone takes each of them.
            alone = [Prompt(ids=(token,)) for token in ids[at]]
            given = _given(sliced, prefill_feeds(alone, program.config).named() | rows.reference.first_past(len(alone)))
            crossing = {name: values_XH[at, None] for name, values_XH in read.items()}
            other_XV = loaded.run(given | crossing, [LOGITS])[LOGITS][:, -1].astype(np.float32)
            with judged():
                require_numbers(described, other_XV, f"the program, sample {number}", start + at.start)
            parts.append(compare_predictions(one_XV, other_XV, ids[at]))
        found.append(np.concatenate(parts))
        advance(1)
    return found


def reference_logits(rows: TextRows, hidden: HiddenRows) -> Iterator[NDArray[np.float32]]:
    """The reference's logits float32 ``[X, V]`` of what is counted, row by row, in :func:`blocks` of tokens."""
    reference = rows.reference
    weight_VH = reference.head_weight()
    for row in range(len(rows.lengths)):
        read_BSH = torch.from_numpy(hidden.read(row)[rows.predicting(row)])[None].to(reference.dtype)
        (normed_BSH,) = reference.normed(reference.config.num_layers - 1, [read_BSH])
        for at in rows.parts(row):
            yield _products(normed_BSH[0, at], weight_VH)


@torch.no_grad()
def _products(normed_XH: Tensor, weight_VH: Tensor) -> NDArray[np.float32]:
    size = max(1, BLOCK_BYTES // (normed_XH.element_size() * weight_VH.shape[1]))
    parts = [normed_XH @ part.to(normed_XH.dtype).T for part in weight_VH.split(size)]
    logits: NDArray[np.float32] = numpy_of(torch.cat(parts, dim=-1)).astype(np.float32)
    return logits


def blocks(number: int, bytes_each: int, limit: int) -> list[slice]:
    """Neighbours that together stay within a limit, one at least."""
    size = max(1, limit // bytes_each)
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]
