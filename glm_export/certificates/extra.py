"""Whether the libraries of the extra ``sign`` are here."""

from __future__ import annotations

from importlib import import_module

from glm_export.errors import EnvironmentMissingError

INSTALL = "pip install 'glm-export[sign]'"
# model_signing imports OpenSSL for certificates, and does not ask for it in its metadata.
LIBRARIES = ("model_signing", "OpenSSL", "in_toto_attestation", "securesystemslib")


def require_sign_extra() -> None:
    """See that signatures can be made and read here.

    Raises:
        EnvironmentMissingError: a library is missing.
    """
    for name in LIBRARIES:
        try:
            import_module(name)
        except ImportError as error:
            raise EnvironmentMissingError(f"signatures need {name} ({error}); {INSTALL}") from error
