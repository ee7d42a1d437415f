"""What a calibration has done so far, on disk beside its folder: gone on from where it fits, begun anew where not."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from glm_export.artifacts.manifest import RANGES_MANIFEST, write_json
from glm_export.calibration.layerwise.hidden_states import is_whole
from glm_export.errors import InputError

logger = logging.getLogger(__name__)
STATE = "state.json"
OWN_FILE = re.compile(
    rf"state\.(json|partial)|(layer|rounded)-\d{{3,}}\.(safetensors|partial)|spool-\d{{3,}}(\.partial)?"
    rf"|ranges\.(safetensors|partial)|{re.escape(RANGES_MANIFEST)}"
)


def resume_or_start(work: Path, identity: Mapping[str, Any]) -> None:
    """Leave what a run with the same checkpoint, corpus and recipe has done, or begin with an empty folder.

    Args:
        work: the folder.
        identity: of this run, as JSON keeps it.

    Raises:
        InputError: the folder holds what no calibration wrote; nothing of it is touched.
    """
    if work.is_symlink() or (os.path.lexists(work) and not work.is_dir()):
        raise InputError(f"{work} is in the way: a link, or no folder; move it away")
    if work.is_dir():
        others = sorted(path.name for path in work.iterdir() if not OWN_FILE.fullmatch(path.name))
        if others:
            raise InputError(
                f"{work} holds {others[0]}, which no calibration wrote; move it away, or give another --out"
            )
        if _fits(work, identity):
            done = sum(path.name.startswith("layer-") and path.suffix == ".safetensors" for path in work.iterdir())
            logger.info("%s: gone on from, %d layers are done", work, done)
            return
        logger.info("%s: another run's, or damaged; begun anew", work)
        shutil.rmtree(work)
    work.mkdir(parents=True)
    partial = work / "state.partial"
    write_json(partial, dict(identity))
    take_file_name(partial, work / STATE)


def _fits(work: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the state is of the same run, and every file beside it is whole."""
    try:
        state = json.loads((work / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s is damaged (%s): calibration begins anew", work / STATE, type(error).__name__)
        return False
    if state != identity:
        return False
    damaged = [path for path in sorted(work.iterdir()) if path.suffix != ".partial" and not _whole(path)]
    if damaged:
        logger.warning("%s is damaged: calibration begins anew", damaged[0])
    return not damaged


def _whole(path: Path) -> bool:
    if path.name.startswith("spool-"):
        return is_whole(path)
    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, framework="np"):
            return True
    except (SafetensorError, OSError):
        return False


def take_file_name(partial: Path, path: Path) -> None:
    """Give a file its name once its bytes are on disk: a machine that stops leaves it whole or not at all."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
