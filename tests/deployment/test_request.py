"""What may be asked of a build, before any runtime is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_export.deployment.build import build
from glm_export.deployment.request import BuildRequest, ImplicitInt8
from glm_export.engines.implicit_int8 import CALIBRATORS
from glm_export.engines.options import BuildOptions
from glm_export.errors import InputError
from glm_export.spec.option import options_of, require_known

OUT = Path("out")


def test_the_usual() -> None:
    request = BuildRequest(source="demo", out=OUT)
    asked = (request.max_batch, request.runtime, request.max_context, request.prefill_tokens, request.prefill_batch)
    assert asked == (4, None, None, None, None)
    assert (request.options, request.implicit_int8, request.timing_cache) == (BuildOptions(), None, None)
    assert (request.family, request.force, request.given_to_export) == (None, False, {})
    assert ImplicitInt8() == ImplicitInt8(algorithm="entropy", cache=None, corpus="default")


def test_what_is_none_was_not_given_to_the_export() -> None:
    request = BuildRequest(source="demo", out=OUT, export={"dtype": None, "recipe": "int8-weights", "ranges": None})
    assert request.given_to_export == {"recipe": "int8-weights"}
    with pytest.raises(TypeError, match=r"no option 'dialect'; known: dtype, recipe, ranges"):
        BuildRequest(source="demo", out=OUT, export={"dialect": "ort"})  # type: ignore[typeddict-unknown-key]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TypeError, match="no option 'max_bach'; known: source, out, runtime, max_batch"):
        build("demo", OUT, max_bach=2)  # type: ignore[call-arg]


def test_limits_are_compared_with_each_other() -> None:
    BuildRequest(source="demo", out=OUT, max_batch=2, prefill_batch=2).require_consistent()
    with pytest.raises(InputError, match="--prefill-batch 5 exceeds --max-batch 4"):
        BuildRequest(source="demo", out=OUT, prefill_batch=5).require_consistent()
    with pytest.raises(InputError, match="--prefill-tokens 9 exceeds --max-context 8"):
        BuildRequest(source="demo", out=OUT, max_context=8, prefill_tokens=9).require_consistent()


def test_calibrators_are_those_that_can_be_made() -> None:
    _, option = options_of(ImplicitInt8)["algorithm"]
    assert option.choices is not None
    assert list(option.choices()) == list(CALIBRATORS)
    with pytest.raises(InputError, match="calibrator 'mean' is unknown; known: entropy, min-max"):
        require_known(ImplicitInt8(algorithm="mean"), "algorithm")
