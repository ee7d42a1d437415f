"""Folders on a web server: what is asked for, what is refused, and that a model says what it says at home."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.manifest import MANIFEST
from glm_export.artifacts.program import MODEL, WEIGHTS, OnnxProgram
from glm_export.errors import CheckpointError, EnvironmentMissingError, GlmExportError, InputError
from glm_export.store.cache import Cache, View
from tests.helpers.folder_server import files_of, serving_folder
from tests.store.conftest import blobs

Fetch = Callable[[str], View]
Files = dict[str, bytes]
PROMPT = "千山鸟飞绝，万径人踪灭。"


def test_a_program_says_what_it_says_at_home(demo_files: Files, demo_program: OnnxProgram) -> None:
    with serving_folder(demo_files, "demo-onnx") as server:
        with api.load_session(server.url) as session:
            said = api.generate(session, PROMPT)
        loaded = api.open_exported(server.url)
        loaded.require_undamaged()
        assert loaded.folder.name == "demo-onnx"
        assert files_of(loaded.folder) == demo_files
        # Each file came once, also where the folder was opened twice.
        assert [server.bodies(name) for name in demo_files] == [[None]] * len(demo_files)
    with api.load_session(demo_program) as session:
        assert said == api.generate(session, PROMPT)


def test_a_checkpoint_is_read_by_its_index_and_well_known_names(
    checkpoint_files: Files, checkpoint_folder: Path, fetch: Fetch
) -> None:
    with serving_folder(checkpoint_files) as server:
        opened = api.open_checkpoint(server.url)
        assert set(files_of(opened.folder)) == set(checkpoint_files) - {"optimizer.pt", "README.md"}
        assert opened.identity.fingerprint() == api.open_checkpoint(checkpoint_folder).identity.fingerprint()
        fetch(server.url)
        # The second look asks for versions alone.
        assert all(server.bodies(name) == [None] for name in files_of(opened.folder))


@pytest.mark.parametrize("heads", [True, False])
def test_a_changed_version_is_fetched_and_not_mixed(
    heads: bool, checkpoint_files: Files, fetch: Fetch, cache: Cache
) -> None:
    with serving_folder(checkpoint_files) as server:
        server.heads = heads
        first = fetch(server.url)
        server.files["generation_config.json"] = b'{"top_k": 1}'
        second = fetch(server.url)
        assert first.pin != second.pin
        assert (first.folder / "generation_config.json").read_bytes() == b"{}"
        assert (second.folder / "generation_config.json").read_bytes() == b'{"top_k": 1}'
        # The old one is there for whoever pinned it, also where the server is gone.
    assert fetch(f"{server.url}#sha256={first.pin}").folder == first.folder
    with pytest.raises(EnvironmentMissingError, match="cannot be read"):
        fetch(server.url)


def test_a_folder_that_changes_while_it_is_read_is_read_again(checkpoint_files: Files, fetch: Fetch) -> None:
    with serving_folder(checkpoint_files) as server:
        server.change_after["config.json"] = checkpoint_files["config.json"] + b"\n"
        view = fetch(server.url)
        assert (view.folder / "config.json").read_bytes() == checkpoint_files["config.json"] + b"\n"
        assert len(server.bodies("config.json")) == 2


def test_sums_beside_a_checkpoint_are_its_list(checkpoint_files: Files, fetch: Fetch, cache: Cache) -> None:
    named = {name: data for name, data in checkpoint_files.items() if name != "generation_config.json"}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in named.items()).encode()
    with serving_folder(checkpoint_files | {"SHA256SUMS": sums}) as server:
        view = fetch(server.url)
        assert view.pin == hashlib.sha256(sums).hexdigest()
        assert "generation_config.json" not in view.files
        shard = next(name for name in named if name.startswith("model-00001"))
        server.sends[shard] = bytes(len(named[shard]))
        cache.remove_view(view)
        cache.sweep()
        with pytest.raises(CheckpointError, match=rf"{shard} has sha256 .* and SHA256SUMS says"):
            fetch(server.url)


def test_a_hub_that_tells_the_sha256_of_large_files(checkpoint_files: Files, fetch: Fetch) -> None:
    name = next(name for name in checkpoint_files if name.startswith("model-00001"))
    with serving_folder(checkpoint_files) as server:
        server.headers[name] = {"X-Linked-Etag": f'"{hashlib.sha256(checkpoint_files[name]).hexdigest()}"'}
        assert name in fetch(server.url).files
    with serving_folder(checkpoint_files) as server:
        server.headers[name] = {"X-Linked-Etag": f'"{hashlib.sha256(b"another").hexdigest()}"'}
        with pytest.raises(CheckpointError, match=f"{name} has sha256"):
            fetch(server.url)


def test_wrong_bytes_are_refused_and_nothing_of_them_stays(demo_files: Files, fetch: Fetch, cache: Cache) -> None:
    wrong = bytearray(demo_files[WEIGHTS])
    wrong[len(wrong) // 2] ^= 1
    with serving_folder(demo_files) as server:
        server.sends[WEIGHTS] = bytes(wrong)
        with pytest.raises(CheckpointError) as told:
            fetch(server.url)
        assert "\n" not in str(told.value)
        assert WEIGHTS in str(told.value)
        assert cache.views() == []
        assert hashlib.sha256(wrong).hexdigest() not in blobs(cache)
        assert not list(cache.root.rglob(f"{WEIGHTS}*"))
        # The rest is kept; once the file is right it alone is read again.
        server.sends.clear()
        before = len(server.bodies(MODEL))
        assert files_of(fetch(server.url).folder) == demo_files
        assert len(server.bodies(MODEL)) == before


def test_more_bytes_than_were_told_are_not_taken(demo_files: Files, fetch: Fetch, cache: Cache) -> None:
    with serving_folder(demo_files) as server:
        server.files[WEIGHTS] = demo_files[WEIGHTS] + bytes(1 << 20)
        with pytest.raises(CheckpointError, match=r"at most .* bytes, and more arrive"):
            fetch(server.url)
        server.files[WEIGHTS] = demo_files[WEIGHTS][:-1]
        with pytest.raises(EnvironmentMissingError, match="it ended after"):
            fetch(server.url)
    assert cache.views() == []


def test_a_pinned_version_and_no_other(demo_files: Files, fetch: Fetch, cache: Cache) -> None:
    pin = hashlib.sha256(demo_files[MANIFEST]).hexdigest()
    with serving_folder(demo_files) as server:
        with pytest.raises(InputError, match=f"{pin}, and {'0' * 64} is asked for"):
            fetch(f"{server.url}#sha256={'0' * 64}")
        assert fetch(f"{server.url}#sha256={pin}").pin == pin
        asked = len(server.asked)
        fetch(f"{server.url}#sha256={pin}")
        assert len(server.asked) == asked
    # A checkpoint without a list is pinned by the one that sha256sum makes of what arrived.
    with pytest.raises(InputError, match="expected #sha256="):
        fetch(f"{server.url}#main")


def test_a_checkpoint_is_pinned_by_what_sha256sum_says(checkpoint_files: Files, fetch: Fetch) -> None:
    with serving_folder(checkpoint_files) as server:
        view = fetch(server.url)
        names = sorted(path.name for path in view.folder.iterdir())
        text = "".join(f"{hashlib.sha256(checkpoint_files[name]).hexdigest()}  {name}\n" for name in names)
        assert view.pin == hashlib.sha256(text.encode()).hexdigest()
        with pytest.raises(InputError, match="another version"):
            fetch(f"{server.url}#sha256={'1' * 64}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"../x": "sizes"}, "'../x', which is no plain file name"),
        ({"/etc/passwd": "sizes"}, "no plain file name"),
        ({"a\\b": "sizes"}, "no plain file name"),
        ({"a\0b": "sizes"}, "no plain file name"),
        ({".glm-export": "sizes"}, "no plain file name"),
        ({"MODEL.onnx": "sizes"}, "one file on some systems"),
        ({"run.py": "sizes"}, r"holds no \.py file"),
        ({"weights.pkl": "sizes"}, r"holds no \.pkl file"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(
    changes: dict[str, str], words: str, demo_files: Files, fetch: Fetch, cache: Cache
) -> None:
    manifest = json.loads(demo_files[MANIFEST])
    for name in changes:
        manifest["sizes"][name], manifest["sha256"][name] = 1, hashlib.sha256(b"x").hexdigest()
    with serving_folder(demo_files | {MANIFEST: json.dumps(manifest).encode()}) as server:
        with pytest.raises(CheckpointError, match=words):
            fetch(server.url)
        assert {name for method, name, _ in server.asked if method == "GET"} == {MANIFEST}
    assert cache.views() == []


@pytest.mark.parametrize("shard", ["../x.safetensors", "/x.safetensors", "x.bin", "x.py"])
def test_an_index_leads_nowhere_else(shard: str, checkpoint_files: Files, fetch: Fetch) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    with (
        serving_folder(checkpoint_files | {"model.safetensors.index.json": index}) as server,
        pytest.raises(CheckpointError, match="refused"),
    ):
        fetch(server.url)


@pytest.mark.parametrize(
    ("statuses", "error", "words"),
    [
        (dict.fromkeys(("config.json", "adapter_config.json"), 404), InputError, "nothing that says what it is"),
        ({"config.json": 403}, EnvironmentMissingError, "answered with 403"),
        ({"config.json": 503}, EnvironmentMissingError, "the server answers 503"),
        ({"model.safetensors.index.json": 404}, CheckpointError, "holds no weights"),
    ],
)
def test_what_is_not_there_is_said(
    statuses: dict[str, int], error: type[GlmExportError], words: str, checkpoint_files: Files, fetch: Fetch
) -> None:
    with serving_folder(checkpoint_files) as server:
        server.statuses.update(statuses)
        with pytest.raises(error, match=words) as told:
            fetch(server.url)
        assert "\n" not in str(told.value)


def test_credentials_in_a_url_are_used_and_not_shown(
    demo_files: Files, fetch: Fetch, cache: Cache, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving_folder(demo_files) as server:
        url = server.url.replace("http://", "http://me:hidden@") + "?sig=secret"
        view = fetch(url)
        assert view.url == server.url
        server.statuses[MANIFEST] = 403
        with pytest.raises(GlmExportError) as told:
            fetch(url)
    with pytest.raises(GlmExportError) as gone:
        fetch(url)
    written = "".join(
        path.read_text() for path in cache.root.rglob("*.json") if path.name in ("record.json", "seen.json")
    )
    for text in (str(told.value), str(gone.value), written, "".join(capfd.readouterr())):
        assert "hidden" not in text
        assert "secret" not in text
