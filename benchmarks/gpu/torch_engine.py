"""An engine that PyTorch computes: TensorRT's interface over a small decoder, at the addresses and on the stream given.

It stands for TensorRT where there is none, so that what our session does on a GPU (copies, capture, replay, the loop
that chooses tokens) can be seen there. Nothing is allocated while a step runs a second time: it can be captured.
Shapes: B rows, S new tokens, M columns of the cache, K heads, D head size, H hidden, V vocabulary.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planless_engine import planless_engine

from glm_export.engines.profiles import resolve_limits
from glm_export.engines.vendor import TENSORRT, BuildLog, TensorRT
from glm_export.sessions.device.device import Device
from glm_export.sessions.tensorrt.session import EngineSession
from glm_export.sessions.tensorrt.step import LoadedEngine
from glm_export.spec.config import GlmConfig, RotaryConfig
from glm_export.spec.dtypes import TABLE
from glm_export.spec.optimization_profile import OptimizationProfile
from glm_export.spec.signature import (
    INPUT_IDS,
    LAST_TOKEN_IDS,
    LOGITS,
    POSITION_IDS,
    Cache,
    Signature,
    decoder_signature,
    past_names,
)

V, K, D, LAYERS, M = 512, 4, 16, 3, 96
H = K * D
SCRATCH = 1024
CONFIG = GlmConfig(
    family="chatglm2", vocab_size=V, hidden_size=H, num_layers=LAYERS, num_heads=K, kv_heads=K, head_dim=D,
    ffn_size=H, max_positions=M, rotary=RotaryConfig(dim=D),
)  # fmt: skip


class Decoder:
    """Embedding, attention layers, head; float32. ``weights`` lie on one device."""

    def __init__(self, target: torch.device) -> None:
        random = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random).to(target)

        self.embedding_VH, self.places_MH, self.head_HV = weight(V, H), weight(M, H), weight(H, V)
        self.layers = [[weight(H, H) / H**0.5 for _ in "qkvo"] for _ in range(LAYERS)]

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """Without a cache, as anyone would write it: float32 ``[V]`` behind these ids."""
        target = self.embedding_VH.device
        x = self.embedding_VH[torch.tensor(ids, device=target)] + self.places_MH[: len(ids)]
        for query, key, value, out in self.layers:
            q, k, v = ((x @ w).view(len(ids), K, D).transpose(0, 1) for w in (query, key, value))
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + mixed.transpose(0, 1).reshape(len(ids), H) @ out
        return x[-1] @ self.head_HV

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        """What follows."""
        found: list[int] = []
        for _ in range(tokens):
            found.append(int(self.next_logits([*ids, *found]).argmax()))
        return found


@dataclass
class Workspace:
    """Memory of a step of B rows and S tokens, taken before it first runs."""

    rows: int
    tokens: int
    target: torch.device
    held: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same tensor each time."""
        if name not in self.held:
            self.held[name] = torch.zeros(shape, dtype=dtype, device=self.target)
        return self.held[name]


class TorchContext:
    """An execution context over addresses."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._profile: OptimizationProfile | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._views: dict[tuple[int, tuple[int, ...], str], Tensor] = {}
        self._workspaces: dict[tuple[int, int], Workspace] = {}
        self.failing = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:  # noqa: ARG002
        self._profile = self._engine.profiles[index]
        return True

    def set_device_memory(self, pointer: int, size: int) -> None:
        assert pointer
        assert size >= SCRATCH

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self._profile is not None
        least, _, most = self._profile.shapes[name]
        self._shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self._addresses[name] = pointer
        return pointer != 0

    def execute_async_v3(self, stream: int) -> bool:
        if self.failing:
            return False
        # A GPU's stream records by itself; the host that stands for one keeps a list.
        recording = getattr(self._engine.device, "recording", None)
        if recording is not None:
            recording.append(self._step)
            return True
        with self._engine.on(stream):
            self._step()
        return True

    def _view(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        """A tensor over an address, made once for each."""
        key = (self._addresses[name], shape, dtype)
        if key not in self._views:
            self._views[key] = at(*key, self._engine.target)
        return self._views[key]

    def _step(self) -> None:
        """The layers, in memory that is there already."""
        decoder, (b, s) = self._engine.decoder, self._shapes[INPUT_IDS]
        work = self._workspaces.setdefault((b, s), Workspace(b, s, self._engine.target))
        ids, positions = (self._view(name, (b, s), "int64") for name in (INPUT_IDS, POSITION_IDS))
        x, places = work.take("x", b * s, H), work.take("places", b * s, H)
        torch.index_select(decoder.embedding_VH, 0, ids.view(-1), out=x)
        torch.index_select(decoder.places_MH, 0, positions.view(-1), out=places)
        x.add_(places)
        for layer, weights in enumerate(decoder.layers):
            self._attend(layer, weights, x, positions, work)
        last, offsets = self._view(LAST_TOKEN_IDS, (b,), "int64"), work.take("offsets", b, dtype=torch.int64)
        torch.add(last, self._engine.counting[:b], alpha=s, out=offsets)
        ends = work.take("ends", b, H)
        torch.index_select(x, 0, offsets, out=ends)
        torch.mm(ends, decoder.head_HV, out=self._view(LOGITS, (b, V), "float32"))

    def _attend(self, layer: int, weights: list[Tensor], x: Tensor, positions: Tensor, work: Workspace) -> None:
        b, s = positions.shape
        query, key, value, out = weights
        flat, apart = work.take("flat", b * s, H), work.take("apart", b, K, s, D)
        caches = [self._view(name, (b, K, M, D), "float32") for name in past_names(layer)]
        for weight, cache in zip((key, value), caches, strict=True):
            torch.mm(x, weight, out=flat)
            apart.copy_(flat.view(b, s, K, D).transpose(1, 2))
            cache.scatter_(2, positions[:, None, :, None].expand(b, K, s, D), apart)
        torch.mm(x, query, out=flat)
        apart.copy_(flat.view(b, s, K, D).transpose(1, 2))
        scores, hidden = work.take("scores", b * K, s, M), work.take("hidden", b, s, M, dtype=torch.bool)
        keys, values = (cache.view(b * K, M, D) for cache in caches)
        torch.bmm(apart.view(b * K, s, D), keys.transpose(1, 2), out=scores)
        scores.mul_(D**-0.5)
        torch.gt(self._engine.counting[None, None, :M], positions[:, :, None], out=hidden)
        scores.view(b, K, s, M).masked_fill_(hidden[:, None], -torch.inf)
        extreme = work.take("extreme", b * K, s, 1)
        torch.amax(scores, dim=-1, keepdim=True, out=extreme)
        scores.sub_(extreme).exp_()
        torch.sum(scores, dim=-1, keepdim=True, out=extreme)
        scores.div_(extreme)
        torch.bmm(scores, values, out=apart.view(b * K, s, D))
        flat.view(b, s, K, D).copy_(apart.transpose(1, 2))
        x.addmm_(flat, out)


class TorchEngine:
    """The engine: what the session asks of TensorRT's."""

    def __init__(self, signature: Signature, profiles: Sequence[OptimizationProfile], device: Device) -> None:
        self.profiles, self.device, self.target = profiles, device, device.target
        self.decoder = Decoder(device.target)
        self.counting = torch.arange(max(M, V), device=device.target)
        self.contexts: list[TorchContext] = []
        self.num_optimization_profiles = len(profiles)
        self._dtypes = {spec.name: TABLE[spec.dtype].tensorrt for spec in (*signature.inputs, *signature.outputs)}

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self._dtypes[name])

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:  # noqa: ARG002
        return SCRATCH

    def create_execution_context(self, strategy: Any) -> TorchContext:
        assert strategy == "USER_MANAGED"
        self.contexts.append(TorchContext(self))
        return self.contexts[-1]

    def on(self, stream: int) -> AbstractContextManager[Any]:
        """PyTorch's operators go to the stream the session named."""
        if self.target.type == "cpu":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self.target))


def at(pointer: int, shape: tuple[int, ...], dtype: str, target: torch.device) -> Tensor:
    """A tensor over memory that is not PyTorch's to free."""
    kind = np.dtype(dtype)
    if target.type == "cpu":
        size = int(np.prod(shape)) * kind.itemsize
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        return torch.from_numpy(memory.view(kind).reshape(shape))
    interface = {"shape": shape, "typestr": kind.str, "data": (pointer, False), "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device=target)


def torch_engine_session(
    device: Device, *, max_batch: int = 4, prefill_tokens: int = 24, cuda_graph: bool = True
) -> tuple[EngineSession, TorchEngine]:
    """A session over the engine."""
    signature = decoder_signature(CONFIG, dtype="float32", logits="last", cache=Cache.STATIC, max_length=M)
    limits = resolve_limits(signature, M, max_batch=max_batch, prefill_tokens=prefill_tokens, prefill_batch=2)
    engine = planless_engine(CONFIG, signature, limits)
    made = TorchEngine(signature, engine.profiles, device)
    names: Any = SimpleNamespace(
        IExecutionContext=SimpleNamespace(set_device_memory=True),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        ICudaEngine=SimpleNamespace(get_device_memory_size_for_profile_v2=True),
    )
    tensorrt = TensorRT(name=TENSORRT, module=names, version="0", logger=None, log=BuildLog())
    loaded = LoadedEngine(tensorrt=tensorrt, runtime=None, engine=made, device=device)
    return EngineSession(engine, loaded, cuda_graph=cuda_graph), made
