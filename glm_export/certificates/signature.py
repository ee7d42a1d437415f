"""A folder's signature as OpenSSF Model Signing makes it: written by its library, read, and held to the files.

A signature is a Sigstore bundle with one envelope, whose statement names every file by its digest.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from model_signing import hashing, manifest, signing, verifying

from glm_export.artifacts.manifest import SIGNATURE, STATEMENTS
from glm_export.certificates.digests import OF_GIT, Difference, compared, files_of, is_of_git
from glm_export.certificates.keys import Identity, identity_of, read_certificates, read_public_key
from glm_export.certificates.options import Signer, Trust
from glm_export.certificates.statements import SignatureError, Subject, read_payload
from glm_export.errors import InputError, reason, shown
from glm_export.model_folder import JSON_BYTES, parse_json, read_bounded
from glm_export.progress import NullProgress, Progress

PREDICATE = "https://model_signing/signature/v1.0"
HASHED = "files, as signed"
"""The stage in which the library hashes a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a signature file says, nobody having vouched for it yet.

    ``resources``: digests by name (of files, or of their shards, ``name:start:end``). ``certificate``: the signer's,
    None where a bare key signed; then ``hint`` is that key's fingerprint.
    """

    path: Path
    subject: Subject
    resources: Mapping[str, str]
    serialization: Mapping[str, Any]
    certificate: x509.Certificate | None
    hint: str | None

    @property
    def covered(self) -> set[str]:
        """Names of files that are signed, whole or in shards."""
        shards = self.serialization.get("method") == "shards"
        return {name.rsplit(":", 2)[0] if shards else name for name in self.resources}

    def claimed(self) -> str:
        """Whom it says it is by."""
        if self.certificate is not None:
            return f"{self.certificate.subject.rfc4514_string()} (certificate)"
        return f"key sha256:{self.hint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A signature that is of whom it should be, held to the files: ``differences`` is empty where it fits."""

    by: Identity
    key: EllipticCurvePublicKey
    differences: tuple[Difference, ...]


def sign_folder(folder: Path, signer: Signer, out: Path) -> None:
    """Sign every file of a folder but the signature, the statements and git's own.

    Args:
        folder: without links.
        signer: whose key :func:`glm_export.certificates.keys.read_private_key` has read.
        out: the signature's file.
    """
    covered = hashing.Config().set_ignored_paths(paths=[Path(SIGNATURE), Path(STATEMENTS)])
    config = signing.Config().set_hashing_config(covered)
    if signer.certificate is None:
        # It hands the password on as it is, and the library below takes bytes.
        password: Any = signer.password.encode() if signer.password is not None else None
        config.use_elliptic_key_signer(private_key=signer.key, password=password)
    else:
        # It reads the chain's files together, and fails without any; a certificate twice in a chain does no harm.
        config.use_certificate_signer(
            private_key=signer.key,
            signing_certificate=signer.certificate,
            certificate_chain=signer.chain or (signer.certificate,),
        )
    config.sign(folder, out)


def read_bundle(path: Path) -> Bundle:
    """What a signature's file says.

    Raises:
        SignatureError: it is no signature of a folder, or of another format.
    """
    try:
        values = parse_json(read_bounded(path, JSON_BYTES))
        stated = read_payload(base64.b64decode(values["dsseEnvelope"]["payload"], validate=True), path.name)
        if stated.kind != PREDICATE:
            raise ValueError(f"it states {shown(stated.kind)}, and a signature states {PREDICATE}")
        material = values["verificationMaterial"]
        if "certificate" in material:
            raise ValueError("it is by an identity of Sigstore, which takes a connection: run model_signing verify")
        chain = material.get("x509CertificateChain")
        first = base64.b64decode(chain["certificates"][0]["rawBytes"]) if chain else None
        bundle = Bundle(
            path=path,
            subject=stated.subject,
            resources={entry["name"]: entry["digest"] for entry in stated.predicate["resources"]},
            serialization=dict(stated.predicate["serialization"]),
            certificate=x509.load_der_x509_certificate(first) if first is not None else None,
            hint=(material.get("publicKey") or {}).get("hint"),
        )
        texts = (*bundle.resources, *bundle.resources.values(), bundle.hint or "")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name or a digest is no text")
    except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        raise SignatureError(f"{path.name} is no signature of a folder: {reason(error)}") from error
    return bundle


class _Remembering(hashing.Config):
    """How a folder is hashed, keeping what was found: the library hashes only after the signature proved right."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: manifest.Manifest | None = None

    def hash(self, model_path: hashing.PathLike, *, files_to_hash: Iterable[Any] | None = None) -> manifest.Manifest:
        """Hash, and keep."""
        self.found = super().hash(model_path, files_to_hash=files_to_hash)
        return self.found


def differences(folder: Path, bundle: Bundle, progress: Progress | None = None) -> tuple[Difference, ...]:
    """What of a folder is not as its signature says, whoever made that.

    Args:
        folder: without links.
        bundle: from :func:`read_bundle`.
        progress: shows when the files are hashed; the library tells nobody how far that is.

    Raises:
        SignatureError: it says so in a way that this version does not know.
    """
    how, advance = _hashing(folder, bundle), (progress or NullProgress()).task(HASHED, 1)
    found = _compared(folder, bundle, how)
    advance(1)
    return found


def authenticated(folder: Path, bundle: Bundle, trust: Trust, progress: Progress | None = None) -> Signed:
    """Hold a signature to its signer, and the folder to the signature.

    Args:
        folder: without links.
        bundle: from :func:`read_bundle`.
        trust: whose signature is accepted.
        progress: as of :func:`differences`.

    Raises:
        InputError: what is trusted cannot be read.
        SignatureError: the signature is not of the one who is trusted, or was changed.
    """
    config, key = _verifier(bundle, trust)
    how = _hashing(folder, bundle)
    mismatch, advance = "", (progress or NullProgress()).task(HASHED, 1)
    # It says on standard output what it thinks of older signatures.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            config.set_hashing_config(how).verify(folder, bundle.path)
        except Exception as error:  # three libraries read others' bytes here, and their errors have no common base
            if how.found is None:
                raise SignatureError(_not_by(bundle, trust, error)) from error
            mismatch = str(error)
    found = _compared(folder, bundle, how)
    advance(1)
    if mismatch and not found:
        raise SignatureError(f"{bundle.path.name} does not fit the files: {mismatch}")
    return Signed(by=identity_of(key, bundle.certificate), key=key, differences=found)


def _verifier(bundle: Bundle, trust: Trust) -> tuple[verifying.Config, EllipticCurvePublicKey]:
    """The library's verifier, and the key the signature should be of."""
    config = verifying.Config()
    if trust.key is not None:
        key = read_public_key(trust.key)
        if bundle.certificate is not None:
            raise SignatureError(f"{bundle.path.name} is signed by {bundle.claimed()}; give --certificate-chain")
        return config.use_elliptic_key_verifier(public_key=trust.key), key
    for path in trust.chain:
        read_certificates(path)
    if bundle.certificate is None:
        raise SignatureError(f"{bundle.path.name} is signed by a bare key, {bundle.claimed()}; give --key")
    of_certificate = bundle.certificate.public_key()
    if not isinstance(of_certificate, EllipticCurvePublicKey):
        raise SignatureError(f"{bundle.path.name}: its certificate is not of an elliptic curve's key")
    return config.use_certificate_verifier(certificate_chain=trust.chain), of_certificate


def _not_by(bundle: Bundle, trust: Trust, error: Exception) -> str:
    wanted = trust.key if trust.key is not None else ", ".join(map(str, trust.chain))
    found = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (
        f"{bundle.path.name} is not signed by {wanted}, or was changed; it says that it is by {bundle.claimed()} "
        f"({found})"
    )


def _hashing(folder: Path, bundle: Bundle) -> _Remembering:
    """How the signer hashed the folder."""
    said = bundle.serialization
    how = _Remembering()
    try:
        # The library writes one name of this hash, and reads the other.
        algorithm: Any = "blake2" if said["hash_type"] == "blake2b" else said["hash_type"]
        if said["method"] == "shards":
            how.use_shard_serialization(hashing_algorithm=algorithm, shard_size=int(said["shard_size"]))
        elif said["method"] == "files":
            how.use_file_serialization(hashing_algorithm=algorithm)
        else:
            raise ValueError(said["method"])
    except (KeyError, TypeError, ValueError) as error:
        raise SignatureError(f"{bundle.path.name} hashes in a way that is not known: {reason(error)}") from error
    beside = [name for name in (SIGNATURE, STATEMENTS) if name not in bundle.covered]
    if bundle.path.resolve().parent == folder:
        beside.append(bundle.path.name)
    how.set_ignored_paths(paths=map(Path, beside))
    return how


def _compared(folder: Path, bundle: Bundle, how: _Remembering) -> tuple[Difference, ...]:
    """Differences, and files that the signer left out and should not have: the library would not look at them."""
    said = bundle.serialization.get("ignore_paths")
    left_out = [str(name) for name in said] if isinstance(said, list) else []
    files, _ = files_of(folder)
    apart = {SIGNATURE, STATEMENTS, *OF_GIT} | ({bundle.path.name} if bundle.path.resolve().parent == folder else set())
    unsigned = [
        Difference(
            name=name,
            how="left out by the signer" if any(PurePath(name).is_relative_to(path) for path in left_out) else "added",
        )
        for name in files
        if name not in bundle.covered and name not in apart and not is_of_git(name)
    ]
    try:
        found = how.found or how.hash(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be hashed: {error}") from error
    digests = {entry.identifier: entry.digest.digest_hex for entry in found.resource_descriptors()}
    kept = {name: digest for name, digest in digests.items() if name in bundle.resources}
    return tuple(sorted([*compared(bundle.resources, kept), *unsigned], key=lambda one: one.name))
