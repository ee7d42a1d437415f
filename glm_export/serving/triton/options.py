"""How a model is put into a repository."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from glm_export.errors import InputError, shown
from glm_export.spec.option import described, listed, require_known

ENGINE = "python"
"""The backend with our engine behind it."""
BACKENDS = (ENGINE, "onnxruntime", "tensorrt")
"""Triton's, that run what we write."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""Of a model: a folder's, and part of a URL."""


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryOptions:
    """How a model is put into a repository."""

    backend: str = field(
        default=ENGINE,
        metadata=described("The engine with texts (python), or one step of the decoder.", choices=BACKENDS),
    )
    name: str | None = field(default=None, metadata=described("Of the model in the repository. Default: the folder's."))
    link: bool = field(
        default=False,
        metadata=described("Hard links to weights, which take no room; onnx's own loader refuses such files."),
    )
    force: bool = field(default=False, metadata=described("Replace a model that glm-export wrote."))

    def __post_init__(self) -> None:
        require_known(self, "backend")
        if self.name is not None and not NAME.fullmatch(self.name):
            raise InputError(f"a model's name is letters, digits, '_', '-' and '.', found {shown(self.name)}")
