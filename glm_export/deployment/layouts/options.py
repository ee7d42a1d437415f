"""How a folder is laid out."""

from __future__ import annotations

from dataclasses import dataclass, field

from glm_export.spec.option import described, listed


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutOptions:
    """How a folder is laid out."""

    link: bool = field(
        default=False,
        metadata=described("Hard links to weights, which take no room; onnx's own loader refuses such files."),
    )
    force: bool = field(default=False, metadata=described("Replace a folder that glm-export laid out."))
