"""What a side said in every case, on disk: compared later, on another machine, without the model that said it.

``inputs.json`` and the two runs are Polygraphy's own files (``polygraphy run --load-inputs``, ``--load-outputs``).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.comparator import RunResults
from polygraphy.json import load_json, save_json
from polygraphy.logger import G_LOGGER

from glm_export.artifacts.output_folder import require_writable, whole_folder
from glm_export.errors import GlmExportError, InputError
from glm_export.inputs.call_layout import OwnLengths
from glm_export.proof.cases import Case
from glm_export.proof.compare import EmptyComparisonError
from glm_export.sessions.session import Tensors
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import POSITION_IDS, Cache, Signature

RUN, INPUTS, REFERENCE, CANDIDATE = "run.json", "inputs.json", "reference.json", "candidate.json"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """One side of a check that was saved.

    ``name``: the runtime; ``dtype``: it computed in; ``recipe``: it rounded by. ``cases`` are in the canonical layout,
    and so are ``outputs``, one for each case.
    """

    folder: Path
    name: str
    dtype: str
    recipe: str | None
    config: GlmConfig
    cases: tuple[Case, ...]
    outputs: tuple[Tensors, ...]

    def run(self, tensors: Tensors) -> Tensors:
        """What was said to these inputs.

        Raises:
            InputError: they were never asked.
        """
        for case, said in zip(self.cases, self.outputs, strict=True):
            if case.tensors.keys() == tensors.keys() and all(
                np.array_equal(case.tensors[name], tensors[name]) for name in tensors
            ):
                return dict(said)
        raise InputError(f"{self.folder} holds no answer to these inputs; run both sides on its own")


def is_saved_run(path: Path) -> bool:
    """Whether a folder is a saved run."""
    return (path / RUN).is_file()


def save_run(out: Path, cases: Sequence[Case], reference: SideFacts, candidate: SideFacts, config: GlmConfig) -> None:
    """Write both sides of a check.

    Args:
        out: a new folder.
        cases: what was asked.
        reference: who answered, and what.
        candidate: the same.
        config: the model's sizes.

    Raises:
        InputError: the folder exists.
    """
    out = require_writable(out, force=False)
    told = {"format": FORMAT, "cases": [case.name for case in cases], "config": config.to_json()}
    with whole_folder(out) as folder, G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        save_json([OrderedDict(case.tensors) for case in cases], str(folder / INPUTS))
        for name, side in ((REFERENCE, reference), (CANDIDATE, candidate)):
            side.results.save(str(folder / name))
            told[name.removesuffix(".json")] = {"name": side.name, "dtype": side.dtype, "recipe": side.recipe}
        (folder / RUN).write_text(json.dumps(told, indent=2, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFacts:
    """Who answered, computing in what, rounding by which recipe; and the answers, one runner's."""

    name: str
    dtype: str
    recipe: str | None
    results: RunResults


def askable(cases: Sequence[Case], signature: Signature) -> tuple[list[Case], tuple[str, ...]]:
    """The cases of a run that a program can be asked, and of the others which, and why.

    Raises:
        EmptyComparisonError: there is none.
    """
    asked, left = [], []
    for case in cases:
        rows = OwnLengths.of(case.tensors)
        columns = int(rows.all.sum(axis=1).max())
        counted = rows.before[:, None] + rows.new.cumsum(axis=1) - 1
        apart = case.tensors[POSITION_IDS].ndim == 2 and (case.tensors[POSITION_IDS] != counted)[rows.new].any()
        if signature.own_lengths and apart:
            left.append(f"{case.name}: its positions are not its columns, which the program goes by")
        elif signature.cache is Cache.STATIC and columns > signature.static_length:
            left.append(f"{case.name}: {columns} tokens, and the program holds {signature.static_length}")
        else:
            asked.append(case)
    if not asked:
        raise EmptyComparisonError(f"no case of the saved run can be asked: {'; '.join(left)}")
    return asked, tuple(left)


def load_run(folder: Path, *, candidate: bool = False) -> SavedRun:
    """Read one side of a saved check.

    Args:
        folder: that :func:`save_run` wrote.
        candidate: the side that was checked; else its reference.

    Raises:
        InputError: it is no such folder, or damaged.
    """
    side = CANDIDATE if candidate else REFERENCE
    try:
        told: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise InputError(f"{folder} was saved in format {told['format']}, and this version reads {FORMAT}")
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            inputs = load_json(str(folder / INPUTS))
            ((_, answers),) = RunResults.load(str(folder / side))
        facts = told[side.removesuffix(".json")]
        return SavedRun(
            folder=folder,
            name=str(facts["name"]),
            dtype=str(facts["dtype"]),
            recipe=facts["recipe"],
            config=GlmConfig.from_json(told["config"]),
            cases=tuple(Case(name=n, tensors=dict(t)) for n, t in zip(told["cases"], inputs, strict=True)),
            outputs=tuple({name: np.asarray(answer[name]) for name in answer} for answer in answers),
        )
    except GlmExportError:
        raise
    except Exception as error:  # JSON's, Polygraphy's and numpy's own
        lines = " ".join(str(error).split())[:200]
        raise InputError(f"{folder} should be a saved run, and cannot be read: {lines}") from error
