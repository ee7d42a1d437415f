"""Keys and certificates in PEM files, read and refused in one line each; nothing of a key is ever said."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from glm_export.certificates.options import PASSWORD_VARIABLE, Signer
from glm_export.errors import InputError
from glm_export.model_folder import read_bounded

CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""What OpenSSF Model Signing takes."""
MAKE_ONE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem makes one"
PEM_BYTES = 1 << 20


class PasswordNeededError(InputError):
    """A private key is encrypted, and its password was not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who signed: ``key``: sha256 of the public key in PEM (``sha256sum public.pem``); and what a certificate says.

    ``valid_until``: when the certificate ends, in ISO 8601.
    """

    key: str
    subject: str | None = None
    issuer: str | None = None
    valid_until: str | None = None

    def __str__(self) -> str:
        key = f"key sha256:{self.key}"
        return key if self.subject is None else f"{self.subject} (certificate of {self.issuer}, {key})"


def identity_of(public_key: EllipticCurvePublicKey, certificate: x509.Certificate | None = None) -> Identity:
    """A key, and whom a certificate says it belongs to."""
    if certificate is None:
        return Identity(key=fingerprint(public_key))
    return Identity(
        key=fingerprint(public_key),
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        valid_until=certificate.not_valid_after_utc.isoformat(),
    )


def fingerprint(public_key: EllipticCurvePublicKey) -> str:
    """sha256 of the key in PEM, in hexadecimal: the hint that signatures of OpenSSF Model Signing hold."""
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def read_public_key(path: Path) -> EllipticCurvePublicKey:
    """A public key.

    Raises:
        InputError: the file holds none, or one of another kind.
    """
    data = _pem(path)
    if b"PRIVATE KEY" in data:
        raise InputError(f"{path} is a private key; give the public one: openssl ec -in {path} -pubout -out public.pem")
    if b"BEGIN CERTIFICATE" in data:
        raise InputError(f"{path} is a certificate, and a public key is expected; give it as --certificate-chain")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} should be a public key in PEM, and cannot be read as one; {MAKE_ONE}") from error
    return _of_a_curve(key, path)


def read_private_key(signer: Signer) -> EllipticCurvePrivateKey:
    """The key of a signer, and that its certificate is of this key, is in force and may sign.

    Raises:
        PasswordNeededError: the key is encrypted, and no password was given.
        InputError: the file holds none, or one of another kind; the password is wrong; the certificate does not fit.
    """
    path, data = signer.key, _pem(signer.key)
    if b"PUBLIC KEY" in data:
        raise InputError(f"{path} is a public key, and signing takes the private one; {MAKE_ONE}")
    if signer.certificate is not None and b"ENCRYPTED" in data:
        raise InputError(
            f"{path} is encrypted, and model-signing reads no such key together with a certificate; decrypt it where "
            "nobody else reads (openssl pkey), and give that"
        )
    password = signer.password.encode() if signer.password is not None else None
    try:
        key = load_pem_private_key(data, password)
    except TypeError as error:
        if password is None:
            raise PasswordNeededError(
                f"{path} is encrypted; give its password in the variable {PASSWORD_VARIABLE}"
            ) from error
        # A password for a key that has none opens it all the same.
        key = load_pem_private_key(data, None)
    except (ValueError, UnsupportedAlgorithm) as error:
        wrong = ", or the password is wrong" if password is not None else ""
        raise InputError(
            f"{path} should be a private key in PEM, and cannot be read as one{wrong}; {MAKE_ONE}"
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise _of_another_kind(path)
    _of_a_curve(key.public_key(), path)
    if signer.certificate is not None:
        _require_certificate_of(key.public_key(), signer)
    return key


def _require_certificate_of(key: EllipticCurvePublicKey, signer: Signer) -> None:
    assert signer.certificate is not None
    certificate, path = read_certificates(signer.certificate)[0], signer.certificate
    if certificate.public_key() != key:
        raise InputError(f"{path} is the certificate of another key than {signer.key}; give the one that belongs to it")
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise InputError(
            f"{path} is in force from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, which is not today; have it renewed"
        )
    if not may_sign(certificate):
        raise InputError(f"{path} is no certificate to sign with: its key usage lacks digitalSignature; ask for one")
    for other in signer.chain:
        read_certificates(other)


def may_sign(certificate: x509.Certificate) -> bool:
    """Whether its issuer meant it for signatures, or for code."""
    for usage in certificate.extensions:
        value = usage.value
        if isinstance(value, x509.KeyUsage) and value.digital_signature:
            return True
        if isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CODE_SIGNING in value:
            return True
    return False


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Those of a PEM file, at least one.

    Raises:
        InputError: it holds none.
    """
    try:
        return x509.load_pem_x509_certificates(_pem(path))
    except ValueError as error:
        raise InputError(f"{path} should hold certificates in PEM, and holds none that can be read") from error


def _of_a_curve(key: object, path: Path) -> EllipticCurvePublicKey:
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise _of_another_kind(path)
    return key


def _of_another_kind(path: Path) -> InputError:
    return InputError(f"{path} should be a key on curve P-256, P-384 or P-521 and is of another kind; {MAKE_ONE}")


def _pem(path: Path) -> bytes:
    try:
        return read_bounded(path, PEM_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} is not there; give a PEM file") from None
    except ValueError as error:
        raise InputError(f"{path} should be a PEM file: {error}") from error
