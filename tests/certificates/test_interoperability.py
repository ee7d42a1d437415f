"""The public command `model_signing` accepts our signatures, and `verify` accepts its; with keys and certificates."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from model_signing import hashing, signing

from glm_export import api, certify, verify
from glm_export.artifacts.manifest import MANIFEST, PROOF, RANGES_MANIFEST, SIGNATURE, STATEMENTS
from glm_export.artifacts.program import WEIGHTS
from glm_export.certificates.options import Signer, Trust
from glm_export.model_folder import file_sha256
from tests.certificates.conftest import SOURCE, Copies, Runs, changed
from tests.helpers.authority import Authority, Pair, key_pair


def model_signing(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The library's own command."""
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def theirs(folder: Path, pair: Pair) -> subprocess.CompletedProcess[str]:
    return model_signing("verify", "key", folder, "--public_key", pair.public, "--signature", folder / SIGNATURE)


def test_their_command_finds_one_changed_byte_in_each_signed_file(signed: Path, pairs: dict[str, Pair]) -> None:
    assert theirs(signed, pairs["ours"]).returncode == 0
    # Statements have signatures of their own, and are not part of the folder's.
    for name in sorted(path.name for path in signed.iterdir() if path.name != STATEMENTS):
        sound = (signed / name).read_bytes()
        changed(signed / name)
        found = theirs(signed, pairs["ours"])
        assert found.returncode == 1, name
        assert name == SIGNATURE or ("Hash mismatch" in found.stderr and f"'{name}" in found.stderr.replace("\\", ""))
        (signed / name).write_bytes(sound)
    assert theirs(signed, pairs["theirs"]).returncode == 1
    (signed / "added").write_text("x")
    assert theirs(signed, pairs["ours"]).returncode == 1


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
@pytest.mark.parametrize("lies", ["in the folder", "elsewhere"])
def test_what_their_command_signed_is_accepted(
    curve: str, lies: str, copied: Copies, run: Runs, tmp_path: Path
) -> None:
    folder, pair = copied(), key_pair(tmp_path, "theirs", curve)
    signature = folder / SIGNATURE if lies == "in the folder" else tmp_path / "their.sig"
    made = model_signing("sign", "key", folder, "--private_key", pair.private, "--signature", signature)
    assert made.returncode == 0, made.stderr
    where = [] if lies == "in the folder" else ["--signature", signature]
    done = run("verify", folder, "--key", pair.public, *where)
    assert done.exit_code == 0, done.output
    assert "parity statement: none" in done.stdout
    assert f"signed by: key sha256:{file_sha256(pair.public)}" in done.stdout
    changed(folder / WEIGHTS)
    done = run("verify", folder, "--key", pair.public, *where)
    assert (done.exit_code, f"{WEIGHTS}: changed" in done.stdout) == (1, True)


def test_what_they_signed_under_any_name_with_a_certified_manifest_says_what_was_proven(
    copied: Copies, pairs: dict[str, Pair]
) -> None:
    folder = copied(certified=True)
    path = folder / "theirs.sig"
    # The library leaves out what it is told to, and that its own file lies there nobody told it.
    signing.Config().use_elliptic_key_signer(private_key=pairs["theirs"].private).sign(folder, path)
    found = verify(folder, trust=Trust(key=pairs["theirs"].public), signature=path)
    assert found.holds
    assert found.proof is not None
    assert found.statements == "none"


def test_a_checkpoint_that_its_publisher_signed_is_verified(chatglm2_copy: Path, pairs: dict[str, Pair]) -> None:
    config = signing.Config().use_elliptic_key_signer(private_key=pairs["theirs"].private)
    config.sign(chatglm2_copy, chatglm2_copy.parent / SIGNATURE)
    trust, path = Trust(key=pairs["theirs"].public), chatglm2_copy.parent / SIGNATURE
    assert verify(chatglm2_copy, trust=trust, signature=path).holds
    changed(chatglm2_copy / "config.json")
    assert not verify(chatglm2_copy, trust=trust, signature=path).holds


@pytest.mark.parametrize("how", ["blake2", "blake3", "shards"])
def test_other_ways_to_hash_are_read(how: str, copied: Copies, pairs: dict[str, Pair]) -> None:
    folder, hashed = copied(certified=True), hashing.Config()
    if how == "shards":
        hashed.use_shard_serialization(shard_size=10_000)
    else:
        hashed.use_file_serialization(hashing_algorithm=how)
    config = signing.Config().use_elliptic_key_signer(private_key=pairs["theirs"].private).set_hashing_config(hashed)
    config.sign(folder, folder / SIGNATURE)
    trust = Trust(key=pairs["theirs"].public)
    found = verify(folder, trust=trust)
    assert found.holds, found.problems
    assert found.proof is not None
    changed(folder / WEIGHTS)
    found = verify(folder, trust=trust)
    assert {one.name.partition(":")[0] for one in found.differences} == {WEIGHTS}


def test_certificates_both_ways(copied: Copies, run: Runs, tmp_path: Path) -> None:
    authority, pair = Authority(tmp_path / "authority"), key_pair(tmp_path, "signer", "p384")
    certificate = authority.certificate("signer", pair.key)
    chain = ["--certificate-chain", authority.intermediate]
    folder = copied()
    done = run("certify", folder, "--against", SOURCE, "--key", pair.private, "--certificate", certificate, *chain)
    assert done.exit_code == 0, done.output
    assert "CN=signer & Söhne" in done.stdout
    done = run("verify", folder, "--certificate-chain", authority.root)
    assert done.exit_code == 0, done.output
    assert "signed by: CN=signer & Söhne (certificate of CN=Root\\, intermediate, key sha256:" in done.stdout
    assert "test result and provenance, by the same signer" in done.stdout
    accepted = model_signing(
        "verify", "certificate", folder, "--signature", folder / SIGNATURE, "--certificate_chain", authority.root
    )
    assert accepted.returncode == 0, accepted.stderr
    # The other way round, and without what lies between.
    other = copied("other")
    made = model_signing(
        "sign",
        "certificate",
        other,
        "--private_key",
        pair.private,
        "--signing_certificate",
        certificate,
        "--certificate_chain",
        authority.intermediate,
        "--signature",
        other / SIGNATURE,
    )
    assert made.returncode == 0, made.stderr
    assert run("verify", other, "--certificate-chain", authority.root).exit_code == 0
    certify(copied("short"), SOURCE, signer=Signer(key=pair.private, certificate=certificate))
    short = tmp_path / "short"
    assert run("verify", short, "--certificate-chain", authority.root).exit_code == 1
    both = ["--certificate-chain", authority.root, "--certificate-chain", authority.intermediate]
    assert run("verify", short, *both).exit_code == 0


@pytest.mark.parametrize("wrong", ["another root", "key", "nothing", "a statement by another key"])
def test_a_certificate_that_is_not_vouched_for_is_refused(
    wrong: str, copied: Copies, run: Runs, tmp_path: Path, pairs: dict[str, Pair]
) -> None:
    authority, pair = Authority(tmp_path / "authority"), key_pair(tmp_path, "signer")
    certificate = authority.certificate("signer", pair.key)
    signer = Signer(key=pair.private, certificate=certificate, chain=(authority.intermediate,))
    folder = copied("signed", signer=signer)
    root = ["--certificate-chain", authority.root]
    assert run("verify", folder, *root).exit_code == 0
    if wrong == "another root":
        other = Authority(tmp_path / "elsewhere")
        done = run("verify", folder, "--certificate-chain", other.root)
        assert (done.exit_code, "is not signed by" in done.stdout) == (1, True)
    elif wrong == "key":
        done = run("verify", folder, "--key", pair.public)
        assert (done.exit_code, "give --certificate-chain" in done.stdout) == (1, True)
    elif wrong == "nothing":
        done = run("verify", folder)
        assert (done.exit_code, "--certificate-chain ROOT.pem" in done.stderr) == (2, True)
    else:
        done = run("verify", copied("bare", signer=Signer(key=pair.private)), *root)
        assert (done.exit_code, "give --key" in done.stdout) == (1, True)
        (folder / STATEMENTS).write_bytes(
            (copied("b", signer=Signer(key=pairs["ours"].private)) / STATEMENTS).read_bytes()
        )
        done = run("verify", folder, *root)
        assert (done.exit_code, "signed by another key" in done.stdout) == (1, True)


def payloads(folder: Path) -> dict[str, dict[str, Any]]:
    """Statements by the type of their predicate, each as strict readers of in-toto take it."""
    found = {}
    for line in (folder / STATEMENTS).read_text().splitlines():
        envelope = json.loads(line)
        assert envelope["payloadType"] == "application/vnd.in-toto+json"
        payload = base64.b64decode(envelope["payload"])
        json_format.Parse(payload, statement_pb2.Statement())
        found[json.loads(payload)["predicateType"]] = json.loads(payload)
    return found


def test_statements_are_what_in_toto_and_slsa_call_so_over_the_signatures_digests(
    signed: Path, pairs: dict[str, Pair]
) -> None:
    stated = payloads(signed)
    for line in (signed / STATEMENTS).read_text().splitlines():
        # By DSSE's own words, without the library.
        envelope = json.loads(line)
        payload, sig = base64.b64decode(envelope["payload"]), base64.b64decode(envelope["signatures"][0]["sig"])
        encoded = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
        pairs["ours"].key.public_key().verify(sig, encoded, ec.ECDSA(hashes.SHA256()))
    signature = json.loads((signed / SIGNATURE).read_text())["dsseEnvelope"]["payload"]
    subject = json.loads(base64.b64decode(signature))["subject"]
    assert [payload["subject"] for payload in stated.values()] == [subject, subject]
    result = stated["https://in-toto.io/attestation/test-result/v0.1"]["predicate"]
    json_format.ParseDict(result, test_result_pb2.TestResult())
    manifest = json.loads((signed / MANIFEST).read_text())
    assert result["result"] == "PASSED"
    assert result["passedTests"] == [claim["name"] for claim in manifest[PROOF]["claims"]]
    assert result["failedTests"] == result["warnedTests"] == []
    assert result["configuration"][0]["digest"] == {"sha256": file_sha256(signed / MANIFEST)}
    provenance = stated["https://slsa.dev/provenance/v1"]["predicate"]
    json_format.ParseDict(provenance, provenance_pb2.Provenance())
    made = provenance["buildDefinition"]
    assert made["externalParameters"] == {
        "checkpoint": "chatglm2",
        "family": "chatglm2",
        "adapters": [],
        "dialect": "onnx",
        "opset": 23,
        "dtype": "float32",
        "logits": "all",
        "recipe": None,
        "left_in_float": {},
    }
    resolved = {entry["name"]: entry["digest"] for entry in made["resolvedDependencies"] if "name" in entry}
    assert resolved == {name: {"sha256": digest} for name, digest in manifest["source_sha256"].items()}
    assert resolved["config.json"] == {"sha256": file_sha256(SOURCE / "config.json")}
    assert f"pkg:pypi/torch@{manifest['packages']['torch']}" in [
        entry.get("uri") for entry in made["resolvedDependencies"]
    ]
    assert provenance["runDetails"]["builder"]["version"] == {"glm-export": manifest["packages"]["glm-export"]}


def test_ranges_are_part_of_the_lineage(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    ranges = api.calibrate("demo", tmp_path / "ranges", corpus="poems", max_samples=1)
    program = api.export("demo", tmp_path / "rounded", recipe="int8-static", ranges=ranges)
    certify(program, "demo", signer=Signer(key=pairs["ours"].private))
    predicate = payloads(program.folder)["https://slsa.dev/provenance/v1"]["predicate"]
    digests = {entry.get("name"): entry.get("digest") for entry in predicate["buildDefinition"]["resolvedDependencies"]}
    assert digests[RANGES_MANIFEST] == {"sha256": file_sha256(tmp_path / "ranges" / RANGES_MANIFEST)}
    assert predicate["buildDefinition"]["externalParameters"]["recipe"] == "int8-static"
