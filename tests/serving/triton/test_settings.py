"""The engine's options as parameters of ``config.pbtxt``."""

from __future__ import annotations

from dataclasses import fields

import pytest

from glm_export.errors import InputError
from glm_export.serving.options import ServeOptions
from glm_export.serving.triton.settings import SETTINGS, from_parameters, to_parameters

TRITONS_OWN = {"host", "port", "max_body_megabytes", "api_key_file", "otlp_traces_endpoint"}


def test_there_and_back() -> None:
    changed = ServeOptions(
        max_batch=3, max_context=64, chunk_tokens=7, exact=True, queue=0, wait_seconds=1.5, deadline=2.0,
        drain_seconds=0.0, prefix_megabytes=0, allow_special_tokens=True, threads=2, speculate=True, no_cache=True,
    )  # fmt: skip
    for options in (ServeOptions(), changed):
        assert from_parameters(to_parameters(options)) == options


def test_every_option_is_the_engines_or_tritons_own() -> None:
    assert {field.name for field in fields(ServeOptions)} == {*SETTINGS} | TRITONS_OWN


def test_what_the_backend_is_told_is_left_alone() -> None:
    assert from_parameters({"EXECUTION_ENV_PATH": "/env.tar.gz", "exact": "true"}) == ServeOptions(exact=True)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("max_batches", "4", "no parameter 'max_batches'; known: max_batch, "),
        ("port", "80", "no parameter 'port'"),
        ("max_batch", "0", "parameter max_batch of config.pbtxt cannot be '0': Rows at once"),
        ("max_batch", "4.5", "cannot be '4.5'"),
        ("max_batch", "many", "cannot be 'many'"),
        ("max_batch", "true", "cannot be 'true'"),
        ("exact", "1", "cannot be '1'"),
        ("deadline", "-1", "cannot be '-1'"),
        ("deadline", "NaN", "cannot be 'NaN'"),
    ],
)
def test_what_cannot_be(name: str, text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        from_parameters({name: text})
    assert told in str(error.value)
