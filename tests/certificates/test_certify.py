"""`certify`: what passed is written into the folder and nothing else is changed; what fails leaves it as it was."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glm_export import api, certify, verify
from glm_export.artifacts.engine import KERNELS, load_engine
from glm_export.artifacts.manifest import ENGINE_MANIFEST, MANIFEST, PROOF, SIGNATURE, STATEMENTS, recorded_files
from glm_export.artifacts.open import Kind
from glm_export.artifacts.program import MODEL, WEIGHTS, load_program
from glm_export.certificates.certify import _written, certify_checked
from glm_export.certificates.claims import proof_of
from glm_export.certificates.digests import own_digests, root_digest
from glm_export.certificates.options import Signer, Trust
from glm_export.errors import CheckpointError, InputError
from glm_export.machine.gpu import has_driver
from glm_export.model_folder import file_sha256
from glm_export.proof.check import CheckReport
from tests.certificates.conftest import SOURCE, Copies, Runs
from tests.helpers.authority import PASSWORD, Authority, Pair, key_pair
from tests.helpers.connections import WATCHING
from tests.helpers.golden_data import GOLDEN

ENGINE = GOLDEN / "written_before" / "engine"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / MANIFEST).read_text())


def test_without_a_key_the_manifest_says_what_was_proven_and_nothing_else_changes(copied: Copies, run: Runs) -> None:
    folder = copied()
    before, said = bytes_of(folder), manifest_of(folder)
    done = run("certify", folder, "--against", SOURCE)
    assert done.exit_code == 0, done.output
    assert "PASSED" in done.stdout
    assert "not signed" in done.stdout
    after = bytes_of(folder)
    assert before.keys() == after.keys()
    assert [name for name in after if after[name] != before[name]] == [MANIFEST]
    proof = manifest_of(folder).pop(PROOF)
    assert manifest_of(folder) == said | {PROOF: proof}
    assert proof["result"] == "PASSED"
    assert (proof["reference"], proof["candidate"], proof["signed_in"]) == ("pytorch", "onnxruntime", [])
    assert proof["versions"].keys() >= {"glm-export", "torch", "polygraphy", "numpy", "python"}
    claims = {claim["name"]: claim for claim in proof["claims"]}
    assert {"prefill: logits", "padded batch: cache", "end of context: logits"} < claims.keys()
    assert all(0 <= claim["measured"] <= claim["bound"] for claim in claims.values())
    # It is read as it was, and hashes look elsewhere.
    load_program(folder).require_undamaged()
    assert verify(folder).holds


def test_with_a_key_two_files_are_added(copied: Copies, pairs: dict[str, Pair], run: Runs) -> None:
    folder = copied()
    names = bytes_of(folder).keys()
    done = run("certify", folder, "--against", SOURCE, "--key", pairs["ours"].private, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["signed_by"] == f"key sha256:{file_sha256(pairs['ours'].public)}"
    assert bytes_of(folder).keys() == names | {SIGNATURE, STATEMENTS}
    assert manifest_of(folder)[PROOF]["signed_in"] == [SIGNATURE, STATEMENTS]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert verify(folder, trust=Trust(key=pairs["ours"].public)).holds
    again = run("certify", folder, "--against", SOURCE, "--key", pairs["ours"].private)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run("certify", folder, "--against", SOURCE, "--key", pairs["theirs"].private, "--force").exit_code == 0
    assert verify(folder, trust=Trust(key=pairs["theirs"].public)).holds
    # Without a key a signature that would no longer fit goes.
    assert run("certify", folder, "--against", SOURCE, "--force").exit_code == 0
    assert bytes_of(folder).keys() == names


def test_what_does_not_pass_is_not_certified_and_stays_as_it_is(
    copied: Copies, pairs: dict[str, Pair], run: Runs
) -> None:
    folder = copied()
    weights = np.fromfile(folder / WEIGHTS, np.float32)
    weights *= np.float32(1.01)
    weights.tofile(folder / WEIGHTS)
    # Whoever changes a program changes its manifest as well.
    manifest = manifest_of(folder)
    manifest["sha256"][WEIGHTS] = file_sha256(folder / WEIGHTS)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    before = bytes_of(folder)
    done = run("certify", folder, "--against", SOURCE, "--key", pairs["ours"].private)
    assert done.exit_code == 1
    assert "prefill: logits" in done.stderr
    assert bytes_of(folder) == before


def test_a_file_that_changes_while_the_folder_is_signed_is_noticed(
    copied: Copies, report: CheckReport, pairs: dict[str, Pair]
) -> None:
    """As it is where the digests of a moment ago are not those that are signed."""
    folder = copied()
    own = own_digests(folder, Kind.PROGRAM)
    proof = proof_of(report, "float32", beside={}, files_sha256=root_digest(own), signed_in=())
    before = bytes_of(folder)
    signer = Signer(key=pairs["ours"].private)
    with pytest.raises(InputError, match=f"{WEIGHTS}: changed; run it again"):
        _written(folder, MANIFEST, proof, own | {WEIGHTS: "0" * 64}, signer)
    assert bytes_of(folder) == before


def test_a_damaged_folder_is_not_certified(copied: Copies, report: CheckReport) -> None:
    folder = copied()
    loaded = load_program(folder)
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    before = bytes_of(folder)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}: changed"):
        certify_checked(loaded, report, signer=None)
    assert bytes_of(folder) == before


@pytest.mark.parametrize("was", ["plain", "signed"])
def test_where_signing_fails_the_folder_is_as_it_was(
    was: str, copied: Copies, report: CheckReport, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    folder = copied(signer=Signer(key=pairs["ours"].private) if was == "signed" else None)
    before = bytes_of(folder)
    with pytest.raises((InputError, OSError)):
        certify_checked(load_program(folder), report, signer=Signer(key=tmp_path / "gone.pem"))
    assert bytes_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_link_in_the_folder_is_refused(copied: Copies, run: Runs, tmp_path: Path) -> None:
    folder = copied()
    (tmp_path / "elsewhere").write_text("x")
    (folder / "notes").symlink_to(tmp_path / "elsewhere")
    done = run("certify", folder, "--against", SOURCE)
    assert (done.exit_code, "notes: a link" in done.stderr) == (2, True)


def test_what_lies_beside_the_model_card_is_certified_with_the_rest(copied: Copies, pairs: dict[str, Pair]) -> None:
    folder = copied()
    assert (folder / "README.md").is_file()  # the card is one of our own files
    (folder / "NOTES.md").write_text("A model.\n")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "one.svg").write_text("<svg/>")
    certify(folder, SOURCE)
    assert verify(folder).holds
    certify(folder, SOURCE, signer=Signer(key=pairs["ours"].private))
    trust = Trust(key=pairs["ours"].public)
    assert verify(folder, trust=trust).holds
    (folder / "pictures" / "one.svg").write_text("<svg onload=''/>")
    assert [str(one) for one in verify(folder, trust=trust).differences] == ["pictures/one.svg: changed"]


def test_a_certified_folder_is_replaced_when_asked_and_a_signature_of_others_is_not(
    signed: Path, copied: Copies
) -> None:
    api.export(SOURCE, signed, force=True)
    assert not (signed / SIGNATURE).exists()
    assert PROOF not in manifest_of(signed)
    folder = copied("theirs", certified=True)
    (folder / SIGNATURE).write_text("{}")
    with pytest.raises(InputError, match=SIGNATURE):
        api.export(SOURCE, folder, force=True)


@pytest.mark.parametrize("given", ["variable", "prompt", "nothing", "wrong"])
def test_a_password_is_given_by_a_variable_or_asked_for(
    given: str, copied: Copies, run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pair = copied(), key_pair(tmp_path, "locked", password=PASSWORD)
    monkeypatch.delenv("GLM_EXPORT_KEY_PASSWORD", raising=False)
    if given in ("variable", "wrong"):
        monkeypatch.setenv("GLM_EXPORT_KEY_PASSWORD", PASSWORD if given == "variable" else "夏眠")
    if given == "prompt":
        monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
    done = run("certify", folder, "--against", SOURCE, "--key", pair.private, input=f"{PASSWORD}\n")
    works = given in ("variable", "prompt")
    assert done.exit_code == (0 if works else 2), done.output
    assert (folder / SIGNATURE).exists() == works
    assert PASSWORD not in done.output
    assert ("GLM_EXPORT_KEY_PASSWORD" in done.stderr) == (given == "nothing")
    assert ("password is wrong" in done.stderr) == (given == "wrong")
    assert not works or verify(folder, trust=Trust(key=pair.public)).holds


WATCHED = (
    WATCHING
    + """\
from pathlib import Path
from glm_export import certify, verify
from glm_export.certificates.options import Signer, Trust
folder, source, private, public, certificate, intermediate, root = map(Path, sys.argv[1:])
certify(folder, source, signer=Signer(key=private))
assert verify(folder, trust=Trust(key=public)).holds
signer = Signer(key=private, certificate=certificate, chain=(intermediate,))
certify(folder, source, signer=signer, force=True)
assert verify(folder, trust=Trust(chain=(root,))).holds
"""
)


def test_no_connection_is_opened(copied: Copies, pairs: dict[str, Pair], tmp_path: Path) -> None:
    """As it is watched for in ``tests/house/test_security.py``, which shows that a connection is seen."""
    pair, authority = pairs["ours"], Authority(tmp_path / "authority")
    certificate = authority.certificate("signer", pair.key)
    files = (copied(), SOURCE, pair.private, pair.public, certificate, authority.intermediate, authority.root)
    command = [sys.executable, "-W", "ignore", "-c", WATCHED, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONNECTS" not in done.stderr


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine's folder, whose plan nothing reads here."""
    folder = tmp_path / "engine"
    shutil.copytree(ENGINE, folder)
    manifest = json.loads((folder / ENGINE_MANIFEST).read_text())
    manifest["program"]["sha256"] = {MODEL: "0" * 64}
    for name, size in manifest["sizes"].items():
        if not (folder / name).exists():
            (folder / name).write_bytes(bytes(size))
    (folder / ENGINE_MANIFEST).unlink()
    (folder / ENGINE_MANIFEST).write_text(json.dumps(manifest | recorded_files(folder)))
    return folder


def test_an_engines_folder_is_certified_by_the_same_machinery(
    engine: Path, report: CheckReport, pairs: dict[str, Pair]
) -> None:
    (engine / KERNELS).write_bytes(b"kernels of this machine")
    certify_checked(load_engine(engine), report, signer=Signer(key=pairs["ours"].private))
    assert not (engine / KERNELS).exists()
    load_engine(engine).require_undamaged()
    trust = Trust(key=pairs["ours"].public)
    assert verify(engine, trust=trust).holds
    _, lineage = (engine / STATEMENTS).read_text().splitlines()
    made = json.loads(base64.b64decode(json.loads(lineage)["payload"]))["predicate"]["buildDefinition"]
    assert made["buildType"].endswith("/build/v1")
    assert made["externalParameters"].keys() == {"export", "runtime", "version", "options", "limits", "compatibility"}
    assert {"name": f"program/{MODEL}", "digest": {"sha256": "0" * 64}} in made["resolvedDependencies"]
    # Machine code that nobody signed would run on the GPU.
    (engine / KERNELS).write_bytes(b"kernels")
    found = verify(engine, trust=trust)
    assert not found.holds
    assert "remove it" in str(found.differences[0])


@pytest.mark.skipif(has_driver(), reason="a GPU is here, and would be given a plan that is none")
def test_an_engine_that_will_not_load_here_is_not_certified(engine: Path, run: Runs) -> None:
    (engine / KERNELS).write_bytes(b"kernels of this machine")
    before = bytes_of(engine)
    done = run("certify", engine, "--against", GOLDEN / "written_before" / "checkpoint")
    assert done.exit_code == 3, done.output
    assert bytes_of(engine) == before


def test_folders_of_older_versions_without_hashes_are_refused(report: CheckReport, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(GOLDEN / "written_before" / "onnx", folder)
    with pytest.raises(CheckpointError, match="no hashes"):
        certify_checked(load_program(folder), report, signer=None)
