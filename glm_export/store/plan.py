"""Which files of an address make a model folder, and what is known of each before it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from glm_export.checkpoints.weight_files import WEIGHT_FORMS
from glm_export.errors import CheckpointError, InputError, listed, shown
from glm_export.model_folder import parse_json
from glm_export.store.names import HEX, SUMS, parse_sums, require_harmless, require_names
from glm_export.store.remote import Remote, Store

CONFIG = "config.json"
BESIDE_WEIGHTS = (
    *("generation_config.json", "quantize_config.json", "quant_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("ice_text.model", "cog-pretrain.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "tokenization_chatglm.py"),
)
"""What a checkpoint is read from besides its config and weights; the Python file is looked at, never run."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
AT_ONCE = 8
"""Questions about single files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """What folders that glm-export writes are known by: manifests, the surest first, and files that may lie beside."""

    manifests: tuple[str, ...]
    beside: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Files to have. ``list_sha256``: of the list that names them; None where the store has none, and one is made.

    ``told_by``: the list's name, for people.
    """

    files: tuple[Remote, ...]
    told_by: str
    list_sha256: str | None = None


Read = Callable[[Remote], bytes]
"""The bytes of a small file, which are then in the cache."""


def plan_of(store: Store, ours: Ours, pin: str | None, read: Read) -> Plan:
    """Find out what there is.

    Args:
        store: asked.
        ours: manifests to look for.
        pin: sha256 the list must have; None takes any.
        read: reads a list.

    Raises:
        InputError: there is no model folder, or its list is not the one that is pinned.
        CheckpointError: a list cannot be read, or names what no folder holds.
    """
    listing = store.listed()

    def ask(name: str) -> Remote | None:
        return None if listing is not None and name not in listing else store.ask(name)

    for name in (*ours.manifests, SUMS):
        found = ask(name)
        if found is None:
            continue
        data = read(found)
        told = hashlib.sha256(data).hexdigest()
        if pin is not None and told != pin:
            raise InputError(
                f"{store.address.tell(name)} has sha256 {told}, and {pin} is asked for: another version lies there; "
                "give the URL that is meant, or its new #sha256="
            )
        where = store.address.tell(name)
        exact = replace(found, sha256=told, size=len(data))
        if name == SUMS:
            files = _checkpoint(store, parse_sums(_text(data, where), where), ask, read)
            return Plan(files=files, told_by=SUMS, list_sha256=told)
        recorded = _recorded(data, where, ask)
        beside = [remote for remote in _asked(ours.beside, ask) if remote is not None]
        return Plan(files=(exact, *recorded, *beside), told_by=name, list_sha256=told)
    return Plan(files=_checkpoint(store, None, ask, read), told_by="the store")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is no text: {error}; upload it again") from error


def _recorded(data: bytes, where: str, ask: Callable[[str], Remote | None]) -> list[Remote]:
    """Files of a folder of ours; where an older version recorded no hashes, the store is asked of each."""
    try:
        manifest = parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{where} is not readable JSON: {error}; upload it again") from error
    sizes = manifest.get("sizes") if isinstance(manifest, dict) else None
    hashes = manifest.get("sha256", {}) if isinstance(manifest, dict) else None
    if not isinstance(sizes, dict) or not isinstance(hashes, dict):
        raise CheckpointError(f"{where} does not state the sizes and hashes of its files; export again")
    require_names(sizes, where)
    require_harmless(sizes, where)
    files = []
    for name, size in sizes.items():
        digest = hashes.get(name)
        if type(size) is not int or size < 0 or (digest is not None and not HEX.fullmatch(str(digest))):
            raise CheckpointError(
                f"{where} says {listed([size, digest])} of {name}, expected bytes and a sha256; export again"
            )
        remote = Remote(name=name, size=size, sha256=digest) if digest is not None else ask(name)
        if remote is None:
            raise CheckpointError(f"{where} names {name}, which is not there; upload it")
        files.append(replace(remote, size=size))
    return files


def _asked(names: tuple[str, ...], ask: Callable[[str], Remote | None]) -> list[Remote | None]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, names))


def _checkpoint(
    store: Store, sums: Mapping[str, str] | None, anything: Callable[[str], Remote | None], read: Read
) -> tuple[Remote, ...]:
    """A publisher's folder: config, tokenizer files, and the weights that would be read of it."""

    def ask(name: str) -> Remote | None:
        if sums is None:
            return anything(name)
        if name not in sums:
            return None
        return replace(anything(name) or Remote(name=name), sha256=sums[name])

    found = [remote for remote in _asked((CONFIG, *ADAPTER, *BESIDE_WEIGHTS), ask) if remote is not None]
    names = {remote.name for remote in found}
    if not names & {CONFIG, ADAPTER[0]}:
        raise InputError(
            f"{store.address.told} holds nothing that says what it is: looked for {CONFIG}, {ADAPTER[0]}, {SUMS} and "
            "the manifests that glm-export writes; give the URL of a model folder"
        )
    if ADAPTER[0] in names:
        return tuple(found)
    return (*found, *_weights(store, ask, read))


def _weights(store: Store, ask: Callable[[str], Remote | None], read: Read) -> list[Remote]:
    chosen = next((remote for name in WEIGHT_FORMS if (remote := ask(name)) is not None), None)
    if chosen is None:
        raise CheckpointError(
            f"{store.address.told} holds no weights: expected one of {', '.join(WEIGHT_FORMS)}; upload them too"
        )
    if not chosen.name.endswith(".index.json"):
        return [chosen]
    where, ending = store.address.tell(chosen.name), "." + chosen.name.split(".")[-3]
    shards = _shards(read(chosen), where, ending)
    remotes = _asked(tuple(shards), ask)
    missing = [name for name, remote in zip(shards, remotes, strict=True) if remote is None]
    if missing:
        raise CheckpointError(f"{where} names {missing[0]}, which is not there; upload it")
    return [chosen, *(remote for remote in remotes if remote is not None)]


def _shards(data: bytes, where: str, ending: str) -> list[str]:
    try:
        index: Any = parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{where} is not readable JSON: {error}; upload it again") from error
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"{where} has no weight_map of names to files; upload it again")
    shards = sorted(set(table.values()))
    require_names(shards, where)
    odd = next((name for name in shards if not name.endswith(ending)), None)
    if odd is not None:
        raise CheckpointError(f"{where} names {shown(odd)}, expected {ending} files; refused")
    return shards
