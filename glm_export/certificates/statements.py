"""Statements of in-toto in their envelopes, one a line of ``model.intoto.jsonl``: written, and read from a signer.

Envelopes are DSSE's, signed and checked by securesystemslib; who signed them is who signed the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import STATEMENT_TYPE_URI, Statement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from glm_export.certificates.predicates import PROVENANCE, TEST_RESULT
from glm_export.errors import CheckpointError, listed, reason, shown
from glm_export.model_folder import JSON_BYTES, parse_json, read_bounded

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MOST_LINES = 16


class SignatureError(CheckpointError):
    """A signature or a statement is not what it should be, or not of whom it should be."""

    exit_code = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a statement is about: a folder's name, which only informs, and the digest of all its files."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What somebody stated: ``kind`` is the predicate's type."""

    kind: str
    subject: Subject
    predicate: Mapping[str, Any]


def enveloped(subject: Subject, predicates: Mapping[str, Mapping[str, Any]], key: EllipticCurvePrivateKey) -> str:
    """Statements about a folder in signed envelopes, one a line.

    Args:
        subject: the folder, as its signature names it.
        predicates: what is stated, by the predicate's type.
        key: signs.
    """
    signer = CryptoSigner(key)
    lines = []
    for kind, predicate in predicates.items():
        digest = {"sha256": subject.sha256}
        Statement([ResourceDescriptor(name=subject.name, digest=digest).pb], kind, dict(predicate)).validate()
        statement = {
            "_type": STATEMENT_TYPE_URI,
            "subject": [{"name": subject.name, "digest": digest}],
            "predicateType": kind,
            "predicate": predicate,
        }
        # Written here: the library's own form makes fractions of whole numbers.
        envelope = Envelope(json.dumps(statement, ensure_ascii=False).encode("utf-8"), PAYLOAD_TYPE, {})
        envelope.sign(signer)
        lines.append(json.dumps(envelope.to_dict()) + "\n")
    return "".join(lines)


def read_statements(path: Path, key: EllipticCurvePublicKey) -> list[Stated]:
    """What a file of envelopes states, each signed by one key.

    Args:
        path: the file.
        key: the signer's.

    Raises:
        SignatureError: a line is no envelope, is signed by another, or says nothing that can be read.
    """
    try:
        lines = read_bounded(path, JSON_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SignatureError(f"{path.name} cannot be read: {error}") from error
    if not 0 < len(lines) <= MOST_LINES:
        raise SignatureError(f"{path.name} should hold a statement a line, found {len(lines)} lines")
    return [_stated(line, f"{path.name}, line {number}", key) for number, line in enumerate(lines, 1)]


def _stated(line: str, place: str, key: EllipticCurvePublicKey) -> Stated:
    try:
        envelope = Envelope.from_dict(parse_json(line))
    except Exception as error:  # what others' bytes bring about in the library has no common base
        raise SignatureError(f"{place} is no signed envelope: {reason(error)}") from error
    try:
        envelope.verify([SSlibKey.from_crypto(key)], 1)
    except Exception as error:
        raise SignatureError(f"{place} is signed by another key than the folder, or was changed") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureError(f"{place} holds {shown(envelope.payload_type)}, a statement of in-toto is expected")
    return read_payload(envelope.payload, place)


def read_payload(payload: bytes, place: str) -> Stated:
    """A statement of in-toto about one subject.

    Args:
        payload: JSON.
        place: where it stands, for messages.

    Raises:
        SignatureError: it is none.
    """
    try:
        values = parse_json(payload)
        (subject,) = values["subject"]
        stated = Stated(
            kind=values["predicateType"],
            subject=Subject(name=subject["name"], sha256=subject["digest"]["sha256"]),
            predicate=values["predicate"],
        )
        texts = (stated.kind, stated.subject.name, stated.subject.sha256)
        if values["_type"] != STATEMENT_TYPE_URI or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"it is of type {shown(values['_type'])}")
        if not isinstance(stated.predicate, dict):
            raise ValueError("its predicate is no object")  # noqa: TRY004 - of the value
    except (KeyError, TypeError, ValueError) as error:
        raise SignatureError(f"{place} is no statement of in-toto about one subject: {reason(error)}") from error
    return stated


def require_about(stated: Sequence[Stated], subject: Subject, manifest_digest: str, name: str) -> None:
    """See that statements are about the folder that was signed, and say that its test passed.

    Args:
        stated: from :func:`read_statements`.
        subject: of the folder's signature.
        manifest_digest: sha256 of the folder's manifest.
        name: of the file they stand in.

    Raises:
        SignatureError: one is about another folder or another manifest; there is not one test result and one
            provenance; or the test failed.
    """
    kinds = sorted(one.kind for one in stated)
    if kinds != sorted((TEST_RESULT, PROVENANCE)):
        raise SignatureError(f"{name} should state a test result and a provenance, found {listed(kinds)}")
    for one in stated:
        if one.subject.sha256 != subject.sha256:
            raise SignatureError(
                f"{name} is about other files: sha256 {shown(one.subject.sha256)}, and the signature's is "
                f"{subject.sha256}"
            )
    (result,) = (one.predicate for one in stated if one.kind == TEST_RESULT)
    configuration = result.get("configuration")
    first = configuration[0] if isinstance(configuration, list) and configuration else None
    digest = first.get("digest") if isinstance(first, dict) else None
    if not isinstance(digest, dict) or digest.get("sha256") != manifest_digest:
        raise SignatureError(f"{name} is about another manifest than the folder's; certify again")
    if result.get("result") not in ("PASSED", "WARNED") or result.get("failedTests"):
        raise SignatureError(
            f"{name} states that the test ended with {shown(result.get('result'))} (failed: "
            f"{shown(result.get('failedTests'))}); it is signed so, and no proof"
        )
