"""The reference model in PyTorch as a session."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glm_export.artifacts.initial_cache import InitialCache
from glm_export.calibration.quantization import Quantization
from glm_export.calibration.quantize import fake_quantize
from glm_export.calibration.recipe import program_invariance
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.checkpoints.sources import ComputedTensor
from glm_export.errors import EnvironmentMissingError
from glm_export.inputs.feeds import Feeds
from glm_export.machine.memory import available_memory
from glm_export.modeling import Decoder, KeyValue
from glm_export.sessions.kv_cache import KvCache, Part, put
from glm_export.sessions.reference_weights import ReferenceWeights
from glm_export.sessions.session import Logits, Session, SessionDescription, Tensors
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.dtypes import DTYPE_BYTES
from glm_export.spec.signature import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    Signature,
    decoder_signature,
    hidden_state_names,
    past_names,
    present_names,
)
from glm_export.spec.weight_formats import PROMPT_TOKENS


def load_reference(
    checkpoint: Checkpoint, dtype: str = "float32", quantization: Quantization | None = None, tokens: int = 1
) -> Decoder:
    """The reference model with the checkpoint's weights, for inference.

    Weights already in ``dtype`` stay memory-mapped; the others are converted one by one. With a quantization, those it
    takes are rounded to its integers and back, and so are inputs, keys and values where it says so: what the quantized
    program computes with in a call of that many tokens.

    Raises:
        CheckpointError: tensors are missing, mis-shaped or damaged.
    """
    checkpoint.audit()
    require_memory(checkpoint, dtype)
    return ReferenceWeights(checkpoint, dtype, quantization, tokens).load()


def require_memory(checkpoint: Checkpoint, dtype: str) -> None:
    """Weights in another dtype than the file's are copies; see whether they fit before the kernel kills the process.

    Raises:
        EnvironmentMissingError: they do not; the message names the dtype that needs fewer copies.
    """
    available, needed = available_memory(), copied_bytes(checkpoint, dtype)
    if available is None or needed <= available:
        return
    stored = checkpoint.config.stored_dtype
    if stored == dtype:
        way_out = "use a machine with more, or export and run the program"
    elif copied_bytes(checkpoint, stored):
        way_out = f"{stored} takes less (check --reference-dtype {stored})"
    else:
        way_out = f"{stored} reads the weights in place (check --reference-dtype {stored})"
    raise EnvironmentMissingError(
        f"the PyTorch model in {dtype} needs {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB of memory are "
        f"available; {way_out}"
    )


def copied_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Memory that weights in ``dtype`` take: all but those stored in it, which stay mapped."""
    wanted = getattr(torch, dtype)
    held = (checkpoint.sources.get(name) for name in checkpoint.weight_map.expected)
    copied = (source for source in held if source is not None)
    return sum(
        math.prod(source.shape) * DTYPE_BYTES[dtype]
        for source in copied
        if isinstance(source, ComputedTensor) or source.dtype != wanted
    )


class TorchCache(KvCache[Tensor]):
    """Each call's present is the next one's past."""

    def __init__(self, signature: Signature, device: torch.device, initial: InitialCache | None = None) -> None:
        super().__init__(signature, initial=initial)
        self._device = device
        self._values: list[Tensor] = []

    def past(self) -> list[KeyValue]:
        """Keys and values ``[B, K, P, D]`` by layer."""
        return list(zip(self._values[::2], self._values[1::2], strict=True))

    def take(self, present: list[KeyValue]) -> None:
        """What the call put out is the next one's past."""
        self._values = [values for pair in present for values in pair]

    def _width(self, columns: int) -> int:
        return columns

    def _reserve(self, rows: int, columns: int) -> None:  # noqa: ARG002 - it grows by itself
        self._values = []
        for index in range(len(self._specs)):
            self._hold(index, rows, self.prefix, self._beginnings(index, rows))

    def _own(self, index: int, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device, getattr(torch, self._specs[index].dtype))

    def _held(self, index: int) -> Tensor:
        return self._values[index]

    def _hold(self, index: int, rows: int, width: int, parts: Sequence[Part[Tensor]]) -> None:
        new = self._zeros(index, rows, width)
        for part in parts:
            new[part.row, :, part.columns] = part.values
        put(self._values, index, new)

    def _zeros(self, index: int, rows: int, width: int) -> Tensor:
        dtype = getattr(torch, self._specs[index].dtype)
        return torch.zeros(self._shape(index, rows, width), dtype=dtype, device=self._device)

    def _copy(self, part: Tensor) -> Tensor:
        return part.clone()

    def _free(self) -> None:
        self._values = []


class TorchSession(Session):
    """Eager PyTorch; what every other session is held to."""

    cache: TorchCache

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str = "float32",
        device: str = "cpu",
        quantization: Quantization | None = None,
        hidden_states: str | None = None,
    ) -> None:
        super().__init__(checkpoint.folder, checkpoint.config)
        self.signature = decoder_signature(checkpoint.config, dtype=dtype, logits="all", hidden_states=hidden_states)
        self.model = load_reference(checkpoint, dtype, quantization).to(device)
        # A recipe with a form of its own for prompts is two models.
        self._prompt_model = self.model
        if quantization is not None and quantization.recipe.prompt is not None:
            self._prompt_model = load_reference(checkpoint, dtype, quantization, PROMPT_TOKENS + 1).to(device)
        self.initial_cache = initial_cache_of(checkpoint, quantization)
        self.cache = self.new_cache()
        self._recipe = quantization.recipe if quantization is not None else None

    def describe(self) -> SessionDescription:
        """PyTorch, where the weights are."""
        weight = self.model.head.weight
        return SessionDescription(
            runtime="pytorch",
            version=torch.__version__,
            device=weight.device.type,
            dialect=None,
            dtype=str(weight.dtype).removeprefix("torch."),
            cache=self.signature.cache,
            threads=torch.get_num_threads(),
        )

    @property
    def batch_invariance(self) -> BatchInvariance:
        """But for last bits, unless it computes as a recipe that is not."""
        return program_invariance(self.config, self.signature, self._recipe)

    def weight_traffic(self, rows: int) -> int:
        """Of the parameters, whatever a quantization would make of them."""
        return torch_weight_traffic(self.model, rows)

    def new_cache(self) -> TorchCache:
        """Where the weights are."""
        return TorchCache(self.signature, self.model.head.weight.device, self.initial_cache)

    def _prefill(self, feeds: Feeds) -> Logits:
        """Start a batch; logits of every token."""
        self.cache.start(feeds.batch, feeds.columns)
        return self._decode(feeds)

    @torch.inference_mode()
    def _decode(self, feeds: Feeds) -> Logits:
        """Read on from the cache; logits of every token."""
        self.cache.require(feeds)
        device = self.model.head.weight.device
        tensors = [torch.tensor(array, device=device) for array in feeds.named().values()]
        output = self._model_for(feeds.input_ids.size)(*tensors, self.cache.past())
        self.cache.take(output.past_key_values)
        self.cache.wrote(feeds)
        return numpy_of(output.logits).astype(np.float32)

    def _run(self, tensors: Tensors) -> Tensors:
        """One call with the cache handed in and out."""
        return self._outputs(tensors, self.signature.hidden_states)

    def run_with_hidden_states(self, tensors: Tensors) -> Tensors:
        """As :meth:`run`, and all hidden states besides, by the names programs give them."""
        with self._turns.single:
            return self._outputs(tensors, hidden_state_names("all", self.config.num_layers))

    @torch.inference_mode()
    def _outputs(self, tensors: Tensors, told: Sequence[str]) -> Tensors:
        """Of one call, with these hidden states."""
        device = self.model.head.weight.device
        layers = range(self.config.num_layers)
        given = {name: torch.tensor(array, device=device) for name, array in tensors.items()}
        dtype = self.model.head.weight.dtype
        past = [tuple(given[name].to(dtype) for name in past_names(i)) for i in layers]
        model = self._model_for(tensors[INPUT_IDS].size)
        inputs = (given[INPUT_IDS], given[ATTENTION_MASK], given[POSITION_IDS])
        output = model(*inputs, past, output_hidden_states=bool(told))
        result = {LOGITS: numpy_of(output.logits)}
        for i in layers:
            result |= zip(present_names(i), map(numpy_of, output.past_key_values[i]), strict=True)
        # Whatever is told of them, the head's is among it.
        kept = output.hidden_states[len(output.hidden_states) - len(told) :]
        return result | dict(zip(told, map(numpy_of, kept), strict=True))

    def _model_for(self, tokens: int) -> Decoder:
        return self._prompt_model if tokens > PROMPT_TOKENS else self.model

    def _close(self) -> None:
        """Free the weights and the cache."""
        self.cache.clear()
        del self.model, self._prompt_model


def initial_cache_of(checkpoint: Checkpoint, quantization: Quantization | None) -> InitialCache | None:
    """The prefix, rounded as a program that keeps integers has it."""
    pairs = checkpoint.initial_cache
    if pairs is None:
        return None
    if quantization is not None and quantization.kv_scales:
        pairs = tuple(
            (fake_quantize(pair[0], scales[0]), fake_quantize(pair[1], scales[1]))
            for pair, scales in zip(pairs, quantization.kv_scales, strict=True)
        )
    return InitialCache.of(pairs)


def torch_weight_traffic(model: nn.Module, batch: int) -> int:
    """Bytes of a PyTorch model's parameters that a step of ``batch`` tokens reads."""
    whole: dict[int, int] = {}
    tables: dict[int, int] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                tables[id(weight)] = batch * weight[0].nbytes
            else:
                whole[id(weight)] = weight.nbytes
    # A table that is also the head's weight is read whole.
    return sum((tables | whole).values())


def numpy_of(tensor: Tensor) -> np.ndarray:
    """As numpy; bfloat16, which it has not, as float32, which holds every value of it."""
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array
