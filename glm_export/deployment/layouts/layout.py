"""A folder laid out for another program: written whole, with a manifest that says what it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from glm_export.artifacts.manifest import LAYOUT_MANIFEST, MANIFEST, MANIFEST_FORMAT, package_versions, write_json
from glm_export.artifacts.open import Kind, open_artifact
from glm_export.artifacts.output_folder import free_disk_for, require_writable, whole_folder
from glm_export.artifacts.placed_file import needed_for, place
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.deployment.layouts.options import LayoutOptions
from glm_export.deployment.subject import subject_of
from glm_export.errors import InputError
from glm_export.exporter.card.loaders import Loader, verdicts
from glm_export.exporter.loader_files import TOKENIZER_JSON
from glm_export.model_folder import file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a folder will hold, by names in it. ``placed``: files of the exported folder. ``written``: others' bytes.

    ``notes``: what somebody should know of it, a line each.
    """

    placed: dict[str, Path]
    written: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidOut:
    """What was written. ``linked_bytes``: of ``total_bytes``, those that are on the disk once, with their source."""

    folder: Path
    program: str
    total_bytes: int
    linked_bytes: int
    notes: tuple[str, ...]


def lay_out(
    source: str | Path,
    out: Path,
    loader: Loader,
    plan: Callable[[OnnxProgram, Path], Planned],
    options: LayoutOptions | None = None,
) -> LaidOut:
    """Write a folder for another program, whole or not at all.

    Args:
        source: an exported folder.
        out: the folder to write.
        loader: whose layout it is.
        plan: says what it will hold, of the opened source and the folder's own path.
        options: how.

    Raises:
        InputError: the source is no exported folder, the loader cannot run it or read texts by it, or ``out`` is in
            the way.
        CheckpointError: the source is damaged.
        EnvironmentMissingError: the disk is too full.
    """
    options = options or LayoutOptions()
    artifact = open_artifact(source)
    if artifact.kind is not Kind.PROGRAM:
        raise InputError(
            f"{artifact.path} is of kind {artifact.kind.value}; a folder is laid out from an exported one: write it "
            "with glm-export export"
        )
    kinds = (Kind.LAYOUT,)
    out = require_writable(out, force=options.force, kinds=kinds, sources=(artifact.path,))
    opened = load_program(artifact.path)
    _require_loadable(opened, loader)
    planned = plan(opened, out)
    written = sum(map(len, planned.written.values()))
    free_disk_for(out, written + needed_for(out, list(planned.placed.values()), link=options.link), "the copies need")
    with whole_folder(out, force=options.force, kinds=kinds) as partial:
        linked = sum(place(path, partial / name, link=options.link) for name, path in planned.placed.items())
        for name, data in planned.written.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(data)
        sizes = {name: (partial / name).stat().st_size for name in sorted({*planned.placed, *planned.written})}
        manifest = {
            "format": MANIFEST_FORMAT,
            "program": loader.name,
            "made_of": {"kind": Kind.PROGRAM.value, "manifest_sha256": file_sha256(artifact.path / MANIFEST)},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "packages": package_versions(),
            "sizes": sizes,
        }
        write_json(partial / LAYOUT_MANIFEST, manifest)
    return LaidOut(
        folder=out, program=loader.name, total_bytes=sum(sizes.values()), linked_bytes=linked, notes=planned.notes
    )


def _require_loadable(program: OnnxProgram, loader: Loader) -> None:
    verdict = verdicts(subject_of(program))[loader]
    if not verdict.runs:
        raise InputError(
            f"{loader.name} cannot run {program.folder}: {verdict.note}; export a causal family in another dialect or "
            "dtype"
        )
    if not (program.folder / TOKENIZER_JSON).is_file():
        raise InputError(
            f"{loader.name} reads texts by {TOKENIZER_JSON}, which {program.folder} lacks; export from a checkpoint "
            "with its tokenizer"
        )
