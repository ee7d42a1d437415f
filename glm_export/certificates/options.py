"""Who signs, and whose signature is trusted: files that the user names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from glm_export.errors import InputError

PASSWORD_VARIABLE = "GLM_EXPORT_KEY_PASSWORD"
"""Of the environment: the password of an encrypted private key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A private key, and where others know it by a certificate, that and what vouches for it.

    ``key``: PEM, on curve P-256, P-384 or P-521. ``chain``: certificates between the signer's and the root, which may
    be left out. ``password``: of the key, where it is encrypted.
    """

    key: Path
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose signature is accepted: that of a public key, or of whom a chain of certificates vouches for.

    ``chain``: PEM; whatever is in it is trusted, so it holds roots.

    Raises:
        InputError: not one of the two is given.
    """

    key: Path | None = None
    chain: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if (self.key is None) != bool(self.chain):
            raise InputError(
                "a folder is signed by a bare key or with a certificate; give --key or --certificate-chain"
            )
