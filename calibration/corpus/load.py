"""Texts that calibration and quality runs read, as rows of a model's own tokens, with where they come from.

A corpus is a ``.txt`` of paragraphs, a ``.jsonl`` or ``.json`` of rows, either gzipped, an embedded set, or texts and
rows that a caller holds. Whatever a row was, it becomes the prompt a session would have made of it, so what is measured
is what is served. Torch is not needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.calibration.corpus.files import is_prose, read_bytes, rows_of, text_of
from glm_export.calibration.corpus.rows import RowReader
from glm_export.calibration.corpus.turns import string_field
from glm_export.calibration.options import SHORTEST_ROW, Row
from glm_export.embedded import EMBEDDED
from glm_export.errors import InputError, shown
from glm_export.model_folder import load_json
from glm_export.spec.config import GlmConfig
from glm_export.tokenizers import Tokenizer

POEMS, TECHNICAL = "tang_poems.jsonl", "technical.jsonl"
EMBEDDED_SETS = {"default": (POEMS, TECHNICAL), "poems": (POEMS,), "technical": (TECHNICAL,)}
"""What stands for an embedded corpus, where a corpus is asked for."""
MINIMUM_TOKENS = 256
"""Ids in all below which a text says nothing about a model."""
NOT_STATED = "not stated"


def load_corpus(
    source: str | Path | Sequence[Row],
    tokenizer: Tokenizer,
    config: GlmConfig,
    *,
    sequence_length: int = 512,
    max_samples: int | None = None,
) -> Corpus:
    """Read a corpus for one model.

    Texts longer than a row are cut into rows of like length; chats, ids and prompts with completions stay whole. Poems
    a blank-filling model has no room for are passed over.

    Args:
        source: ``"default"``, ``"poems"`` or ``"technical"`` (embedded), or a path. A ``.txt`` holds paragraphs with
            blank lines between, packed into rows; a ``.jsonl`` or ``.json`` an object a line, or one array of them, of
            the shapes in :mod:`glm_export.calibration.corpus.shapes`. Both may be gzipped. Or texts, and rows of those
            shapes, in a list.
        tokenizer: the model's.
        config: the model's.
        sequence_length: tokens of a row of text at most; the model's context where that is shorter.
        max_samples: take so many rows, evenly spaced over the corpus; None takes all.

    Raises:
        InputError: the file is missing, empty, binary, not UTF-8 or too small; or a row, named by its line, is of no
            known kind, has no token, or does not fit the model.
    """
    if sequence_length < SHORTEST_ROW or (max_samples is not None and max_samples < 1):
        raise InputError(
            f"a corpus needs rows of at least {SHORTEST_ROW} tokens and at least 1 sample; "
            f"found sequence_length {sequence_length}, max_samples {max_samples}"
        )
    rows = RowReader(tokenizer, config, min(sequence_length, config.text_positions))
    corpus = _of_files(source, rows) if isinstance(source, str | Path) else _of_rows(source, rows)
    if corpus.tokens < MINIMUM_TOKENS:
        raise InputError(
            f"{corpus.name} has {corpus.tokens} tokens, at least {MINIMUM_TOKENS} are expected: too small to "
            "calibrate; add text of the kind the model will read, or take the embedded corpus 'default'"
        )
    return replace(corpus, samples=_evenly_spaced(corpus.samples, max_samples))


def _of_files(source: str | Path, rows: RowReader) -> Corpus:
    names = EMBEDDED_SETS.get(str(source), ())
    paths = [EMBEDDED / name for name in names] or [Path(source)]
    digest, samples = hashlib.sha256(), list[Sample]()
    for path in paths:
        data = read_bytes(path, f"one of {', '.join(EMBEDDED_SETS)}")
        digest.update(data)
        samples += _samples(path, data, rows)
    origins, licences = zip(*map(_provenance, paths), strict=True)
    return Corpus(
        name=str(source) if names else paths[0].name, origin="; ".join(dict.fromkeys(origins)),
        licence="; ".join(dict.fromkeys(licences)), sha256=digest.hexdigest(), samples=tuple(samples),
    )  # fmt: skip


def _of_rows(given: Sequence[Row], rows: RowReader) -> Corpus:
    """Of texts and rows a caller holds; the hash is that of the same rows as JSON lines."""
    digest, samples = hashlib.sha256(), list[Sample]()
    for number, row in enumerate(given, start=1):
        spelt = {"text": row} if isinstance(row, str) else row
        try:
            if not isinstance(spelt, Mapping):
                raise InputError(f"a text or a row of fields is expected, found {shown(row)}")
            digest.update(json.dumps(dict(spelt), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            samples += map(rows.checked, rows.of_row(dict(spelt)))
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f"row {number} of the corpus: {error}") from error
    return Corpus(
        name="given rows",
        origin="given by the caller",
        licence=NOT_STATED,
        sha256=digest.hexdigest(),
        samples=tuple(samples),
    )


def _evenly_spaced(samples: tuple[Sample, ...], most: int | None) -> tuple[Sample, ...]:
    if most is None or most >= len(samples):
        return samples
    return tuple(samples[index * len(samples) // most] for index in range(most))


# -- files -------------------------------------------------------------------------------------------------------------


def _samples(path: Path, data: bytes, rows: RowReader) -> list[Sample]:
    text = text_of(path, data)
    if is_prose(path):
        return [rows.checked(sample) for sample in rows.packed(text)]
    samples: list[Sample] = []
    for place, row in rows_of(path, text):
        try:
            samples += map(rows.checked, rows.of_row(row))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    return samples


def _provenance(path: Path) -> tuple[str, str]:
    """Origin and licence, from the file beside."""
    beside = path.with_name(f"{path.name}.source.json")
    if not beside.is_file():
        return NOT_STATED, NOT_STATED
    try:
        values = load_json(beside)
        origin, licence = (string_field(values.get(key, NOT_STATED), key) for key in ("origin", "licence"))
    except (ValueError, AttributeError, InputError) as error:
        raise InputError(f"{beside} should be a JSON object with origin and licence as text: {error}") from error
    return origin, licence
