"""A report's two files, the page and its JSON: written whole or not at all, replaced only when asked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_export.artifacts.folder_lock import alone
from glm_export.deployment.extras import require_report_extra
from glm_export.errors import InputError
from glm_export.reports.page import GENERATOR, page
from glm_export.reports.records import SCHEMA, Report
from glm_export.reports.run import Stopwatch

ENDING, DATA_ENDING = ".html", ".json"
HEAD_BYTES = 4096
"""Of a file, by which it is told whether we wrote it."""
MARKS = {ENDING: f'content="{GENERATOR} '.encode(), DATA_ENDING: f'"schema": "{SCHEMA.rpartition("/")[0]}/'.encode()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Where a report goes. ``force``: replace one that glm-export wrote."""

    page: Path
    data: Path
    force: bool

    def write(self, report: Report) -> None:
        """Write both, or none of them.

        Raises:
            InputError: one of them has come to be there meanwhile.
            OSError: the disk is full, or may not be written.
        """
        # Drawn before anything is touched.
        texts = {
            self.data: json.dumps(report.to_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n",
            self.page: page(report),
        }
        self.page.parent.mkdir(parents=True, exist_ok=True)
        partial = {path: path.with_name(f".{path.name}.partial") for path in texts}
        # One run at a time, so what lies under these names is what a killed one left.
        with alone(self.page):
            old = {path: path.read_bytes() for path in texts if self.force and path.is_file()}
            taken: list[Path] = []
            try:
                for path, text in texts.items():
                    _fill(partial[path], text.encode())
                for path, whole in partial.items():
                    _take_name(whole, path, force=self.force)
                    taken.append(path)
            except BaseException:
                for path in taken:  # neither stays with the other's older or missing half
                    path.unlink() if path not in old else path.write_bytes(old[path])
                raise
            finally:
                for whole in partial.values():
                    whole.unlink(missing_ok=True)


def _fill(partial: Path, data: bytes) -> None:
    """A file of ours anew, flushed to disk; a link or a folder of that name is not written to."""
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _take_name(whole: Path, path: Path, *, force: bool) -> None:
    """Give a whole file its name; without ``force`` nothing that has it is replaced, however late it came."""
    if force:
        _require_own(path)
        whole.replace(path)
        return
    try:
        os.link(whole, path)
    except FileExistsError as error:
        raise InputError(_exists(path)) from error
    except OSError:  # a disk without hard links
        if os.path.lexists(path):
            raise InputError(_exists(path)) from None
        whole.rename(path)


@dataclass(frozen=True, slots=True)
class AskedReport:
    """A report that a verb was asked for: where it goes, and when its work began."""

    files: ReportFiles
    stopwatch: Stopwatch

    def write(self, report: Report) -> None:
        """As :meth:`ReportFiles.write`."""
        self.files.write(report)


def asked_report(
    out: Path | None, command: str, *, force: bool, sources: Sequence[str | Path | None] = ()
) -> AskedReport | None:
    """What a verb is asked to write, checked before its work; None where nothing is.

    Args:
        out: the page.
        command: the line that repeats the verb.
        force: see :func:`require_report`, which is asked.
        sources: the same.

    Raises:
        GlmExportError: as :func:`require_report`.
    """
    if out is None:
        return None
    return AskedReport(require_report(out, force=force, sources=sources), Stopwatch(command))


def require_report(out: Path, *, force: bool, sources: Sequence[str | Path | None] = ()) -> ReportFiles:
    """Check, before any work, that a report can be written.

    Args:
        out: the page; the JSON lies beside it.
        force: replace one that glm-export wrote.
        sources: folders that are read or written, as they were given: a report does not lie in them.

    Raises:
        InputError: it is no name of a page, lies in a source, or is there already and may not be replaced.
        EnvironmentMissingError: what draws plots is not installed.
    """
    if out.suffix != ENDING or out.name == ENDING:
        raise InputError(f"--report should be the name of a page, NAME{ENDING}; found {str(out)!r}")
    require_report_extra()
    above = next(parent for parent in out.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise InputError(f"{out} cannot be made: {above} is no folder; give another --report")
    for source in sources:
        home = Path(source or "").resolve()
        # A word may be an embedded model's name; a path is a folder, there or to be written.
        if source and (home.is_dir() or isinstance(source, Path)) and home in out.resolve().parents:
            raise InputError(f"{out} lies in {source}, which it is about; give a --report outside of it")
    files = ReportFiles(page=out, data=out.with_suffix(DATA_ENDING), force=force)
    for path in (files.page, files.data):
        if os.path.lexists(path) and not force:
            raise InputError(_exists(path))
        _require_own(path)
    return files


def _exists(path: Path) -> str:
    return f"{path} exists; give another --report, or --force to replace it"


def _require_own(path: Path) -> None:
    """See that what has the name, if anything has, is a report's file."""
    if not os.path.lexists(path):
        return
    head = b""
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    if MARKS[path.suffix] not in head:
        raise InputError(f"{path} is no report of glm-export, so --force does not replace it; remove it yourself")
