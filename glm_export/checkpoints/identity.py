"""What tells one checkpoint from another at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

FINGERPRINT_BYTES, FINGERPRINT_PLACES = 1 << 16, 64


def fingerprint(config: Path, weights: Sequence[Path]) -> str:
    """What tells one checkpoint from another at once: config.json, and each weight file's name, size and 64 places.

    Args:
        config: ``config.json``.
        weights: the weight files.

    Returns:
        sha256 in hexadecimal.
    """
    digest = hashlib.sha256(config.read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for place in range(FINGERPRINT_PLACES):
                file.seek(max(0, size - FINGERPRINT_BYTES) * place // (FINGERPRINT_PLACES - 1))
                digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()
