"""The engine that PyTorch computes, on a processor: its checks pass, and a step allocates nothing the second time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glm_export.generation.generate import generate_ids
from tests.benchmarks.planted_results import HOME
from tests.helpers.host_device import HostDevice

assert HOME
part, torch_engine = map(import_module, ("session_part", "torch_engine"))


@pytest.mark.parametrize(
    "check",
    [
        *(partial(part.greedy, graph=graph, alone=alone) for graph in (False, True) for alone in (False, True)),
        part.requests, part.failed_capture, part.failed_step, part.timed,
    ],
)  # fmt: skip
def test_checks_pass_on_a_processor(check: Callable[[Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "REQUESTS", 10)
    facts = check(HostDevice())
    assert facts["passed"], facts


def test_control_a_cache_that_is_not_written_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "past_names", lambda layer: ("past_key_values.0.key", "past_key_values.0.value"))
    assert not part.greedy(HostDevice(), graph=False, alone=False)["passed"]


class Allocations(TorchDispatchMode):
    """Operators whose result is neither a view, nor written in place, nor given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(result.alias_info is None for result in func._schema.returns):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_is_allocated_when_a_step_runs_again() -> None:
    """So it can be captured without PyTorch's allocator."""
    session, engine = torch_engine.torch_engine_session(HostDevice(), cuda_graph=False)
    with session:
        generate_ids(session, part.PROMPTS[:2], stopping=part.GREEDY)
        with Allocations() as watched:
            for context in engine.contexts:
                assert context.execute_async_v3(7)
            assert watched.found == []
            torch.ones(1)  # the control
            assert watched.found
