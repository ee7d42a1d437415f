"""The verbs ``fetch`` and ``cache``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.markup import escape

from glm_export.errors import InputError
from glm_export.store.address import is_url, parse_address
from glm_export.store.cache import CACHE_VARIABLE, Cache, View
from glm_export.store.opening import drop
from glm_export.terminal.console import FOLDER, MESSAGES, RESULTS, json_option, show_json, size
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import Column, columns, counted, show_table

if TYPE_CHECKING:
    from collections.abc import Sequence

cache_option = click.option(
    "--cache",
    type=FOLDER,
    metavar="DIR",
    help=f"Where folders lie, in place of {CACHE_VARIABLE} or ~/.cache/glm-export.",
)


@click.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL…")
@cache_option
@json_option()
def fetch(urls: tuple[str, ...], cache: Path | None, as_json: bool) -> None:
    """Fetch the model folder at URL into the cache, and print where it lies there and the URL that pins its version."""
    from glm_export.artifacts.open import kind_of, view_of

    fetched = []
    for url in urls:
        if not is_url(url):
            raise InputError(f"{url!r} is no URL; give s3://…, gs://…, az://… or http(s)://…")
        with progress() as bars:
            view = view_of(url, bars, cache)
        kind = kind_of(view.folder)
        what = f"{kind.value if kind else 'folder'}, {counted(len(view.files), 'file')}, {size(view.size)}"
        MESSAGES.print(f"[green]whole[/] {escape(what)}; this version: {escape(pinned(view))}", soft_wrap=True)
        fetched.append(_facts(view))
        if not as_json:
            click.echo(view.folder)
    if as_json:
        show_json({"folders": fetched})


@click.command()
@click.argument("what", type=click.Choice(["list", "verify", "remove"]), metavar="WHAT")
@click.argument("urls", nargs=-1, metavar="[URL…]")
@click.option("--all", "every", is_flag=True, help="With remove: everything.")
@cache_option
@json_option()
def cache(what: str, urls: tuple[str, ...], every: bool, cache: Path | None, as_json: bool) -> None:
    """List the model folders in the cache, verify their bytes (exit 1 where some are damaged), or remove them.

    WHAT is list, verify or remove; URL: those of it alone. A folder that is damaged is taken out, and fetched again
    when it is next opened. Programs that were packed for this processor lie there as well; remove --all removes them.
    """
    store = Cache(cache)
    keys = [parse_address(url).key for url in urls]
    views = [view for view in store.views() if not keys or view.folder.parents[2].name in keys]
    if what == "list":
        _list(store, views, as_json=as_json)
    elif what == "verify":
        sys.exit(_verify(store, views, as_json=as_json))
    else:
        if bool(keys) == every:
            raise click.UsageError("give the URLs to remove, or --all")
        _remove(store, keys, len(views), as_json=as_json)


def pinned(view: View) -> str:
    """The URL of a folder in the version that is there."""
    return f"{view.url}#sha256={view.pin}"


def _list(store: Cache, views: Sequence[View], *, as_json: bool) -> None:
    if as_json:
        show_json([_facts(view) for view in views])
        return
    rows = []
    for view in views:
        opened = time.strftime("%Y-%m-%d %H:%M", time.localtime(view.used))
        row = (view.url, view.pin[:12], f"{len(view.files):,}", size(view.size), opened)
        rows.append([escape(cell) for cell in row])
    heads = [Column("url"), Column("version"), *columns("files", "size", "last opened", number=True)]
    if rows:
        show_table(RESULTS, heads, rows)
    partial = store.partial_bytes()
    begun = f", {size(partial)} of downloads that were cut off or go on" if partial else ""
    RESULTS.print(f"{escape(str(store.root))}: {counted(len(views), 'folder')}{begun}", soft_wrap=True)
    from glm_export.sessions.onnxruntime.packed import PackedPrograms

    packed = PackedPrograms(store.root).every()
    if packed:
        total = size(sum(one.size for one in packed))
        RESULTS.print(f"packed for this processor: {counted(len(packed), 'program')}, {total}", soft_wrap=True)
        for one in packed:
            RESULTS.print(f"  {escape(one.source)}, {size(one.size)}", soft_wrap=True)


def _facts(view: View) -> dict[str, Any]:
    return {
        "url": view.url,
        "pin": view.pin,
        "folder": str(view.folder),
        "bytes": view.size,
        "last_opened": view.used,
        "files": {name: link.sha256 for name, link in view.files.items()},
    }


def _verify(store: Cache, views: Sequence[View], *, as_json: bool) -> int:
    found = []
    for view in views:
        with progress() as bars:
            damaged = view.damaged(thorough=True, advance=bars.task(view.folder.name, view.size))
        verdict = "[green]whole[/]" if damaged is None else f"[red]damaged[/] {escape(damaged)}, removed:"
        if not as_json:
            RESULTS.print(f"{verdict} {escape(pinned(view))}", soft_wrap=True)
        found.append({"url": view.url, "pin": view.pin, "damaged": damaged})
        if damaged is not None:
            drop(view, store)
    if as_json:
        show_json(found)
    elif not found:
        RESULTS.print("there is nothing to verify")
    return 1 if any(one["damaged"] is not None for one in found) else 0


def _remove(store: Cache, keys: Sequence[str], count: int, *, as_json: bool) -> None:
    folders = store.root / "folders"
    homes = keys or sorted(path.name for path in folders.iterdir()) if folders.is_dir() else []
    for key in homes:
        with store.lock(key, wait=False):
            store.clear(key)
    freed = store.sweep()
    if not keys:
        from glm_export.sessions.onnxruntime.packed import PackedPrograms

        freed += PackedPrograms(store.root).clear()
    if as_json:
        show_json({"folders": count, "bytes": freed})
        return
    RESULTS.print(f"removed {counted(count, 'folder')}, {size(freed)}")
