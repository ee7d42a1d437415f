"""Our session on the GPU over an engine that PyTorch computes: copies, capture, the loop that chooses tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from record import Facts, Recorder
from torch_engine import V, torch_engine_session

from glm_export.errors import EnvironmentMissingError
from glm_export.generation.generate import generate_ids
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.sessions.device.device import Device
from glm_export.sessions.session import Session
from glm_export.sessions.tensorrt.session import EngineSession

TOKENS, REQUESTS, TIMED = 40, 100, 60
PROMPTS = [[5, 17, 400, 8], [300, 301, 7], [9, 9, 1, 44, 250, 6]]
GREEDY = Stopping(max_new_tokens=TOKENS)


def device_of(recorder: Recorder) -> Device:
    """The GPU; in a rehearsal the host stands for it."""
    if recorder.kit.rehearse:
        from tests.helpers.host_device import HostDevice

        return HostDevice()
    from glm_export.sessions.device.cuda import CudaDevice

    return CudaDevice()


def session_on_gpu(recorder: Recorder) -> None:
    """Each check over a session of its own."""
    checks: dict[str, Callable[[Device], Facts]] = {
        "chosen by the host, without a graph": partial(greedy, graph=False, alone=False),
        "chosen by the host, with a graph": partial(greedy, graph=True, alone=False),
        "chosen on the device, without a graph": partial(greedy, graph=False, alone=True),
        "chosen on the device, with a graph": partial(greedy, graph=True, alone=True),
        "random requests, device and host": requests,
        "a capture that fails": failed_capture,
        "a step that fails": failed_step,
        "microseconds of a step": timed,
    }
    for name, check in checks.items():
        recorder.step(name, partial(over_a_device, recorder, check))


def over_a_device(recorder: Recorder, check: Callable[[Device], Facts]) -> Facts:
    return check(device_of(recorder))


def by_the_host(session: Session) -> None:
    """From now on the session leaves choosing to the host."""
    session.__class__ = type("ByTheHost", (session.__class__,), {"chooses_tokens": False})


def greedy(device: Device, *, graph: bool, alone: bool) -> Facts:
    """Three prompts one after another, together, and the first again: as PyTorch writes them without any cache."""
    session, engine = torch_engine_session(device, cuda_graph=graph)
    with session:
        if not alone:
            by_the_host(session)
        expected = [engine.decoder.greedy(prompt, TOKENS) for prompt in PROMPTS]
        found = [generate_ids(session, [prompt], stopping=GREEDY)[0].ids for prompt in PROMPTS]
        found += [row.ids for row in generate_ids(session, PROMPTS, stopping=GREEDY)]
        found += [generate_ids(session, PROMPTS[:1], stopping=GREEDY)[0].ids]
        captured = session._decode_step._recorded is not None
    wrong = [at for at, (one, other) in enumerate(zip(found, [*expected, *expected, expected[0]], strict=True))
             if one != other]  # fmt: skip
    facts: Facts = {"passed": not wrong and captured == graph, "found": f"{len(found) - len(wrong)} of {len(found)}"}
    if captured != graph:
        facts["means"] = "the step was not captured, or against the wish"
    return facts


def requests(device: Device) -> Facts:
    """Lengths, seeds, rows that end early: token by token as the host chooses."""
    random = np.random.default_rng(0)
    apart = 0
    alone, _ = torch_engine_session(device)
    other, _ = torch_engine_session(device)
    by_the_host(other)
    with alone, other:
        for _ in range(REQUESTS):
            prompts = [
                random.integers(0, V, int(random.integers(1, 12))).tolist() for _ in range(random.integers(1, 5))
            ]
            stops = frozenset(random.choice(V, int(random.integers(0, V // 6)), replace=False).tolist())
            stopping = Stopping(max_new_tokens=int(random.integers(1, TOKENS)), stop_ids=stops)
            sampling = Sampling(
                temperature=float(random.choice([0.0, 0.7, 1.5])), top_k=int(random.choice([0, 5])),
                top_p=float(random.choice([1.0, 0.8])), seed=int(random.integers(1 << 30)),
            )  # fmt: skip
            one, two = (
                [(row.ids, row.finish_reason) for row in generate_ids(s, prompts, stopping=stopping, sampling=sampling)]
                for s in (alone, other)
            )
            apart += one != two
    return {"passed": not apart, "found": f"{REQUESTS - apart} of {REQUESTS} requests alike"}


def failed_capture(device: Device) -> Facts:
    """The text goes on without a graph, and the stream takes work as before."""

    def refused(_: object) -> None:
        raise EnvironmentMissingError("refused for the test")

    session, engine = torch_engine_session(device)
    with session:
        decode = engine.contexts[1]
        execute = decode.execute_async_v3
        calls: list[int] = []

        def second_fails(stream: int) -> bool:
            # The first call runs, the second is the one that is captured.
            calls.append(stream)
            return len(calls) != 2 and execute(stream)

        decode.execute_async_v3 = second_fails  # type: ignore[method-assign]
        found = generate_ids(session, PROMPTS[:1], stopping=GREEDY)[0].ids
        expected = engine.decoder.greedy(PROMPTS[0], TOKENS)
        captured = session._decode_step._recorded is not None
    return {"passed": found == expected and not captured, "found": f"{len(calls)} calls, none of them captured"}


def failed_step(device: Device) -> Facts:
    """The session says that it is broken."""
    session, engine = torch_engine_session(device)
    told: list[str] = []
    with session:
        engine.contexts[1].failing = True
        for _ in range(2):
            try:
                generate_ids(session, PROMPTS[:1], stopping=GREEDY)
            except EnvironmentMissingError as error:
                told.append(str(error))
    return {
        "passed": len(told) == 2 and "could not run" in told[0] and "failed before" in told[1],
        "found": told[-1] if told else "nothing was said",
    }  # fmt: skip


def timed(device: Device) -> Facts:
    """Of a small engine's step, which takes the GPU next to no time: what is left is the host, and launching."""
    found: dict[str, float] = {}
    for name, graph, alone in (
        ("host, no graph", False, False), ("host, graph", True, False), ("device, graph", True, True),
    ):  # fmt: skip
        session, _ = torch_engine_session(device, cuda_graph=graph)
        with session:
            if not alone:
                by_the_host(session)
            found[name] = min(microseconds(session) for _ in range(3))
    return {"passed": True, "found": ", ".join(f"{name} {value:.0f}" for name, value in found.items())} | {
        "microseconds": found
    }


def microseconds(session: EngineSession) -> float:
    """The difference of a long run and a short one, by the step."""
    took = []
    for tokens in (20, 20 + TIMED):
        began = time.perf_counter()
        generate_ids(session, PROMPTS[:1], stopping=Stopping(max_new_tokens=tokens))
        took.append(time.perf_counter() - began)
    return (took[1] - took[0]) / TIMED * 1e6
