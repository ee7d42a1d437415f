"""Folders and paths as words of the command line: a URL is told from them, and shells complete them."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import rich_click as click

from glm_export.errors import InputError
from glm_export.store.address import is_url, parse_address


class LocalPath(click.Path):
    """A path on this machine, which a URL is not: ``pathlib`` would make a folder ``s3:`` of one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does.

        Raises:
            InputError: it is a URL.
        """
        if isinstance(value, str) and is_url(value):
            raise InputError(f"{parse_address(value).told} is a URL, and a path on this machine is expected here")
        return super().convert(value, param, ctx)


class Model(click.Path):
    """A model folder: what was typed, or a path of it where ``path_type`` says so; a URL stays as it is."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text of a URL, else as click's paths."""
        return value if isinstance(value, str) and is_url(value) else super().convert(value, param, ctx)

    def folder_of(self, value: Any) -> Any:
        """Where a URL's folder lies, in the type that a path would have; everything else as it is."""
        if isinstance(value, tuple):
            return tuple(map(self.folder_of, value))
        if not isinstance(value, str) or not is_url(value):
            return value
        from glm_export.artifacts.open import located
        from glm_export.terminal.frame.saying import progress

        with progress() as shown:
            folder = located(value, shown)
        return folder if self.type is Path else str(folder)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Embedded models, those of the Hugging Face cache, model folders that lie here, and folders on the way."""
        (path,) = super().shell_complete(ctx, param, incomplete)
        names, folders = complete_model(incomplete)
        item = type(path)
        # bash takes folders only where nothing else is offered, so these come first.
        return [*([item(incomplete, type="dir")] if folders else []), *map(item, names)]


def complete_model(incomplete: str) -> tuple[list[str], bool]:
    """Names that may stand where a model is expected, beginning with what was typed; and whether folders may."""
    from glm_export.artifacts.hub_cache import names_in_cache
    from glm_export.artifacts.open import kind_of
    from glm_export.embedded import FOLDERS

    named = [name for name in (*FOLDERS, *names_in_cache()) if name.startswith(incomplete)]
    if not incomplete:
        named += sorted(path.name for path in Path().iterdir() if path.is_dir() and kind_of(path) is not None)
    here = not named or (bool(incomplete) and any(map(os.path.isdir, glob.glob(f"{glob.escape(incomplete)}*"))))
    return named, here
