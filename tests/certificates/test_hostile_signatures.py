"""Signatures and statements as nobody should send them: each ends in one line and exit code 1, out of no folder."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from glm_export.artifacts.manifest import MANIFEST, PROOF, SIGNATURE, STATEMENTS
from glm_export.artifacts.program import WEIGHTS
from glm_export.certificates.options import Signer
from glm_export.certificates.predicates import TEST_RESULT
from glm_export.certificates.signature import read_bundle, sign_folder
from glm_export.certificates.statements import Subject, enveloped
from glm_export.model_folder import file_sha256
from tests.certificates.conftest import Copies, Runs, changed
from tests.helpers.authority import Pair

Json = dict[str, Any]


def signed_bundle(pair: Pair, statement: Json | bytes) -> str:
    """A bundle as the library makes it, over any statement, truly signed."""
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    encoded = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [
            {"sig": base64.b64encode(pair.key.sign(encoded, ec.ECDSA(hashes.SHA256()))).decode(), "keyid": ""}
        ],
    }
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": file_sha256(pair.public)}, "tlogEntries": []},
            "dsseEnvelope": envelope,
        }
    )


def statement_in(path: Path) -> Json:
    return json.loads(base64.b64decode(json.loads(path.read_text())["dsseEnvelope"]["payload"]))


def statements_in(folder: Path) -> dict[str, Json]:
    """Predicates by their types."""
    lines = (folder / STATEMENTS).read_text().splitlines()
    payloads = [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in lines]
    return {payload["predicateType"]: payload["predicate"] for payload in payloads}


def root_of(resources: list[Json]) -> str:
    import hashlib

    return hashlib.sha256(b"".join(bytes.fromhex(entry["digest"]) for entry in resources)).hexdigest()


def test_what_these_tests_sign_would_hold(signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    """The control: the same statement signed again by hand."""
    (signed / SIGNATURE).write_text(signed_bundle(pairs["ours"], statement_in(signed / SIGNATURE)))
    assert run("verify", signed, "--key", pairs["ours"].public).exit_code == 0


BUNDLES: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda _: "",
    "truncated": lambda text: text[: len(text) // 2],
    "no JSON": lambda _: "-----BEGIN SIGNATURE-----",
    "not UTF-8": lambda _: b"\xff\xfe\x00",
    "a list": lambda text: f"[{text}]",
    "a number": lambda _: "1",
    "null": lambda _: "null",
    "deep": lambda _: "[" * 100_000,
    "no envelope": lambda _: '{"verificationMaterial": {}}',
    "no material": lambda text: json.dumps({"dsseEnvelope": json.loads(text)["dsseEnvelope"]}),
    "no signatures": lambda text: _with(text, lambda values: values["dsseEnvelope"].update(signatures=[])),
    "signature of a word": lambda text: _with(
        text, lambda values: values["dsseEnvelope"].update(signatures=[{"sig": "word", "keyid": ""}])
    ),
    "payload of no base64": lambda text: _with(text, lambda values: values["dsseEnvelope"].update(payload="§")),
    "payload a number": lambda text: _with(text, lambda values: values["dsseEnvelope"].update(payload=1)),
    "another type": lambda text: _with(text, lambda values: values["dsseEnvelope"].update(payloadType="text/plain")),
    "hint a list": lambda text: _with(
        text, lambda values: values["verificationMaterial"].update(publicKey={"hint": ["x"]})
    ),
    "a certificate that is none": lambda text: _with(
        text,
        lambda values: values.update(
            verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}
        ),
    ),
    "no certificates": lambda text: _with(
        text, lambda values: values.update(verificationMaterial={"x509CertificateChain": {"certificates": []}})
    ),
    "an identity of Sigstore": lambda text: _with(
        text, lambda values: values.update(verificationMaterial={"certificate": {"rawBytes": "AAAA"}})
    ),
    "two things of one key": lambda text: text[:-1] + ',"dsseEnvelope":{}}',
}


def _with(text: str, change: Callable[[Json], object]) -> str:
    values = json.loads(text)
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("trusting", [True, False], ids=["key", "no key"])
def test_a_damaged_signature_is_one_line(
    name: str, trusting: bool, signed: Path, pairs: dict[str, Pair], run: Runs
) -> None:
    made = BUNDLES[name]((signed / SIGNATURE).read_text())
    (signed / SIGNATURE).write_bytes(made if isinstance(made, bytes) else made.encode())
    done = run("verify", signed, *(["--key", pairs["ours"].public] if trusting else []))
    # Without a key nobody looks at who signed.
    assert done.exit_code == 1 or (not trusting and done.exit_code == 2)
    assert not trusting or sum(SIGNATURE in line for line in done.stdout.splitlines()) == 1


@pytest.mark.parametrize("name", [SIGNATURE, STATEMENTS])
def test_a_huge_file_is_not_read(name: str, signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    os.truncate(signed / name, 1 << 40)
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, "more than 32 MiB" in done.stdout) == (1, True)


@pytest.mark.parametrize("name", [SIGNATURE, STATEMENTS, "pipe"])
def test_a_pipe_is_not_waited_for(name: str, signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    (signed / name).unlink(missing_ok=True)
    os.mkfifo(signed / name)
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, f"{name}: no file" in done.stdout) == (1, True)


STATED: dict[str, Callable[[Json], object]] = {
    "no subject": lambda stated: stated.update(subject=[]),
    "two subjects": lambda stated: stated.update(subject=stated["subject"] * 2),
    "a subject without a digest": lambda stated: stated.update(subject=[{"name": "x"}]),
    "no predicate": lambda stated: stated.pop("predicate"),
    "a predicate of another type": lambda stated: stated.update(predicateType="https://slsa.dev/provenance/v1"),
    "no statement": lambda stated: stated.update(_type="https://in-toto.io/Statement/v0.1"),
    "another root digest": lambda stated: stated["subject"][0]["digest"].update(sha256="0" * 64),
    "no resources": lambda stated: stated["predicate"].update(resources=[]),
    "resources of numbers": lambda stated: stated["predicate"].update(resources=[1, 2]),
    "a digest that is none": lambda stated: stated["predicate"]["resources"][0].update(digest="xyz"),
    "a name that is none": lambda stated: stated["predicate"]["resources"][0].update(name=7),
    "an unknown method": lambda stated: stated["predicate"]["serialization"].update(method="tensors"),
    "an unknown hash": lambda stated: stated["predicate"]["serialization"].update(hash_type="crc32"),
    "shards of nothing": lambda stated: stated["predicate"]["serialization"].update(method="shards", shard_size=0),
    "a serialization that is none": lambda stated: stated["predicate"].update(serialization="files"),
}


@pytest.mark.parametrize("name", STATED)
def test_nonsense_that_is_truly_signed_is_one_line(name: str, signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    statement = statement_in(signed / SIGNATURE)
    STATED[name](statement)
    (signed / SIGNATURE).write_text(signed_bundle(pairs["ours"], statement))
    assert run("verify", signed, "--key", pairs["ours"].public).exit_code == 1
    # Without a key the root digest, which the library holds to the files' digests, is not looked at.
    assert run("verify", signed).exit_code == (2 if name == "another root digest" else 1)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", "a/../../outside", "\0", "x\n" * 4000])
def test_names_lead_nowhere(name: str, signed: Path, pairs: dict[str, Pair], run: Runs, tmp_path: Path) -> None:
    """A file outside of the folder, truly signed by a name that leads to it, is not looked at."""
    (tmp_path / "outside").write_text("secret")
    statement = statement_in(signed / SIGNATURE)
    resources = statement["predicate"]["resources"]
    resources.append({"name": name, "algorithm": "sha256", "digest": file_sha256(tmp_path / "outside")})
    resources.sort(key=lambda entry: entry["name"])
    statement["subject"][0]["digest"]["sha256"] = root_of(resources)
    (signed / SIGNATURE).write_text(signed_bundle(pairs["ours"], statement))
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, ": missing" in done.stdout) == (1, True)
    assert max(map(len, done.stdout.splitlines())) < 500


@pytest.mark.parametrize("ignored", [[WEIGHTS], ["."], ["model.onnx", WEIGHTS], 5, [None]], ids=repr)
def test_a_signature_that_leaves_files_out_does_not_hold(
    ignored: Any, signed: Path, pairs: dict[str, Pair], run: Runs
) -> None:
    """The library takes the signer's word for it: that the weights are of no matter."""
    statement = statement_in(signed / SIGNATURE)
    predicate = statement["predicate"]
    predicate["resources"] = [entry for entry in predicate["resources"] if entry["name"] != WEIGHTS]
    predicate["serialization"]["ignore_paths"] = ignored
    statement["subject"][0]["digest"]["sha256"] = root_of(predicate["resources"])
    (signed / SIGNATURE).write_text(signed_bundle(pairs["ours"], statement))
    changed(signed / WEIGHTS)
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert done.exit_code == 1
    assert WEIGHTS in done.stdout or SIGNATURE in done.stdout


def test_statements_of_another_folder_are_refused(
    signed: Path, copied: Copies, pairs: dict[str, Pair], run: Runs
) -> None:
    other = copied("other")
    (other / "NOTES.md").write_text("another model")
    from glm_export import certify
    from tests.certificates.conftest import SOURCE

    certify(other, SOURCE, signer=Signer(key=pairs["ours"].private))
    shutil.copy(other / STATEMENTS, signed / STATEMENTS)
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, f"{STATEMENTS} is about other files" in done.stdout) == (1, True)
    # And with its signature, which is as true as ours, the files are not those.
    shutil.copy(other / SIGNATURE, signed / SIGNATURE)
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, "NOTES.md: missing" in done.stdout) == (1, True)


def stated(folder: Path, pair: Pair, **changes: Any) -> None:
    """State something else of a folder's test, truly signed."""
    predicates = statements_in(folder)
    subject = changes.pop("subject", None) or read_bundle(folder / SIGNATURE).subject
    predicates[TEST_RESULT] |= changes
    (folder / STATEMENTS).write_text(enveloped(subject, predicates, pair.key))


def test_statements_signed_by_another_key_are_refused(signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    stated(signed, pairs["ours"])
    assert run("verify", signed, "--key", pairs["ours"].public).exit_code == 0
    stated(signed, pairs["theirs"])
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, f"{STATEMENTS}, line 1 is signed by another key" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"result": "FAILED"},
        {"failedTests": ["prefill: logits"]},
        {"result": "passed"},
        {"configuration": []},
        {"configuration": [{"name": MANIFEST, "digest": {"sha256": "0" * 64}}]},
        {"subject": Subject(name="signed", sha256="0" * 64)},
    ],
    ids=str,
)
def test_a_statement_that_says_something_else_is_no_proof(
    changes: Json, signed: Path, pairs: dict[str, Pair], run: Runs
) -> None:
    stated(signed, pairs["ours"], **changes)
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, STATEMENTS in done.stdout) == (1, True)
    assert "parity statement: do not hold" in done.stdout


LINES: dict[str, Callable[[list[str]], list[str]]] = {
    "none": lambda _: [],
    "one": lambda lines: lines[:1],
    "twice": lambda lines: lines * 2,
    "too many": lambda lines: lines * 50,
    "no JSON": lambda lines: [*lines, "{"],
    "no envelope": lambda lines: [*lines, "{}"],
    "a list": lambda lines: [*lines, "[]"],
    "truncated": lambda lines: [lines[0], lines[1][:200]],
}


@pytest.mark.parametrize("name", LINES)
def test_a_damaged_file_of_statements_is_one_line(name: str, signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    lines = LINES[name]((signed / STATEMENTS).read_text().splitlines())
    (signed / STATEMENTS).write_text("".join(f"{line}\n" for line in lines))
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, sum(STATEMENTS in line for line in done.stdout.splitlines())) == (1, 1)
    # Not one signature is looked at of a file that is too long, or of none.
    assert (name in ("none", "too many")) == ("should hold a statement a line" in done.stdout)


def test_files_changed_after_the_proof_and_signed_as_they_are_are_not_what_was_proven(
    copied: Copies, pairs: dict[str, Pair], run: Runs
) -> None:
    folder = copied(certified=True)
    changed(folder / "config.json")
    sign_folder(folder, Signer(key=pairs["ours"].private), folder / SIGNATURE)
    done = run("verify", folder, "--key", pairs["ours"].public)
    assert (done.exit_code, "not those that were proven: config.json: changed" in done.stdout) == (1, True)


def test_a_failed_proof_that_is_signed_does_not_hold(copied: Copies, pairs: dict[str, Pair], run: Runs) -> None:
    folder = copied(certified=True)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[PROOF]["claims"][0]["result"] = "FAILED"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    sign_folder(folder, Signer(key=pairs["ours"].private), folder / SIGNATURE)
    done = run("verify", folder, "--key", pairs["ours"].public)
    assert (done.exit_code, "is that it failed" in done.stdout) == (1, True)
