"""The cache on disk, and its verbs: damage is found, what goes is gone, and a path needs none of it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import glm_export
from glm_export import api
from glm_export.artifacts.program import MODEL, WEIGHTS, OnnxProgram
from glm_export.cli import cli
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.store import opening
from glm_export.store.address import EXTRAS, is_url, parse_address
from glm_export.store.cache import Cache, View, usual_root
from glm_export.store.names import parse_sums
from tests.helpers.folder_server import files_of, serving_folder
from tests.store.conftest import blobs

Fetch = Callable[[str], View]
Files = dict[str, bytes]
ROOT = Path(__file__).parents[2]


def run(*words: str) -> Result:
    """The command line, as a process of its own would remember nothing of URLs."""
    opening._opened.clear()
    return CliRunner().invoke(cli, list(words))


def damage(path: Path, *, unseen: bool) -> None:
    """Turn a bit over; ``unseen`` leaves the times as they were, as a disk that rots does."""
    found = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o444)
    if unseen:
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_folders_are_links_to_read_only_bytes(demo_files: Files, fetch: Fetch, cache: Cache) -> None:
    with serving_folder(demo_files) as server:
        view = fetch(server.url)
    assert len(blobs(cache)) == len(set(demo_files.values()))
    for path in view.folder.iterdir():
        found = path.lstat()
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o444
        assert os.path.samestat(found, (cache.blobs / view.files[path.name].sha256).stat())
    assert not list(cache.root.rglob("partial"))


def test_two_urls_of_the_same_bytes_hold_them_once(demo_files: Files, fetch: Fetch, cache: Cache) -> None:
    with serving_folder(demo_files) as one, serving_folder(demo_files) as other:
        fetch(one.url)
        fetch(other.url)
        assert other.bodies(WEIGHTS) == []
        assert len(cache.views()) == 2
        # One may go without the other.
        assert run("cache", "remove", one.url).exit_code == 0
        assert len(blobs(cache)) == len(set(demo_files.values()))
        assert run("cache", "remove", other.url).exit_code == 0
    assert blobs(cache) == []


@pytest.mark.parametrize("name", [MODEL, WEIGHTS])
def test_damage_that_left_a_mark_is_mended_when_the_folder_is_opened(
    name: str, demo_files: Files, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_folder(demo_files) as server:
        view = fetch(server.url)
        damage(view.folder / name, unseen=False)
        assert files_of(fetch(server.url).folder) == demo_files
        assert len(server.bodies(name)) == 2
        assert f"{name} in the cache is damaged" in caplog.text
        # A control: what is whole is not read again.
        fetch(server.url)
        assert len(server.bodies(name)) == 2


def test_damage_that_left_none_is_found_by_verify(demo_files: Files, fetch: Fetch, cache: Cache) -> None:
    with serving_folder(demo_files) as server:
        view = fetch(server.url)
        assert run("cache", "verify").exit_code == 0
        damage(view.folder / WEIGHTS, unseen=True)
        found = run("cache", "verify")
        assert found.exit_code == 1
        assert f"damaged {WEIGHTS}" in found.output.replace("\n", "")
        assert cache.views() == []
        assert files_of(fetch(server.url).folder) == demo_files
        assert [len(server.bodies(name)) for name in (WEIGHTS, MODEL)] == [2, 1]


def test_fetch_list_and_remove(demo_files: Files, cache: Cache) -> None:
    with serving_folder(demo_files, "demo-onnx") as server:
        fetched = run("fetch", server.url)
        assert fetched.exit_code == 0
        (view,) = cache.views()
        assert fetched.stdout.strip() == str(view.folder)
        assert f"{server.url}#sha256={view.pin}" in fetched.stderr
        listed = json.loads(run("cache", "list", "--json").output)
        assert [(one["url"], one["folder"]) for one in listed] == [(server.url, str(view.folder))]
        assert "1 folder" in run("cache", "list").output
        assert run("cache", "remove").exit_code == 2
        assert run("cache", "remove", "--all").exit_code == 0
    assert json.loads(run("cache", "list", "--json").output) == []
    assert not view.folder.exists()


def test_verbs_take_a_url_where_they_take_a_folder(
    demo_files: Files, demo_program: OnnxProgram, tmp_path: Path
) -> None:
    with serving_folder(demo_files, "demo-onnx") as server:
        words = ("--prompt", "千山鸟飞绝，万径人踪灭。", "--max-new-tokens", "16")
        at_home = run("generate", str(demo_program.folder), *words)
        assert run("generate", server.url, *words).stdout == at_home.stdout != ""
        assert json.loads(run("inspect", server.url, "--json").stdout)["kind"] == "ONNX program"
        assert run("verify", server.url).exit_code == run("verify", str(demo_program.folder)).exit_code
        assert run("doctor", server.url).exit_code == 0
        for refused in (("certify", server.url, "--against", "demo"), ("export", "demo", "--out", server.url)):
            result = run(*refused)
            assert result.exit_code == 2
            assert "is a URL, and a path on this machine is expected" in result.stderr
        with pytest.raises(InputError, match="a proof is written into the folder"):
            glm_export.certify(server.url, "demo")
    with pytest.raises(InputError, match="is a URL, and folders are written on this machine"):
        api.export("demo", "s3://bucket/model")


def test_a_server_calls_a_model_by_its_folder(demo_files: Files) -> None:
    from glm_export.serving.http.served import opened
    from glm_export.serving.options import ServeOptions

    with serving_folder(demo_files, "demo-onnx") as server, opened([server.url], ServeOptions()) as models:
        assert list(models) == ["demo-onnx"]


def test_a_path_needs_no_store(demo_program: OnnxProgram) -> None:
    script = (
        "import sys\n"
        "for name in ('fsspec', 'aiohttp', 's3fs', 'filelock'): sys.modules[name] = None\n"
        "from glm_export.cli import cli\n"
        "sys.exit(cli(['generate', sys.argv[1], '--prompt', '春'], standalone_mode=False))\n"
    )

    def done(source: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, source]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    at_home = done(str(demo_program.folder))
    assert at_home.returncode == 0, at_home.stderr
    elsewhere = done("s3://bucket/model")
    assert elsewhere.returncode == EnvironmentMissingError.exit_code
    assert "s3:// needs the package fsspec, which is not installed; pip install 'glm-export[store]'" in elsewhere.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://", "names no host"), ("s3:///model", "names no host"), ("http://[x/model", "is no URL"),
        ("s3://bucket/model#main", "expected #sha256="),
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_address(url)


def test_what_is_a_url() -> None:
    assert all(is_url(f"{scheme}://bucket/model") for scheme in EXTRAS)
    assert not any(map(is_url, ("demo", "THUDM/chatglm3-6b", "./s3", "file:///etc", "ftp://host/model", Path("s3"))))
    with pytest.raises(InputError, match="give a URL as text"):
        is_url(Path("s3://bucket/model"))
    address = parse_address("https://me:hidden@host/a/b%20c/?sig=x#sha256=" + "a" * 64)
    assert (address.told, address.pin, address.name) == ("https://host/a/b%20c", "a" * 64, "b_20c")
    assert address.file("x") == "https://me:hidden@host/a/b%20c/x?sig=x"


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert usual_root() == tmp_path / "cache"
    monkeypatch.delenv("GLM_EXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert usual_root() == Path("/caches/glm-export")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert usual_root() == Path.home() / ".cache" / "glm-export"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLM_EXPORT_CACHE", str(tmp_path / "file" / "cache"))
    result = run("fetch", "http://127.0.0.1:9/model")
    assert result.exit_code == EnvironmentMissingError.exit_code
    assert "cannot be written (Not a directory); set GLM_EXPORT_CACHE" in result.stderr


def test_sums_as_sha256sum_writes_them(tmp_path: Path) -> None:
    (tmp_path / "a b").write_text("x")
    (tmp_path / "c").write_text("y")
    text = subprocess.run(
        ["sha256sum", "./a b", "c", "-b"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout  # fmt: skip
    digest = "0" * 64
    assert set(parse_sums(text + f"{digest}  below/x\n{digest}  .hidden\n\n", "SUMS")) == {"a b", "c"}
    for line in ("nonsense", f"{digest}  ../x", f"{digest}  /x", f"{digest}  a\\b", f"\\{digest}  a"):
        with pytest.raises(Exception, match="SUMS"):
            parse_sums(line, "SUMS")
