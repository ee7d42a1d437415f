"""Programs as one kind of processor reads them: weights packed once, and mapped from a file by every session after.

ONNX Runtime lays weights out anew for its kernels each time it loads a program, in memory of the process. It can save
what it made, with the graph it optimized, and load that again: nothing is packed then, and pages of the file are those
of all processes of the machine. The layout is one of a processor and a version of ONNX Runtime, so what was saved lies
in a cache under both, and never in an exported folder. It is kept only where it computes the same bits.

::

    packed/KEY.seen          a program that was loaded once: the next time it is packed, unless the file says that this
                             was tried, and computed something else
    packed/KEY/              graph and weights; ``entry.json`` says whose, and its time when it was last loaded
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from glm_export.artifacts.folder_lock import alone
from glm_export.artifacts.program import MODEL, WEIGHTS, OnnxProgram
from glm_export.errors import InputError
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.machine.memory import PROCESSORS, kernel_fields
from glm_export.model_folder import file_sha256, load_json
from glm_export.sessions.program_layout import call_layout
from glm_export.spec.signature import past_names
from glm_export.store.cache import emptied, usual_root, write_whole

logger = logging.getLogger(__name__)

LIMIT_VARIABLE, USUAL_LIMIT_GB = "GLM_EXPORT_PACKED_GB", 32.0
LEAST_BYTES = 256 << 20
"""Of weights: what is smaller loads in less time than it takes to look."""
GROWTH = 2.2
"""Bytes of a packed program at most, beside those of its weights: both lie in the file (measured: 1.7 to 2.0)."""
SPARE_BYTES = 4 << 30
"""Left free on the disk."""
TRIED = ((0, 33), (0, 3), (7, 1), (5, 4))
"""Tokens before a call, and in it: on both sides of where a weight's form for prompts begins."""
DIFFERS = "differs"
ENTRY, SEEN, FORMAT = "entry.json", ".seen", 1
SAVING = {
    "session.save_external_prepacked_constant_initializers": "1",
    "session.optimized_model_external_initializers_file_name": WEIGHTS,
    # Scales as well: where they stay in the graph, ONNX Runtime 1.31 reads packed integers without them, as zeros. Axes
    # and shapes must stay.
    "session.optimized_model_external_initializers_min_size_in_bytes": "64",
}
Options = Callable[[], onnxruntime.SessionOptions]
Load = Callable[[onnxruntime.SessionOptions, Path], onnxruntime.InferenceSession]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedProgram:
    """One that is there. ``used``: seconds since 1970 when it was last loaded."""

    folder: Path
    source: str
    size: int
    used: float


class PackedPrograms:
    """Those of this machine. Whoever may write there may replace what is in it.

    Args:
        root: of the cache; None takes the usual one (``GLM_EXPORT_CACHE``).
        limit_bytes: of all of them together, the least recently loaded go first; None takes ``GLM_EXPORT_PACKED_GB``,
            or 32 GB; 0 keeps none.

    Raises:
        InputError: the variable is no number.
    """

    def __init__(self, root: Path | None = None, limit_bytes: int | None = None) -> None:
        self.home = (root or usual_root()).absolute() / "packed"
        self.limit = _usual_limit() if limit_bytes is None else limit_bytes

    def load(
        self, program: OnnxProgram, entries: Mapping[str, str], options: Options, load: Load
    ) -> onnxruntime.InferenceSession:
        """Load a program as it was packed; where it was not, as it is, and pack it the second time.

        Args:
            program: an exported folder.
            entries: of the session's configuration, which may change what is packed.
            options: makes those of the session.
            load: makes a session of them and a graph; its errors are the program's own.
        """
        weights = program.manifest["sizes"].get(WEIGHTS, 0)
        if weights < LEAST_BYTES or GROWTH * weights > self.limit or WEIGHTS not in program.manifest.get("sha256", {}):
            logger.info("%s: %d bytes of weights, which are not kept packed: packed in memory", program.folder, weights)
            return load(options(), program.model_path)
        key = _key_of(program, entries)
        try:
            packed = self._usable(key)
            if packed is not None:
                logger.info("%s: mapped as it was packed for this processor, from %s", program.folder, packed)
                return _optimized(options(), packed, load)
            if self._due(key, weights):
                logger.info("%s: packed for this processor, and kept in %s", program.folder, self.home / key)
                return self._pack(key, program, options, load)
        except Exception as error:  # onnxruntime's exceptions share no public base
            # What fails with a packed program may work without one; what fails then is the program's own.
            told = " ".join(str(error).split())[:200]
            logger.warning("%s is loaded as it is, for its packed form in %s: %s", program.folder, self.home, told)
            self._remove(self.home / key)
        return load(options(), program.model_path)

    def every(self) -> list[PackedProgram]:
        """All that are there, the one loaded last first."""
        found = []
        for folder in self.home.iterdir() if self.home.is_dir() else ():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                entry, file = load_json(folder / ENTRY), folder / ENTRY
                size = sum(entry["sizes"].values())
                used = file.stat().st_mtime
                found.append(PackedProgram(folder=folder, source=str(entry["source"]), size=size, used=used))
        return sorted(found, key=lambda packed: -packed.used)

    def clear(self) -> int:
        """Remove all; says how many bytes. A process that has one open keeps it."""
        freed = sum(packed.size for packed in self.every())
        shutil.rmtree(self.home, ignore_errors=True)
        return freed

    def _usable(self, key: str) -> Path | None:
        """A folder that holds what was written, opened now."""
        folder = self.home / key
        try:
            entry = load_json(folder / ENTRY)
            whole = entry["format"] == FORMAT and all(
                (folder / name).stat().st_size == size for name, size in entry["sizes"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if not whole:
            return None
        with contextlib.suppress(OSError):
            os.utime(folder / ENTRY)
        return folder

    def _due(self, key: str, weights: int) -> bool:
        """Whether the program was loaded before, and the disk has room for it."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        seen = self.home / f"{key}{SEEN}"
        if not seen.exists():
            seen.touch()
            return False
        if seen.read_bytes():
            return False
        return shutil.disk_usage(self.home).free > GROWTH * weights + SPARE_BYTES

    def _pack(self, key: str, program: OnnxProgram, options: Options, load: Load) -> onnxruntime.InferenceSession:
        """Load it, and save what that made; somebody else may be at it."""
        folder = self.home / key
        with ExitStack() as stack:
            try:
                stack.enter_context(alone(folder))
            except InputError:
                logger.debug("another process packs %s", program.folder)
                return load(options(), program.model_path)
            # What a killed process left has no other name than this.
            partial = stack.enter_context(emptied(self.home / f".{key}.partial"))
            saving = options()
            for name, value in SAVING.items():
                saving.add_session_config_entry(name, value)
            saving.optimized_model_filepath = str(partial / MODEL)
            session = load(saving, program.model_path)
            if not _same_bits(program, session, _optimized(options(), partial, load)):
                logger.warning("%s computes something else once it is packed: it is loaded as it is", program.folder)
                (self.home / f"{key}{SEEN}").write_text(DIFFERS, encoding="ascii")
                return session
            sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
            entry = {"format": FORMAT, "source": str(program.folder.resolve()), "sizes": sizes}
            write_whole(partial / ENTRY, entry)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        self._keep_within(folder)
        return session

    def _keep_within(self, newest: Path) -> None:
        """Let go of those that were loaded least recently."""
        room = self.limit
        for packed in self.every():
            room -= packed.size
            if room < 0 and packed.folder != newest:
                self._remove(packed.folder)

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.with_name(f"{folder.name}{SEEN}").unlink()


def _optimized(options: onnxruntime.SessionOptions, packed: Path, load: Load) -> onnxruntime.InferenceSession:
    """What was saved is optimized; to look again takes time, and could pack anew."""
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return load(options, packed / MODEL)


def _same_bits(program: OnnxProgram, one: onnxruntime.InferenceSession, other: onnxruntime.InferenceSession) -> bool:
    """Whether two sessions of a program agree on prompts, short and long, and on a token behind a past."""
    layout, config = call_layout(program.signature, program.folder), program.config
    random = np.random.default_rng(0)
    for past, tokens in TRIED:
        ids = tuple(random.integers(0, config.vocab_size, past + tokens).tolist())
        # Of a prefix family all of it is context: what can be cut is a causal prompt.
        feeds = prefill_feeds([Prompt(ids=ids, context_length=1)] if config.prefix_mask else [Prompt(ids=ids)], config)
        call = feeds.after(past) if past else feeds
        shape = (1, config.kv_heads, past + config.prefix_length, config.head_dim)
        dtype = np.dtype(program.dtype)
        pasts = {
            name: random.standard_normal(shape).astype(dtype)
            for layer in range(config.num_layers)
            for name in past_names(layer)
        }
        given = layout.to_program({**call.named(), **pasts})
        for found, expected in zip(one.run(None, given), other.run(None, given), strict=True):
            if not np.array_equal(found, expected, equal_nan=True):
                return False
    return True


def _key_of(program: OnnxProgram, entries: Mapping[str, str]) -> str:
    """Of the program's files, the processor, and who packs for it."""
    processor = kernel_fields(PROCESSORS)
    told = {
        "format": FORMAT,
        "graph": file_sha256(program.model_path),
        "weights": program.manifest["sha256"][WEIGHTS],
        "entries": dict(entries),
        "onnxruntime": onnxruntime.__version__,
        "build": onnxruntime.get_build_info(),
        "processor": [processor.get(name, "") for name in ("model name", "stepping", "flags", "Features", "CPU part")],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _usual_limit() -> int:
    given = os.environ.get(LIMIT_VARIABLE)
    try:
        gigabytes = float(given) if given else USUAL_LIMIT_GB
    except ValueError as error:
        raise InputError(f"{LIMIT_VARIABLE} should be gigabytes, 0 keeps nothing; found {given!r}") from error
    return int(gigabytes * 1e9)
