"""`verify`: a folder as it was certified holds; one that anybody touched does not, in one line and without harm."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glm_export import verify
from glm_export.artifacts.manifest import MANIFEST, PROOF, SIGNATURE, STATEMENTS
from glm_export.artifacts.program import WEIGHTS
from glm_export.certificates.digests import root_digest
from glm_export.certificates.options import Signer, Trust
from glm_export.errors import InputError
from glm_export.model_folder import file_sha256
from tests.certificates.conftest import SOURCE, Copies, Runs, changed
from tests.helpers.authority import Pair


def rewrite(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_signed_folder_holds_and_says_what_was_proven_and_by_whom(
    signed: Path, pairs: dict[str, Pair], run: Runs
) -> None:
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert done.exit_code == 0, done.output
    for said in ("prefill: logits", "recorded: PASSED", "unchanged", "test result and provenance", "HOLDS"):
        assert said in done.stdout
    assert f"signed by: key sha256:{file_sha256(pairs['ours'].public)}\n" in done.stdout
    told = json.loads(run("verify", signed, "--key", pairs["ours"].public, "--json").stdout)
    assert (told["holds"], told["verified"], told["problems"], told["differences"]) == (True, True, [], {})
    assert told["proof"]["result"] == "PASSED"


def test_it_may_be_moved_and_reached_by_a_link(signed: Path, pairs: dict[str, Pair], tmp_path: Path) -> None:
    moved = signed.rename(tmp_path / "another-name")
    (tmp_path / "link").symlink_to(moved)
    for folder in (moved, tmp_path / "link"):
        assert verify(folder, trust=Trust(key=pairs["ours"].public)).holds


def test_without_a_key_to_trust_a_signature_is_described_and_the_key_is_asked_for(signed: Path, run: Runs) -> None:
    done = run("verify", signed)
    assert done.exit_code == 2
    assert "(not verified)" in done.stdout
    assert "NOT VERIFIED" in done.stdout
    assert "\nHOLDS" not in done.stdout
    assert "--key PUBLIC.pem" in done.stderr
    changed(signed / WEIGHTS)
    done = run("verify", signed)
    assert (done.exit_code, f"{WEIGHTS}: changed" in done.stdout) == (1, True)


def test_one_changed_byte_in_any_file_is_found(signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    names = sorted(path.name for path in signed.iterdir())
    assert {MANIFEST, SIGNATURE, STATEMENTS, WEIGHTS} < set(names)
    for name in names:
        sound = (signed / name).read_bytes()
        changed(signed / name)
        done = run("verify", signed, "--key", pairs["ours"].public)
        assert done.exit_code == 1, name
        assert f"{name}: changed" in done.stdout or name in (SIGNATURE, STATEMENTS), name
        assert name in done.stdout
        assert "DOES NOT HOLD" in done.stdout
        (signed / name).write_bytes(sound)
    assert run("verify", signed, "--key", pairs["ours"].public).exit_code == 0


def test_one_changed_byte_in_an_unsigned_folder_is_found_but_in_its_manifest(copied: Copies, run: Runs) -> None:
    folder = copied(certified=True)
    assert run("verify", folder).exit_code == 0
    for name in sorted(path.name for path in folder.iterdir() if path.name != MANIFEST):
        sound = (folder / name).read_bytes()
        changed(folder / name)
        done = run("verify", folder)
        assert (done.exit_code, f"{name}: changed" in done.stdout) == (1, True), name
        (folder / name).write_bytes(sound)


def test_missing_and_added_files_are_named(signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    (signed / "config.json").unlink()
    (signed / "chat_template.jinja").write_text("{{ 1 }}")
    (signed / "below").mkdir()
    (signed / "below" / "file\x1b[2J\n").write_text("")
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert done.exit_code == 1
    assert "config.json: missing" in done.stdout
    assert "chat_template.jinja: added" in done.stdout
    assert r"below/file\x1b[2J\n: added" in done.stdout


def test_files_of_git_are_no_part_of_it(signed: Path, pairs: dict[str, Pair]) -> None:
    (signed / ".gitattributes").write_text("*.data filter=lfs\n")
    (signed / ".git").mkdir()
    (signed / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert verify(signed, trust=Trust(key=pairs["ours"].public)).holds


@pytest.mark.parametrize("kind", ["file", "folder", "signature", "dangling"])
def test_links_are_not_followed(kind: str, signed: Path, pairs: dict[str, Pair], run: Runs, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    name = {"file": WEIGHTS, "folder": "more", "signature": SIGNATURE, "dangling": "nowhere"}[kind]
    if (signed / name).exists():
        (signed / name).rename(outside / name)
    target = {"folder": outside, "dangling": tmp_path / "not-there"}.get(kind, outside / name)
    (signed / name).symlink_to(target)
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, f"{name}: a link" in done.stdout) == (1, True)
    assert "secret" not in done.stdout
    own = sum(path.is_file() and not path.is_symlink() for path in signed.iterdir())
    assert verify(signed).files == own


def test_a_name_that_is_no_text_is_said(signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    try:
        (signed / os.fsdecode(b"\xff\xfe")).write_text("x")
    except OSError:
        pytest.skip("this file system has no such names")
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, r"\udcff\udcfe: a name that is no text" in done.stdout) == (1, True)
    done = run("certify", signed, "--against", SOURCE, "--force")
    assert (done.exit_code, "a name that is no text" in done.stderr) == (2, True)


def test_the_signature_of_another_key_is_refused(signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    done = run("verify", signed, "--key", pairs["theirs"].public)
    assert (done.exit_code, f"{SIGNATURE} is not signed by" in done.stdout) == (1, True)
    # Also where it says that it is of ours.
    hint = file_sha256(pairs["theirs"].public)
    rewrite(signed / SIGNATURE, lambda values: values["verificationMaterial"]["publicKey"].update(hint=hint))
    done = run("verify", signed, "--key", pairs["theirs"].public)
    assert (done.exit_code, "InvalidSignature" in done.stdout) == (1, True)


def test_a_signature_that_is_asked_for_must_be_there(copied: Copies, pairs: dict[str, Pair], run: Runs) -> None:
    done = run("verify", copied(certified=True), "--key", pairs["ours"].public)
    assert (done.exit_code, "it is not signed" in done.stdout) == (1, True)


def test_a_signature_that_was_taken_away_is_missed(signed: Path, run: Runs) -> None:
    (signed / SIGNATURE).unlink()
    done = run("verify", signed)
    assert (done.exit_code, f"{SIGNATURE}, which was written with the proof, is gone" in done.stdout) == (1, True)
    (signed / STATEMENTS).unlink()
    assert run("verify", signed).exit_code == 1


def test_statements_that_were_taken_away_are_missed(signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    (signed / STATEMENTS).unlink()
    done = run("verify", signed, "--key", pairs["ours"].public)
    assert (done.exit_code, f"{STATEMENTS}, which was written with the proof, is gone" in done.stdout) == (1, True)


def test_statements_without_a_signature_are_nobodys(signed: Path, copied: Copies, run: Runs) -> None:
    folder = copied("unsigned", certified=True)
    shutil.copy(signed / STATEMENTS, folder / STATEMENTS)
    done = run("verify", folder)
    assert (done.exit_code, f"{STATEMENTS} lies there without {SIGNATURE}" in done.stdout) == (1, True)


@pytest.mark.parametrize("trusting", [True, False], ids=["key", "no key"])
def test_what_a_changed_manifest_says_is_not_shown(
    trusting: bool, signed: Path, pairs: dict[str, Pair], run: Runs
) -> None:
    rewrite(signed / MANIFEST, lambda values: values[PROOF]["claims"][0].update(name="better than PyTorch"))
    done = run("verify", signed, *(["--key", pairs["ours"].public] if trusting else []))
    assert (done.exit_code, f"{MANIFEST}: changed" in done.stdout) == (1, True)
    assert "better than PyTorch" not in done.stdout
    assert "recorded" not in done.stdout


def test_what_was_never_proven_does_not_hold(copied: Copies, run: Runs) -> None:
    done = run("verify", copied())
    assert (done.exit_code, "'glm-export certify' proves it" in done.stdout) == (1, True)


def test_other_files_with_their_hashes_are_not_those_that_were_proven(copied: Copies, run: Runs) -> None:
    """Whoever changes a file changes its hash; without a signature that is noticed where he forgets the proof's."""
    folder = copied(certified=True)
    changed(folder / "config.json")
    digest = file_sha256(folder / "config.json")
    rewrite(folder / MANIFEST, lambda values: values["sha256"].update({"config.json": digest}))
    done = run("verify", folder)
    assert (done.exit_code, "not those of the files that were proven" in done.stdout) == (1, True)
    # Who does not forget is not noticed: it is no seal.
    hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
    rewrite(folder / MANIFEST, lambda values: values[PROOF].update(files_sha256=root_digest(hashes)))
    assert run("verify", folder).exit_code == 0


DAMAGED_PROOFS: list[object] = [
    None,
    [],
    1,
    {"claims": 3},
    {"result": "GOOD"},
    {"result": "FAILED"},
    {"claims": [{"name": "x"}]},
    {"versions": ["x"]},
    {"beside": {"../outside": 1}},
    {"signed_in": 7},
    {"created": {"a": 1}},
    {"unknown": "key"},
    {"claims": [{"name": "x", "result": "PASSED", "measured": "much", "bound": None}]},
]


@pytest.mark.parametrize("damage", DAMAGED_PROOFS, ids=repr)
def test_a_proof_that_is_none_is_one_line(damage: object, copied: Copies, run: Runs) -> None:
    folder = copied(certified=True)
    rewrite(
        folder / MANIFEST,
        lambda values: values.update(proof=values[PROOF] | damage if isinstance(damage, dict) else damage),
    )
    assert run("verify", folder).exit_code == 1


@pytest.mark.parametrize("signing", [False, True], ids=["unsigned", "signed"])
def test_the_check_is_run_again(signing: bool, copied: Copies, pairs: dict[str, Pair], run: Runs) -> None:
    folder = copied(certified=True, signer=Signer(key=pairs["ours"].private) if signing else None)
    key = ["--key", pairs["ours"].public] if signing else []
    done = run("verify", folder, *key, "--rerun", "--against", SOURCE)
    assert done.exit_code == 0, done.output
    assert "checked again: PASSED, as recorded" in done.stdout


def test_a_check_that_fails_now_does_not_hold(copied: Copies, run: Runs, tmp_path: Path, chatglm2_copy: Path) -> None:
    """A checkpoint by the same names whose weights are others."""
    import torch

    part = sorted(chatglm2_copy.glob("*.bin"))[0]
    tensors = torch.load(part, weights_only=True)
    torch.save({name: tensor * 1.05 for name, tensor in tensors.items()}, part)
    done = run("verify", copied(certified=True), "--rerun", "--against", chatglm2_copy)
    assert (done.exit_code, "checked again, it fails: prefill: logits" in done.stdout) == (1, True)
    assert "checked again: FAILED, recorded PASSED" in done.stdout


def test_what_was_changed_is_not_run_again(copied: Copies, run: Runs) -> None:
    folder = copied(certified=True)
    changed(folder / WEIGHTS)
    done = run("verify", folder, "--rerun", "--against", SOURCE)
    assert (done.exit_code, "checked again" in done.stdout) == (1, False)


@pytest.mark.parametrize(
    "words",
    [
        ["not-there"],
        ["SOURCE"],
        ["SOURCE", "--signature", "not-there.sig"],
        ["FOLDER", "--rerun"],
        ["FOLDER", "--against", "demo"],
        ["FOLDER", "--key", "not-there.pem"],
        ["FOLDER", "--key", "KEY", "--certificate-chain", "KEY"],
        ["FOLDER", "--key", "PRIVATE"],
        ["FOLDER", "--certificate-chain", "KEY"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(words: list[str], signed: Path, pairs: dict[str, Pair], run: Runs) -> None:
    given = {"SOURCE": SOURCE, "FOLDER": signed, "KEY": pairs["ours"].public, "PRIVATE": pairs["ours"].private}
    done = run("verify", *(given.get(word, word) for word in words))
    assert (done.exit_code, len(done.stderr.strip().splitlines())) == (2, 1), done.output
    assert ("with --rerun and --against" in done.stderr) == bool({"--rerun", "--against"} & set(words))


def test_a_folder_without_anything_to_hold_it_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=SIGNATURE):
        verify(tmp_path)
