"""Certify a folder with a key, verify it elsewhere, and see that a changed byte is noticed; needs the extra `sign`.

python examples/sign_what_was_proven.py [CHECKPOINT]
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from glm_export import certify, export, verify
from glm_export.certificates.options import Signer, Trust


def main(checkpoint: str = "demo") -> None:
    with TemporaryDirectory() as home:
        private, public = Path(home, "private.pem"), Path(home, "public.pem")
        key = ec.generate_private_key(ec.SECP256R1())
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        program = export(checkpoint, Path(home, "program"))
        certify(program, checkpoint, signer=Signer(key=private))
        trust = Trust(key=public)
        print("as it was signed:", "holds" if verify(program.folder, trust=trust).holds else "does not hold")
        config = program.folder / "config.json"
        config.write_text(config.read_text() + " ")
        print("a byte later:", "holds" if verify(program.folder, trust=trust).holds else "does not hold")


if __name__ == "__main__":
    main(*sys.argv[1:])
