"""The verbs ``certify`` and ``verify``, and their table of claims."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.artifacts.manifest import SIGNATURE, STATEMENTS
from glm_export.certificates.certify import Certified, certify as certify_folder
from glm_export.certificates.claims import Proof, Result
from glm_export.certificates.extra import require_sign_extra
from glm_export.certificates.options import PASSWORD_VARIABLE, Signer, Trust
from glm_export.certificates.verify import Verification, verify as verify_folder
from glm_export.errors import InputError
from glm_export.evaluation.options import QualityOptions
from glm_export.terminal.console import (
    FOLDER,
    MODEL,
    MODEL_PATH,
    RESULTS,
    adapter_option,
    flags,
    force_option,
    json_option,
    show_json,
)
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import Column, columns, show_table

if TYPE_CHECKING:  # needs torch
    from glm_export.checkpoints.checkpoint import Checkpoint

COLOURS = {Result.PASSED: "green", Result.WARNED: "yellow", Result.FAILED: "red"}
SHOWN_VERSIONS = ("glm-export", "onnxruntime-gpu", "onnxruntime", "torch")
chain_option = click.option(
    "--certificate-chain",
    "chain",
    type=FOLDER,
    multiple=True,
    metavar="FILE",
    help="Certificates in PEM: to sign, those between the signer's and the root; to verify, the root that is trusted. "
    "May be given several times.",
)


@click.command()
@click.argument("program", type=FOLDER)
@click.option(
    "--against", type=MODEL, required=True, help="The checkpoint it is of, or `demo`; for an engine also its program."
)
@click.option("--key", type=FOLDER, metavar="FILE", help="Private key to sign with, in PEM; without one nothing is.")
@click.option("--certificate", type=FOLDER, metavar="FILE", help="The signer's certificate, in PEM, of that key.")
@chain_option
@flags(QualityOptions, "reference_dtype")
@adapter_option
@force_option("a signature that is there")
@json_option()
def certify(
    program: Path,
    against: str,
    reference_dtype: str,
    adapters: tuple[str, ...],
    force: bool,
    as_json: bool,
    **signing: Any,
) -> None:
    """Check PROGRAM, or an engine, write into it what was proven, and sign it with --key; exit 1 where it fails.

    An encrypted key's password is read from the variable GLM_EXPORT_KEY_PASSWORD, or asked for.
    """
    signer, reference = _signer(**signing), _reference(program, against, adapters)
    with progress() as bars:
        done = certify_folder(
            program, reference, signer=signer, reference_dtype=reference_dtype, force=force, progress=bars
        )
    if as_json:
        show_json(done.to_json())
    else:
        show_certified(RESULTS, done)


def _reference(folder: Path, against: str, adapters: tuple[str, ...]) -> str | Checkpoint:
    """What a folder is held to."""
    from glm_export import api

    return api.open_checkpoint(against, api.open_exported(folder).config.family, adapters) if adapters else against


def _signer(key: Path | None, certificate: Path | None, chain: tuple[Path, ...]) -> Signer | None:
    """Who signs; a password is asked for where somebody sits who could know it."""
    if key is None:
        if certificate is not None or chain:
            raise InputError("a certificate is signed with its private key; give that as --key")
        return None
    if chain and certificate is None:
        raise InputError("a chain belongs to the signer's certificate; give that as --certificate")
    require_sign_extra()
    from glm_export.certificates.keys import PasswordNeededError, read_private_key

    signer = Signer(key=key, certificate=certificate, chain=chain, password=os.environ.get(PASSWORD_VARIABLE))
    try:
        read_private_key(signer)
    except PasswordNeededError:
        if not sys.stdin.isatty():
            raise
        password = click.prompt(f"Password of {key}", hide_input=True, err=True)
        return Signer(key=key, certificate=certificate, chain=chain, password=password)
    return signer


def show_certified(console: Console, done: Certified) -> None:
    """What was proven, and by whom it is signed."""
    show_proof(console, done.proof, "")
    if done.by is None:
        console.print(f"written to {_plain(done.folder)}, not signed: give --key to sign it", soft_wrap=True)
    else:
        console.print(
            f"signed by {_plain(done.by)}: {SIGNATURE}, {STATEMENTS} in {_plain(done.folder)}", soft_wrap=True
        )


@click.command()
@click.argument("folder", type=MODEL_PATH)
@click.option("--key", type=FOLDER, metavar="FILE", help="Public key, in PEM, of whom it should be signed by.")
@chain_option
@click.option("--signature", type=FOLDER, metavar="FILE", help="The signature, where it is not in the folder.")
@click.option("--rerun", is_flag=True, help="Run the check again, with --against.")
@click.option("--against", type=MODEL, help="The checkpoint FOLDER is of, for --rerun.")
@adapter_option
@json_option()
def verify(
    folder: Path,
    key: Path | None,
    chain: tuple[Path, ...],
    signature: Path | None,
    rerun: bool,
    against: str | None,
    adapters: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say whether FOLDER is still the one that was proven, and by whom; exit 1 where it is not.

    Without a key or a certificate to trust, a signed folder is compared with what its signature says, and exits with 2.
    """
    if rerun != (against is not None):
        raise InputError("the check is run again with --rerun and --against CHECKPOINT; give both")
    trust = Trust(key=key, chain=chain) if key is not None or chain else None
    reference = None if against is None else _reference(folder, against, adapters)
    with progress() as bars:
        found = verify_folder(folder, trust=trust, signature=signature, against=reference, progress=bars)
    if as_json:
        show_json(found.to_json())
    else:
        show_verification(RESULTS, found)
    if found.differences or found.problems:
        sys.exit(1)
    if found.needed is not None:
        raise InputError(found.needed)


def show_verification(console: Console, found: Verification) -> None:
    """Files, what was proven, by whom, and the verdict."""
    if found.proof is not None:
        show_proof(console, found.proof, "recorded: ")
    if found.again is not None and found.proof is not None:
        same = "as recorded" if found.again is found.proof.result else f"recorded {found.proof.result.value}"
        console.print(f"checked again: {found.again.value}, {same}")
    for difference in found.differences:
        console.print(_plain(difference), soft_wrap=True)
    for problem in found.problems:
        console.print(_plain(problem), soft_wrap=True)
    if not found.differences and not found.problems:
        console.print(f"files: {found.files}, unchanged")
    by = _plain(found.signed_by) if found.signed_by is not None else "nobody"
    until = f", valid until {found.valid_until}" if found.valid_until else ""
    doubt = "" if found.verified or found.signed_by is None else " (not verified)"
    console.print(f"signed by: {by}{until}{doubt}", soft_wrap=True)
    console.print(f"parity statement: {found.statements}", soft_wrap=True)
    if found.holds:
        console.print("[bold green]HOLDS[/]")
    elif found.differences or found.problems:
        console.print("[bold red]DOES NOT HOLD[/]")
    else:
        console.print("[bold yellow]NOT VERIFIED[/]")


def show_proof(console: Console, proof: Proof, before: str) -> None:
    """One row a claim, and who compared what, when; ``before`` goes before the verdict."""
    title = f"{proof.candidate} against {proof.reference} {proof.reference_dtype}, {proof.created}"
    rows = []
    for claim in proof.claims:
        verdict = f"[{COLOURS[claim.result]}]{claim.result.value.lower()}[/]"
        rows.append((_plain(claim.name), _number(claim.measured), _number(claim.bound), verdict))
    heads = [Column("claim", prose=True), *columns("measured", "bound", number=True), Column()]
    show_table(console, heads, rows, title=_plain(title))
    versions = ", ".join(f"{name} {proof.versions[name]}" for name in SHOWN_VERSIONS if name in proof.versions)
    colour = COLOURS[proof.result]
    console.print(f"{before}[bold {colour}]{proof.result.value}[/], by {_plain(versions)}", soft_wrap=True)


def _number(value: float | None) -> str:
    """Counts whole, shares in two digits."""
    if value is None:
        return ""
    return f"{value:.0f}" if value == int(value) else f"{value:.1e}"


def _plain(value: object) -> str:
    return escape(str(value))
