"""What a dialect claims fits its opset."""

from __future__ import annotations

from typing import Any

import pytest

from glm_export.errors import InputError
from glm_export.spec.capabilities import Capabilities


@pytest.mark.parametrize(
    "claim", [{"qdq_blocks": True}, {"half_scales": True}, {"qdq_dtypes": frozenset({"int8", "int4"})}]
)
def test_later_forms_of_qdq_came_with_opset_21(claim: dict[str, Any]) -> None:
    Capabilities(**claim).require_consistent(21)
    with pytest.raises(InputError, match="came with opset 21; found opset 20"):
        Capabilities(**claim).require_consistent(20)


def test_int8_per_channel_is_older() -> None:
    Capabilities(qdq_dtypes=frozenset({"int8"})).require_consistent(17)


def test_a_call_of_tensorrt_is_for_what_tensorrt_reads() -> None:
    Capabilities(tensorrt=True, tensorrt_needs="IKVCacheUpdateLayer").require_consistent(24)
    with pytest.raises(InputError, match="by what TensorRT does not read"):
        Capabilities(tensorrt_needs="IKVCacheUpdateLayer").require_consistent(24)
