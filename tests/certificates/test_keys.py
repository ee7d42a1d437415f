"""Files that are no keys are refused in one line, which says nothing of what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glm_export.certificates.keys import PasswordNeededError, read_certificates, read_private_key, read_public_key
from glm_export.certificates.options import Signer, Trust
from glm_export.errors import EnvironmentMissingError, InputError
from tests.certificates.conftest import SOURCE, Copies, Runs
from tests.helpers.authority import PASSWORD, Authority, key_pair, rsa_pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of every kind: ours, on a curve that is not taken, RSA, encrypted, and files that are none."""
    key_pair(tmp_path, "sound")
    key_pair(tmp_path, "koblitz", "koblitz")
    key_pair(tmp_path, "locked", password=PASSWORD)
    rsa_pair(tmp_path)
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "words.pem").write_text("SECRETWORDS")
    (tmp_path / "armour.pem").write_text("-----BEGIN PRIVATE KEY-----\nSECRETWORDS\n-----END PRIVATE KEY-----\n")
    (tmp_path / "armour.pub").write_text("-----BEGIN PUBLIC KEY-----\nSECRETWORDS\n-----END PUBLIC KEY-----\n")
    (tmp_path / "large.pem").write_bytes(b"x" * (2 << 20))
    return tmp_path


PRIVATE = {
    "koblitz.pem": "P-256",
    "rsa.pem": "P-256",
    "sound.pub": "is a public key",
    "empty.pem": "cannot be read",
    "words.pem": "cannot be read",
    "armour.pem": "cannot be read",
    "large.pem": "more than 1 MiB",
    "missing.pem": "not there",
    "locked.pem": "GLM_EXPORT_KEY_PASSWORD",
}
PUBLIC = {
    "koblitz.pub": "P-256",
    "rsa.pub": "P-256",
    "sound.pem": "is a private key",
    "empty.pem": "cannot be read",
    "armour.pub": "cannot be read",
    "missing.pem": "not there",
}


@pytest.mark.parametrize("name", PRIVATE)
def test_private_keys(name: str, folder: Path) -> None:
    with pytest.raises(InputError, match=PRIVATE[name]) as refused:
        read_private_key(Signer(key=folder / name))
    assert "SECRETWORDS" not in str(refused.value)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_keys(name: str, folder: Path) -> None:
    with pytest.raises(InputError, match=PUBLIC[name]) as refused:
        read_public_key(folder / name)
    assert "SECRETWORDS" not in str(refused.value)


def test_sound_ones_and_passwords(folder: Path) -> None:
    assert read_private_key(Signer(key=folder / "sound.pem")).public_key() == read_public_key(folder / "sound.pub")
    # A password nobody needs is no reason to refuse a key.
    read_private_key(Signer(key=folder / "sound.pem", password="x"))
    read_private_key(Signer(key=folder / "locked.pem", password=PASSWORD))
    with pytest.raises(PasswordNeededError):
        read_private_key(Signer(key=folder / "locked.pem"))
    with pytest.raises(InputError, match="password is wrong"):
        read_private_key(Signer(key=folder / "locked.pem", password="x"))
    assert PASSWORD not in repr(Signer(key=folder / "locked.pem", password=PASSWORD))


@pytest.mark.parametrize("given", [{}, {"key": Path("a"), "chain": (Path("b"),)}], ids=["neither", "both"])
def test_trust_is_in_a_key_or_in_a_chain(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--certificate-chain"):
        Trust(**given)


def test_certificates(folder: Path) -> None:
    authority, pair, other = Authority(folder / "ca"), key_pair(folder, "signer"), key_pair(folder, "other")
    sound = authority.certificate("sound", pair.key)
    read_private_key(Signer(key=pair.private, certificate=sound, chain=(authority.intermediate,)))
    for certificate, key, said in (
        (sound, other.private, "of another key"),
        (authority.certificate("ended", pair.key, days=(-9, -1)), pair.private, "not today"),
        (authority.certificate("future", pair.key, days=(1, 9)), pair.private, "not today"),
        (authority.certificate("sealer", pair.key, signs=False), pair.private, "digitalSignature"),
        (folder / "words.pem", pair.private, "holds none"),
        (sound, folder / "locked.pem", "decrypt it"),
    ):
        with pytest.raises(InputError, match=said):
            read_private_key(Signer(key=key, certificate=certificate))
    with pytest.raises(InputError, match="holds none"):
        read_private_key(Signer(key=pair.private, certificate=sound, chain=(folder / "empty.pem",)))
    with pytest.raises(InputError, match="holds none"):
        read_certificates(folder / "sound.pub")


@pytest.mark.parametrize(
    "words", [["--certificate", "CERTIFICATE"], ["--key", "KEY", "--certificate-chain", "CERTIFICATE"]], ids=" ".join
)
def test_a_certificate_needs_its_key_and_a_chain_its_certificate(
    words: list[str], folder: Path, copied: Copies, run: Runs
) -> None:
    authority = Authority(folder / "ca")
    given = {"KEY": folder / "sound.pem", "CERTIFICATE": authority.root}
    done = run("certify", copied(), "--against", SOURCE, *(given.get(word, word) for word in words))
    assert done.exit_code == 2, done.output


def test_without_the_extra_signatures_say_which_it_is_and_unsigned_folders_work(
    copied: Copies, signed: Path, run: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from glm_export.certificates.extra import require_sign_extra

    plain = copied(certified=True)
    for name in ("model_signing", "OpenSSL", "in_toto_attestation", "securesystemslib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentMissingError, match=r"pip install 'glm-export\[sign\]'"):
        require_sign_extra()
    for words in (
        ["verify", signed],
        ["certify", plain, "--against", SOURCE, "--key", folder / "sound.pem"],
    ):
        done = run(*words)
        assert (done.exit_code, "glm-export[sign]" in done.stderr) == (3, True), done.output
    assert run("verify", plain).exit_code == 0
