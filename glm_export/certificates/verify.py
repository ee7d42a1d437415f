"""Is a folder still the one that was proven, and who says so?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_export import api
from glm_export.artifacts.manifest import PROOF, SIGNATURE, STATEMENTS
from glm_export.artifacts.open import TOLD_BY, Kind, kind_of, located
from glm_export.certificates.certify import checked
from glm_export.certificates.claims import Proof, Result, claims_of, result_of
from glm_export.certificates.digests import (
    Difference,
    compared,
    files_of,
    is_of_git,
    own_digests,
    recorded_digests,
    root_digest,
)
from glm_export.certificates.extra import require_sign_extra
from glm_export.certificates.options import Trust
from glm_export.errors import GlmExportError, InputError
from glm_export.model_folder import file_sha256, read_json
from glm_export.progress import NullProgress, Progress

if TYPE_CHECKING:  # these need the extra, or torch
    from glm_export.certificates.signature import Bundle, Signed
    from glm_export.checkpoints.checkpoint import Checkpoint


@dataclass(slots=True, kw_only=True)
class Verification:
    """What was found of a folder.

    ``files``: how many were looked at. ``differences``: those that are not as signed or, unsigned, as recorded.
    ``proof``: what its manifest says was proven; None where it says nothing, or was changed. ``signed_by``: who signed
    it, None where nobody did or it could not be read. ``verified``: whether that was shown, by what is trusted.
    ``statements``: what was found of parity statement and provenance. ``problems``: what does not hold, a line each.
    ``needed``: what must be given to verify the rest. ``again``: how the check came out now, where it was run again.
    """

    folder: Path
    files: int
    differences: tuple[Difference, ...] = ()
    proof: Proof | None = None
    signed_by: str | None = None
    valid_until: str | None = None
    verified: bool = False
    statements: str = "none"
    problems: list[str] = field(default_factory=list)
    needed: str | None = None
    again: Result | None = None

    @property
    def holds(self) -> bool:
        """Whether everything there is was verified, and is as it should be."""
        return not self.differences and not self.problems and self.needed is None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "holds": self.holds,
            "files": self.files,
            "differences": {difference.name: difference.how for difference in self.differences},
            "problems": self.problems,
            "needed": self.needed,
            "signed_by": self.signed_by,
            "valid_until": self.valid_until,
            "verified": self.verified,
            "statements": self.statements,
            "proof": None if self.proof is None else self.proof.to_json(),
            "again": None if self.again is None else self.again.value,
        }


def verify(
    folder: str | Path,
    *,
    trust: Trust | None = None,
    signature: Path | None = None,
    against: str | Path | Checkpoint | None = None,
    family: str | None = None,
    progress: Progress | None = None,
) -> Verification:
    """See whether a folder is still the one that was proven, and who signed it; nothing is followed out of it.

    A folder that others signed by OpenSSF Model Signing is verified as well, its parity statement being none.

    Args:
        folder: an exported folder or an engine; or any that holds a signature.
        trust: whose signature is accepted. None: a signature is described, and what verifies it is asked for.
        signature: where it lies elsewhere than in the folder.
        against: run the check again, with this checkpoint.
        family: of that, where config.json leaves it open.
        progress: shows files as they are hashed, and the check.

    Raises:
        InputError: there is no such folder, nothing that could be verified, or a key or certificate cannot be read.
        EnvironmentMissingError: the folder is signed, and the extra ``sign`` is missing.
    """
    progress = progress or NullProgress()
    given = located(folder, progress)
    folder = given.resolve()
    if not folder.is_dir():
        raise InputError(f"{given} is no folder; give one that 'glm-export certify' signed")
    files, odd = files_of(folder)
    found = Verification(folder=given, files=len(files))
    if odd:
        found.differences = tuple(odd)
        found.problems.append("links and the like are not followed, and nothing else was looked at")
        return found
    kind = kind if (kind := kind_of(folder)) in (Kind.PROGRAM, Kind.ENGINE) else None
    path = signature if signature is not None else folder / SIGNATURE
    if signature is not None and not path.is_file():
        raise InputError(f"{path} is no file; give the signature ({SIGNATURE} in the folder, if left out)")
    if path.is_file():
        _verify_signed(found, folder, kind, path, trust, progress)
    elif kind is None:
        raise InputError(f"{given} holds no {SIGNATURE} and no manifest of ours: nothing says what it should be")
    else:
        _verify_recorded(found, folder, kind, progress, signed_expected=trust is not None)
    if against is not None and not found.differences and not found.problems:
        _check_again(found, folder, against, family, progress)
    return found


def _verify_recorded(
    found: Verification, folder: Path, kind: Kind, progress: Progress, *, signed_expected: bool
) -> None:
    """An unsigned folder, by what its own manifest says."""
    if signed_expected:
        found.problems.append(f"it is not signed: it holds no {SIGNATURE}")
    if (folder / STATEMENTS).exists():
        found.problems.append(f"{STATEMENTS} lies there without {SIGNATURE}, so nobody vouches for it")
    try:
        manifest = read_json(folder, TOLD_BY[kind])
        found.proof = _proof_in(manifest)
        recorded = recorded_digests(manifest, found.proof.beside if found.proof is not None else None)
    except GlmExportError as error:
        found.problems.append(str(error))
        return
    own = own_digests(folder, kind, progress)
    found.differences = tuple(compared(recorded, own))
    if found.proof is None:
        found.problems.append("nothing is recorded as proven of it; 'glm-export certify' proves it")
        return
    missing = [name for name in found.proof.signed_in if name == SIGNATURE]
    if missing:
        found.problems.append(f"{SIGNATURE}, which was written with the proof, is gone")
    _require_proven(found, found.proof, recorded, own)


def _require_proven(found: Verification, proof: Proof, recorded: Mapping[str, str], present: Mapping[str, str]) -> None:
    """What was proven is what is recorded, and what is recorded is what is there."""
    if proof.result is Result.FAILED or proof.named(Result.FAILED):
        found.problems.append("what is recorded of its check is that it failed")
    if not found.differences and (changed := compared(recorded, present)):
        found.problems.append(f"its files are not those that were proven: {changed[0]}")
    elif root_digest(recorded) != proof.files_sha256:
        found.problems.append("the manifest's hashes are not those of the files that were proven")


def _verify_signed(
    found: Verification, folder: Path, kind: Kind | None, path: Path, trust: Trust | None, progress: Progress
) -> None:
    require_sign_extra()
    from glm_export.certificates import signature
    from glm_export.certificates.statements import SignatureError

    try:
        bundle = signature.read_bundle(path)
        found.signed_by = bundle.claimed()
        if trust is None:
            found.differences = signature.differences(folder, bundle, progress)
            what = "--key PUBLIC.pem" if bundle.certificate is None else "--certificate-chain ROOT.pem"
            found.needed = f"{path.name} says it is by {found.signed_by}; give {what} to see whether it is"
            signed = None
        else:
            signed = signature.authenticated(folder, bundle, trust, progress)
            found.signed_by, found.valid_until, found.verified = str(signed.by), signed.by.valid_until, True
            found.differences = signed.differences
    except SignatureError as error:
        found.problems.append(str(error))
        return
    try:
        _verify_proof(found, folder, kind, bundle)
        _verify_statements(found, folder, kind, bundle, signed)
    except GlmExportError as error:
        found.problems.append(str(error))


def _verify_proof(found: Verification, folder: Path, kind: Kind | None, bundle: Bundle) -> None:
    """What the manifest says was proven: believed where the manifest is as signed."""
    if kind is None or any(one.name == TOLD_BY[kind] for one in found.differences):
        return
    manifest = read_json(folder, TOLD_BY[kind])
    found.proof = _proof_in(manifest)
    if found.proof is not None and not found.differences:
        recorded = recorded_digests(manifest, found.proof.beside)
        apart = {TOLD_BY[kind], SIGNATURE, STATEMENTS}
        plain = bundle.serialization.get("method") == "files" and bundle.serialization.get("hash_type") == "sha256"
        present = bundle.resources if plain else own_digests(folder, kind)
        present = {name: one for name, one in present.items() if name not in apart and not is_of_git(name)}
        _require_proven(found, found.proof, recorded, present)


def _verify_statements(
    found: Verification, folder: Path, kind: Kind | None, bundle: Bundle, signed: Signed | None
) -> None:
    """Parity statement and provenance, which the folder's signer signed over the same digests."""
    path, expected = folder / STATEMENTS, found.proof is not None and STATEMENTS in found.proof.signed_in
    if not path.exists():
        if expected:
            found.problems.append(f"{STATEMENTS}, which was written with the proof, is gone")
        return
    if signed is None or kind is None:
        found.statements = "not verified"
        return
    from glm_export.certificates.statements import read_statements, require_about

    found.statements = "do not hold"
    stated = read_statements(path, signed.key)
    require_about(stated, bundle.subject, file_sha256(folder / TOLD_BY[kind]), STATEMENTS)
    found.statements = "test result and provenance, by the same signer over the same digests"


def _proof_in(manifest: Mapping[str, Any]) -> Proof | None:
    return Proof.from_json(manifest[PROOF]) if PROOF in manifest else None


def _check_again(
    found: Verification, folder: Path, against: str | Path | Checkpoint, family: str | None, progress: Progress
) -> None:
    dtype = found.proof.reference_dtype if found.proof is not None else "float32"
    claims = tuple(claims_of(checked(api.open_exported(folder), against, family, dtype, progress)))
    found.again = result_of(claims)
    if found.again is Result.FAILED:
        failed = ", ".join(claim.name for claim in claims if claim.result is Result.FAILED)
        found.problems.append(f"checked again, it fails: {failed}")
