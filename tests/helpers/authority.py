"""Keys, and a small authority that makes certificates: a root, one below it, and signers of theirs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

PASSWORD = "春眠不觉晓"
CURVES = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1(), "koblitz": ec.SECP256K1()}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A key pair's files; ``key`` is what they hold."""

    private: Path
    public: Path
    key: ec.EllipticCurvePrivateKey


def key_pair(folder: Path, name: str, curve: str = "p256", password: str | None = None) -> Pair:
    """Write ``NAME.pem`` and ``NAME.pub``."""
    key = ec.generate_private_key(CURVES[curve])
    hidden = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    pair = Pair(private=folder / f"{name}.pem", public=folder / f"{name}.pub", key=key)
    pair.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
    pair.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return pair


def rsa_pair(folder: Path) -> tuple[Path, Path]:
    """A private and a public key of a kind that signs no models."""
    key, private, public = rsa.generate_private_key(65537, 2048), folder / "rsa.pem", folder / "rsa.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


class Authority:
    """A root and an authority below it; certificates lie in ``folder`` as ``NAME.crt``."""

    def __init__(self, folder: Path, name: str = "Root") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._root, self._below = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root, below = f"{name} of the tests", f"{name}, intermediate"
        self.root = self._write("root", self._made(root, root, self._root, self._root, authority=True))
        self.intermediate = self._write(
            "intermediate", self._made(below, root, self._below, self._root, authority=True)
        )
        self._issuer = below

    def certificate(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, days: tuple[int, int] = (-1, 30), signs: bool = True
    ) -> Path:
        """A signer's, in force from and until so many days from now; ``signs``: whether its key usage says so."""
        made = self._made(f"{name} & Söhne", self._issuer, key, self._below, authority=False, days=days, signs=signs)
        return self._write(name, made)

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self.folder / f"{name}.crt"
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
        return path

    def _made(
        self,
        subject: str,
        issuer: str,
        key: ec.EllipticCurvePrivateKey,
        by: ec.EllipticCurvePrivateKey,
        *,
        authority: bool,
        days: tuple[int, int] = (-1, 30),
        signs: bool = True,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        usage = x509.KeyUsage(
            digital_signature=signs and not authority,
            content_commitment=False,
            key_encipherment=not signs,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=authority,
            crl_sign=authority,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(by, hashes.SHA256())
        )
