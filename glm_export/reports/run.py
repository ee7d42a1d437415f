"""On what a report was made: the run, the machine, and the folders that were examined, as facts and hashes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from glm_export.artifacts.engine import Engine, load_engine
from glm_export.artifacts.manifest import ENGINE_MANIFEST, MANIFEST, SIGNATURE
from glm_export.artifacts.open import Kind, kind_of
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.machine.facts import Machine, this_machine
from glm_export.machine.memory import PROCESSORS, kernel_fields
from glm_export.model_folder import file_sha256
from glm_export.reports.records import Fact, size

PACKAGES = (
    *("glm-export", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "polygraphy"),
    *("tensorrt", "tensorrt-rtx-cu13-bindings", "numpy"),
)
CHOOSING = ("avx", "amx", "fma", "f16c", "asimd", "sve", "i8mm", "bf16")
"""Beginnings of a processor's flags by which runtimes choose kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a verb: the line that repeats it, when it ended, what it took, and where. ``peak_bytes``: resident."""

    command: str
    ended: str
    seconds: float
    peak_bytes: int | None
    machine: Machine
    flags: tuple[str, ...] = ()

    def facts(self) -> tuple[Fact, ...]:
        """For people."""
        machine = self.machine
        memory = "" if machine.memory_bytes is None else f", {size(machine.memory_bytes)} of memory"
        facts = [
            Fact(name="ended", value=self.ended),
            Fact(name="took", value=f"{self.seconds:.1f} s", definition="By the clock, loading included."),
            Fact(name="processor", value=f"{machine.processor}, {machine.cores} cores{memory}"),
            Fact(name="GPU", value=machine.gpu or "none"),
            Fact(name="system", value=f"{machine.system}; Python {machine.python}"),
            Fact(name="packages", value=", ".join(f"{name} {version}" for name, version in machine.packages.items())),
        ]
        if self.peak_bytes is not None:
            told = "The most memory this process held, both sides and files mapped into it included."
            facts.insert(2, Fact(name="memory", value=size(self.peak_bytes), definition=told))
        if self.flags:
            told = "By which runtimes choose kernels: others may round otherwise."
            facts.append(Fact(name="processor's flags", value=" ".join(self.flags), definition=told))
        return tuple(facts)


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Started with a verb; says at its end what the run was."""

    command: str
    started: float = field(default_factory=time.monotonic)

    def run(self) -> Run:
        """The run up to now."""
        fields = kernel_fields(PROCESSORS)
        flags = (fields.get("flags") or fields.get("Features") or "").split()
        return Run(
            command=self.command,
            ended=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            seconds=time.monotonic() - self.started,
            peak_bytes=_peak(),
            machine=this_machine(PACKAGES),
            flags=tuple(sorted(flag for flag in flags if flag.startswith(CHOOSING))),
        )


def _peak() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was examined. ``name``: the folder. ``against``: what it was held to. ``hashes``: file -> sha256."""

    name: str
    against: str | None = None
    facts: tuple[Fact, ...] = ()
    hashes: tuple[tuple[str, str], ...] = ()
    signature: str = ""


def subject_of(opened: OnnxProgram | Engine | Checkpoint, name: str) -> Subject:
    """Whatever a verb opened.

    Args:
        opened: a folder of ours, or a checkpoint.
        name: as it was given.
    """
    if not isinstance(opened, Checkpoint):
        return program_subject(opened)
    config = opened.config
    facts = (
        Fact(name="family", value=f"{config.family}, {config.num_layers} layers"),
        Fact(name="on disk", value=size(opened.source_bytes), definition="All weight files."),
    )
    # Hashing gigabytes would take longer than the verb.
    told = ("fingerprint of config.json and 64 places of each weight file", opened.identity.fingerprint())
    return Subject(name=name, facts=facts, hashes=(told,), signature=signature_of(opened.folder))


def side_subject(side: Path, against: str) -> Subject:
    """What a check was asked about: a folder of ours, another's ONNX file, or a saved run.

    Args:
        side: as it was given.
        against: what it was held to, as it was given.
    """
    kind = kind_of(side)
    if kind in (Kind.PROGRAM, Kind.ENGINE):
        return program_subject(load_engine(side) if kind is Kind.ENGINE else load_program(side), against)
    return Subject(name=str(side), against=against, facts=(Fact(name="held to", value=against),))


def program_subject(exported: OnnxProgram | Engine, against: str | None = None) -> Subject:
    """An exported folder or an engine, and what it was made of.

    Args:
        exported: opened, so that its small files are those its manifest hashes.
        against: what it was held to, as it was given.
    """
    program, manifest = exported.program if isinstance(exported, Engine) else exported, exported.manifest
    name = ENGINE_MANIFEST if isinstance(exported, Engine) else MANIFEST
    bytes_ = sum(manifest["sizes"].values())
    facts = [
        *([Fact(name="held to", value=against)] if against is not None else []),
        Fact(name="family", value=f"{program.config.family}, {program.config.num_layers} layers"),
        Fact(name="dialect", value=f"{program.dialect}, {program.dtype}, recipe {program.recipe_label}"),
        Fact(name="on disk", value=size(bytes_), definition="All files of the folder."),
    ]
    if isinstance(exported, Engine):
        facts.append(Fact(name="runtime", value=f"{exported.runtime} {exported.version}"))
    hashes = {name: file_sha256(exported.folder / name)} | _texts(manifest.get("sha256"))
    source = {f"source/{file}": digest for file, digest in _texts(program.manifest.get("source_sha256")).items()}
    return Subject(
        name=str(exported.folder),
        against=against,
        facts=tuple(facts),
        hashes=tuple((hashes | source).items()),
        signature=signature_of(exported.folder),
    )


def _texts(values: Any) -> dict[str, str]:
    """Of a manifest, which may hold anything."""
    return {str(name): str(value) for name, value in values.items()} if isinstance(values, Mapping) else {}


def signature_of(folder: Path) -> str:
    """Whether a folder carries a signature, as a sentence; whether it is a good one is not asked."""
    if (folder / SIGNATURE).is_file():
        return f"The folder carries a signature, {SIGNATURE}, not verified here: `glm-export verify` does that."
    return f"The folder carries no signature ({SIGNATURE})."


def corpus_line(corpus: Mapping[str, Any]) -> str:
    """A corpus' provenance in a line; its hash is in the JSON."""
    told = [f"{name} {value}" for name, value in corpus.items() if isinstance(value, str | int) and name != "sha256"]
    return "; ".join(told)
