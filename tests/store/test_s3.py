"""Folders in S3, as moto plays it on this machine: s3fs, botocore and credentials are the real ones."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import CheckpointError, EnvironmentMissingError, InputError
from glm_export.store.cache import Cache, View
from glm_export.store.objects import ObjectStore
from glm_export.store.remote import Remote
from tests.helpers.folder_server import files_of

boto3 = pytest.importorskip("boto3", reason="the extra test brings moto")

Fetch = Callable[[str], View]
Files = dict[str, bytes]
PROMPT = "千山鸟飞绝，万径人踪灭。"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 of this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket, and an environment that leads there as a machine's role would."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    name = f"models-{os.urandom(4).hex()}"
    client.create_bucket(Bucket=name)
    yield boto3.resource("s3").Bucket(name)
    client.close()


def upload(bucket: Any, prefix: str, files: Files) -> str:
    """Put files there; says the folder's URL."""
    for name, data in files.items():
        bucket.put_object(Key=f"{prefix}/{name}", Body=data)
    return f"s3://{bucket.name}/{prefix}"


def test_a_program_says_what_it_says_at_home(bucket: Any, demo_files: Files, demo_program: OnnxProgram) -> None:
    url = upload(bucket, "released/demo-onnx", demo_files)
    with api.load_session(url) as session:
        said = api.generate(session, PROMPT)
    assert files_of(api.open_exported(url).folder) == demo_files
    with api.load_session(demo_program) as session:
        assert said == api.generate(session, PROMPT)


def test_a_checkpoint_is_listed_and_its_versions_are_told(
    bucket: Any, checkpoint_files: Files, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(bucket, "tiny", checkpoint_files)
    bucket.put_object(Key="tiny/below/config.json", Body=b"another's")
    bucket.put_object(Key="tiny/", Body=b"")
    first = fetch(url)
    assert set(first.files) == set(checkpoint_files) - {"optimizer.pt", "README.md"}
    read: list[str] = []
    stream = ObjectStore.stream

    def counted(self: ObjectStore, remote: Remote, offset: int) -> tuple[int, Iterator[bytes]]:
        read.append(remote.name)
        return stream(self, remote, offset)

    monkeypatch.setattr(ObjectStore, "stream", counted)
    assert fetch(url).folder == first.folder
    assert read == []
    shard = next(name for name in checkpoint_files if name.startswith("model-00002"))
    bucket.put_object(Key=f"tiny/{shard}", Body=checkpoint_files[shard][::-1])
    second = fetch(url)
    assert read == [shard]
    assert (second.folder / shard).read_bytes() == checkpoint_files[shard][::-1]
    assert (first.folder / shard).read_bytes() == checkpoint_files[shard]


def test_an_uploaded_checksum_is_held_to(
    bucket: Any, checkpoint_files: Files, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(bucket, "sums", checkpoint_files)
    data = checkpoint_files["generation_config.json"]
    bucket.put_object(Key="sums/generation_config.json", Body=data, ChecksumAlgorithm="SHA256")
    part = ObjectStore._part

    def flipped(self: ObjectStore, path: str, remote: Remote, start: int, stop: int) -> bytes:
        found = part(self, path, remote, start, stop)
        return found[::-1] if remote.name == "generation_config.json" else found

    monkeypatch.setattr(ObjectStore, "_part", flipped)
    with pytest.raises(CheckpointError, match=r"generation_config\.json has sha256 .*, and the store says"):
        fetch(url)
    monkeypatch.undo()


def test_a_change_between_two_parts_is_refused_by_the_store(
    bucket: Any, checkpoint_files: Files, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(bucket, "parts", checkpoint_files)
    shard = next(name for name in checkpoint_files if name.startswith("model-00001"))
    monkeypatch.setattr("glm_export.store.objects.PART_BYTES", 1 << 16)
    part, changed = ObjectStore._part, checkpoint_files[shard][::-1]

    def meanwhile(self: ObjectStore, path: str, remote: Remote, start: int, stop: int) -> bytes:
        if remote.name == shard and start and remote.version != f'"{hashlib.md5(changed).hexdigest()}"':
            bucket.put_object(Key=f"parts/{shard}", Body=changed)
        return part(self, path, remote, start, stop)

    monkeypatch.setattr(ObjectStore, "_part", meanwhile)
    assert (fetch(url).folder / shard).read_bytes() == changed


def test_what_is_not_there_or_not_allowed_is_one_line(
    bucket: Any, cache: Cache, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is not there") as told:
        fetch(f"s3://{bucket.name}/nothing")
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="is not there"):
        fetch(f"s3://{bucket.name}-of-nobody/model")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(EnvironmentMissingError, match="cannot be read"):
        fetch(f"s3://{bucket.name}/model")
    assert cache.views() == []
