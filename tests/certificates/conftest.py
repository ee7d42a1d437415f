"""A golden program that was checked once, and copies of it: plain, certified, signed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glm_export import api
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.certificates.certify import certify_checked
from glm_export.certificates.options import Signer
from glm_export.cli import cli
from glm_export.proof.check import CheckReport
from tests.helpers.authority import Pair, key_pair
from tests.helpers.golden_data import Golden

SOURCE = Golden("chatglm2").folder
Copies = Callable[..., Path]
Runs = Callable[..., Result]


@pytest.fixture(scope="session")
def program(exported: Callable[[str], OnnxProgram]) -> OnnxProgram:
    return exported("chatglm2")


@pytest.fixture(scope="session")
def report(program: OnnxProgram) -> CheckReport:
    return api.check(program, SOURCE)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Two key pairs."""
    folder = tmp_path_factory.mktemp("keys")
    return {name: key_pair(folder, name) for name in ("ours", "theirs")}


@pytest.fixture
def copied(program: OnnxProgram, report: CheckReport, tmp_path: Path) -> Copies:
    """A copy of the program's folder; ``certified``: with what was proven; ``signer``: signed besides."""

    def copy(name: str = "model", *, certified: bool = False, signer: Signer | None = None) -> Path:
        folder = tmp_path / name
        shutil.copytree(program.folder, folder)
        if certified or signer is not None:
            certify_checked(load_program(folder), report, signer=signer)
        return folder

    return copy


@pytest.fixture
def signed(copied: Copies, pairs: dict[str, Pair]) -> Path:
    return copied("signed", signer=Signer(key=pairs["ours"].private))


@pytest.fixture
def run() -> Runs:
    """A verb, which ends in its own words whatever it is given."""

    def call(*words: str | Path, **given: str) -> Result:
        result = CliRunner().invoke(cli, [str(word) for word in words], **given)
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert "Traceback" not in result.output
        assert "fault of glm-export" not in result.output
        return result

    return call


def changed(path: Path) -> None:
    """One byte in the middle of a file becomes another."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
