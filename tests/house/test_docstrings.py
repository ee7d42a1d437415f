"""Examples in the docstrings of public names, run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import glm_export

PUBLIC = [name for name in glm_export.__all__ if callable(getattr(glm_export, name))]


def examples(value: object, name: str) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(recurse=False).find(value, name) if test.examples]


WITH_EXAMPLES = {name: found for name in PUBLIC if (found := examples(getattr(glm_export, name), name))}
WITH_EXAMPLES["glm_export"] = examples(glm_export, "glm_export")


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for test in WITH_EXAMPLES[name]:
        # As a reader types them: nothing is there but what they import.
        test.globs = {}
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not said, "".join(said)


def test_the_verbs_of_the_library_have_examples() -> None:
    expected = {
        "calibrate",
        "chat",
        "check",
        "embed",
        "export",
        "generate",
        "hidden_states",
        "load_session",
        "logits",
        "loglikelihood",
        "quality",
        "stream",
    }
    assert expected <= WITH_EXAMPLES.keys()
