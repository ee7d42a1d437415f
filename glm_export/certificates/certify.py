"""Certify a folder: prove it, write what was proven into its manifest, and sign all of it where there is a key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_export import api
from glm_export.artifacts.engine import KERNELS, Engine
from glm_export.artifacts.manifest import CARD, PROOF, SIGNATURE, STATEMENTS, write_json
from glm_export.artifacts.open import TOLD_BY, Kind
from glm_export.artifacts.output_folder import scratch_folder
from glm_export.artifacts.program import OnnxProgram
from glm_export.certificates.claims import Proof, Result, proof_of
from glm_export.certificates.digests import compared, files_of, own_digests, recorded_digests, root_digest
from glm_export.certificates.extra import require_sign_extra
from glm_export.certificates.options import Signer
from glm_export.errors import CheckpointError, ComparisonFailedError, InputError
from glm_export.model_folder import file_sha256, load_json
from glm_export.progress import NullProgress, Progress
from glm_export.proof.options import CheckOptions
from glm_export.store.address import is_url

if TYPE_CHECKING:  # the first needs torch, the second the extra
    from glm_export.certificates.keys import Identity
    from glm_export.checkpoints.checkpoint import Checkpoint
    from glm_export.proof.check import CheckReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A folder, what was proven of it, and who signed that; ``by`` is None where nobody did."""

    folder: Path
    proof: Proof
    by: Identity | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "signed_by": None if self.by is None else str(self.by),
            "proof": self.proof.to_json(),
        }


def certify(
    program: str | Path | OnnxProgram | Engine,
    against: str | Path | Checkpoint,
    *,
    signer: Signer | None = None,
    family: str | None = None,
    reference_dtype: str = "float32",
    force: bool = False,
    progress: Progress | None = None,
) -> Certified:
    """Check an exported folder or an engine, and write what was proven into its manifest; with a signer, sign it.

    Signed are all files of the folder, by OpenSSF Model Signing (``model.sig``); and over the same digests a test
    result and a provenance (``model.intoto.jsonl``). Nothing is written where the check fails.

    Args:
        program: the folder.
        against: the checkpoint it is of; for an engine also the exported folder it was built of.
        signer: whose key signs; None: the proof is written, unsigned.
        family: of the checkpoint, where config.json leaves it open.
        reference_dtype: of the reference.
        force: replace a signature that is there.
        progress: shows the check, and files as they are hashed and signed.

    Raises:
        ComparisonFailedError: the check fails.
        InputError: the folder is signed already, holds links, or was made of another checkpoint; or a key or
            certificate cannot be used.
        CheckpointError: a file is not what was written.
        EnvironmentMissingError: the extra ``sign`` is missing, or what runs the folder.
    """
    if signer is not None:
        require_sign_extra()
        from glm_export.certificates.keys import read_private_key

        # Before the check, which may take minutes.
        read_private_key(signer)
    if isinstance(program, str | Path) and is_url(program):
        raise InputError("a proof is written into the folder: fetch it, copy it, certify the copy and upload that")
    loaded = api.open_exported(program) if isinstance(program, str | Path) else program
    _require_certifiable(loaded.folder.resolve(), force=force)
    report = checked(loaded, against, family, reference_dtype, progress)
    return certify_checked(loaded, report, signer=signer, reference_dtype=reference_dtype, progress=progress)


def certify_checked(
    loaded: OnnxProgram | Engine,
    report: CheckReport,
    *,
    signer: Signer | None,
    reference_dtype: str = "float32",
    progress: Progress | None = None,
) -> Certified:
    """As :func:`certify`, of a folder that was checked a moment ago; a signature that is there is replaced.

    Args:
        loaded: the folder.
        report: of its check.
        signer: whose key signs.
        reference_dtype: of the check's reference.
        progress: shows files as they are hashed and signed.
    """
    folder, kind = loaded.folder.resolve(), Kind.ENGINE if isinstance(loaded, Engine) else Kind.PROGRAM
    if kind is Kind.ENGINE and report.passed:
        # Of this machine's GPU; an engine makes them anew wherever it runs.
        (folder / KERNELS).unlink(missing_ok=True)
    own = _undamaged(loaded, folder, kind, progress)
    # The card is its folder's owner's: certified as it lies there.
    written = {name: digest for name, digest in loaded.manifest["sha256"].items() if name != CARD}
    beside = {name: digest for name, digest in own.items() if name not in written}
    signed_in = (SIGNATURE, STATEMENTS) if signer is not None else ()
    proof = proof_of(report, reference_dtype, beside=beside, files_sha256=root_digest(own), signed_in=signed_in)
    if not report.passed or proof.result is Result.FAILED:
        failed = ", ".join(proof.named(Result.FAILED)) or "the check"
        raise ComparisonFailedError(
            f"{folder} is not certified, and nothing was written: {failed} failed; 'glm-export check' shows all of it"
        )
    # Its library hashes every file anew, and tells nobody how far it is.
    shown = progress if progress is not None and signer is not None else NullProgress()
    advance = shown.task("signature", 1)
    by = _written(folder, TOLD_BY[kind], proof, own, signer)
    advance(1)
    return Certified(folder=loaded.folder, proof=proof, by=by)


def checked(
    loaded: OnnxProgram | Engine,
    against: str | Path | Checkpoint,
    family: str | None,
    reference_dtype: str,
    progress: Progress | None = None,
) -> CheckReport:
    """Run the check; kernels that TensorRT-RTX compiles meanwhile for this machine do not stay in the folder."""
    kernels = loaded.folder / KERNELS
    there = kernels.exists()
    try:
        options = CheckOptions(reference_dtype=reference_dtype)
        return api.check(loaded, against, options, family=family, progress=progress)
    finally:
        if not there:
            kernels.unlink(missing_ok=True)


def _require_certifiable(folder: Path, *, force: bool) -> None:
    files, odd = files_of(folder)
    if odd:
        raise InputError(f"{folder} cannot be certified: {odd[0]}; put the file itself there")
    there = [name for name in (SIGNATURE, STATEMENTS) if name in files]
    if there and not force:
        raise InputError(f"{folder} holds {' and '.join(there)} already; give --force to certify it anew")


def _undamaged(loaded: OnnxProgram | Engine, folder: Path, kind: Kind, progress: Progress | None) -> dict[str, str]:
    """Digests of all files, once those that were recorded are as recorded."""
    recorded, own = recorded_digests(loaded.manifest, None), own_digests(folder, kind, progress)
    different = [one for one in compared(recorded, own) if one.name in recorded and one.name != CARD]
    if different:
        raise CheckpointError(f"{folder} is not as it was written: {different[0]}; export (or build) again")
    return own


def _written(
    folder: Path, manifest_name: str, proof: Proof, own: dict[str, str], signer: Signer | None
) -> Identity | None:
    """Write proof, statements and signature, each file whole; where signing fails the folder is as it was."""
    manifest, by = folder / manifest_name, None
    with scratch_folder(folder, "partial") as scratch:
        before = manifest.read_bytes()
        write_json(scratch / manifest_name, load_json(manifest) | {PROOF: proof.to_json()})
        (scratch / manifest_name).replace(manifest)
        if signer is None:
            for name in (SIGNATURE, STATEMENTS):
                (folder / name).unlink(missing_ok=True)
            return None
        try:
            by = _signed(folder, scratch, manifest_name, proof, own, signer)
        except BaseException:
            (scratch / manifest_name).write_bytes(before)
            (scratch / manifest_name).replace(manifest)
            raise
        for name in (STATEMENTS, SIGNATURE):
            (scratch / name).replace(folder / name)
    return by


def _signed(
    folder: Path, scratch: Path, manifest_name: str, proof: Proof, own: dict[str, str], signer: Signer
) -> Identity:
    from glm_export.certificates.keys import identity_of, read_certificates, read_private_key
    from glm_export.certificates.predicates import PROVENANCE, TEST_RESULT, provenance, test_result
    from glm_export.certificates.signature import read_bundle, sign_folder
    from glm_export.certificates.statements import enveloped

    sign_folder(folder, signer, scratch / SIGNATURE)
    bundle, manifest = read_bundle(scratch / SIGNATURE), folder / manifest_name
    digest = file_sha256(manifest)
    changed = compared(own | {manifest_name: digest}, bundle.resources)
    if changed:
        raise InputError(f"{folder} changed while it was certified: {changed[0]}; run it again")
    predicates = {
        TEST_RESULT: test_result(proof, manifest_name, digest),
        PROVENANCE: provenance(load_json(manifest)),
    }
    key = read_private_key(signer)
    (scratch / STATEMENTS).write_text(enveloped(bundle.subject, predicates, key), encoding="utf-8")
    certificate = read_certificates(signer.certificate)[0] if signer.certificate is not None else None
    return identity_of(key.public_key(), certificate)
