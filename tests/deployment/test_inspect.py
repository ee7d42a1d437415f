"""What ``inspect`` says of folders; programs and checkpoints are inspected in the tests of the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_export import api
from glm_export.deployment.inspect import inspect_folder
from glm_export.errors import InputError
from tests.helpers.golden_data import Golden


def test_ranges_say_what_was_measured(tmp_path: Path) -> None:
    golden = Golden("chatglm2")
    ranges = api.calibrate(golden.folder, tmp_path / "ranges", sequence_length=16, max_samples=2)
    facts = inspect_folder(str(ranges.folder))
    assert facts["kind"] == "ranges"
    assert facts["family"] == "chatglm2"
    assert facts["measured_on"] == "chatglm2"
    assert facts["layers"] == api.open_checkpoint(golden.folder).config.num_layers
    assert (facts["corpus"]["name"], facts["corpus"]["samples"]) == ("default", 2)
    assert facts["weights_rounded_for"] == "no recipe"
    assert facts["linear_inputs"] == len(ranges.inputs)
    assert facts["sizes"]["ranges.json"] == (ranges.folder / "ranges.json").stat().st_size


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds nothing that says what it is"):
        inspect_folder(str(tmp_path))
