"""Everything the reference computes inside one layer, to be found again in a program whatever its nodes are called.

A value of the program is explained where the reference computes the same numbers in the same order: as it is, or with
heads before or behind tokens. Shapes: B batch, S tokens, N heads, D head size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from glm_export.modeling import Experts
from glm_export.proof.layers.walk import SMALLEST_SCALE
from glm_export.sessions.torch import numpy_of

HIDDEN_BELOW = -1e3
"""A bias of attention below this hides a token."""
SAME_NUMBERS = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "transpose",
        "t",
        "expand",
        "clone",
        "unsqueeze",
        "squeeze",
        "detach",
        "contiguous",
    }
)
"""Operators that compute nothing: what they put out is called by what they were given."""
LARGEST_ELEMENTS = 1 << 26
"""Of one intermediate value: larger ones (a vocabulary's, of a long prompt) are not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a call's tokens lie in the reference's columns, and in the program's.

    ``new_BS``, ``all_BT``: bool, which columns of new tokens, and of past and new ones, are tokens. ``own_lengths``:
    whether the program has each row's from column 0 on. ``head_dim``: D.
    """

    new_BS: NDArray[np.bool_]
    all_BT: NDArray[np.bool_]
    own_lengths: bool
    head_dim: int

    def moved(self, array: NDArray[Any], axis: int, real: NDArray[np.bool_]) -> NDArray[Any]:
        """Rows as the program has them along an axis of columns; where no token is, NaN: nobody compares it."""
        moved = np.full(array.shape, np.nan, np.result_type(array.dtype, np.float16))
        for row, tokens in enumerate(real):
            count = int(tokens.sum()) if self.own_lengths else tokens
            to = np.arange(count) if self.own_lengths else np.flatnonzero(tokens)
            target, source = np.moveaxis(moved[row], axis - 1, 0), np.moveaxis(array[row], axis - 1, 0)
            target[to] = source[tokens]
        return moved

    @property
    def are_plain(self) -> bool:
        """Whether every column is a token, so that nothing moves."""
        return bool(self.all_BT.all())


class Intermediates:
    """Named values of the reference, in the order it computed them.

    Args:
        tolerance: largest difference, as a share of a value's largest, at which two are the same.
        places: of the call.
        mask_B1ST: True = attend.
    """

    def __init__(self, tolerance: float, places: Places, mask_B1ST: NDArray[np.bool_]) -> None:
        self.tolerance = tolerance
        self.values: list[tuple[str, NDArray[Any]]] = []
        self._places, self._mask_B1ST = places, mask_B1ST
        self._by_size: dict[int, list[tuple[int, NDArray[Any]]]] = defaultdict(list)
        self._weights: dict[str, Tensor] = {}

    def read_weights(self, module: nn.Module, prefix: str = "", tables: Mapping[str, Tensor] | None = None) -> None:
        """Keep what a module's parameters are, and other constants; they are not copied."""
        self._weights |= {f"{prefix}{name}": weight for name, weight in module.named_parameters()}
        self._weights |= tables or {}

    def weight(self, value: NDArray[Any]) -> str | None:
        """Name of the parameter that has these numbers, as it is or transposed; None where none has."""
        for name, weight in self._weights.items():
            if weight.numel() != value.size:
                continue
            expected = numpy_of(weight).astype(np.float32)
            bound = self.tolerance * max(float(np.abs(expected).max()), SMALLEST_SCALE)
            for ordered in (expected, expected.swapaxes(-1, -2)) if expected.ndim > 1 else (expected,):
                if np.abs(ordered.reshape(-1) - value.reshape(-1).astype(np.float32)).max() <= bound:
                    return name
        return None

    def add(self, name: str, value: Tensor | NDArray[Any]) -> None:
        """Keep a value, in every order of its axes a program might have it in."""
        # A copy: the reference may write into it later.
        array = np.array(numpy_of(value) if isinstance(value, Tensor) else value)
        if not 0 < array.size <= LARGEST_ELEMENTS or array.dtype.kind != "f":
            return
        index = len(self.values)
        self.values.append((name, array))
        for ordered in self._orders(array):
            self._by_size[array.size].append((index, self._where_the_program_has_it(ordered)))

    def explain(self, value: NDArray[Any]) -> int | None:
        """Index of the first value that is this one; None where there is none."""
        value = self._without_free_columns(value)
        return next((i for i, ordered in self._by_size[value.size] if self._same(ordered, value)), None)

    def matches(self, value: NDArray[Any], index: int) -> bool:
        """Whether a value is the one of that index."""
        value = self._without_free_columns(value)
        return any(self._same(ordered, value) for i, ordered in self._by_size[value.size] if i == index)

    def _without_free_columns(self, value: NDArray[Any]) -> NDArray[Any]:
        columns = self._places.all_BT.shape[1]
        if value.ndim == 4 and value.shape[2] > columns and not self._by_size[value.size]:
            return value[:, :, :columns]
        return value

    def _same(self, ordered: NDArray[Any], value: NDArray[Any]) -> bool:
        expected = ordered.reshape(-1)
        cared = ~np.isnan(expected)
        expected, found = expected[cared].astype(np.float64), value.reshape(-1)[cared].astype(np.float64)
        if not expected.size:
            return False
        infinite = np.isinf(expected)
        if infinite.any():
            # A bias of attention.
            return bool(np.array_equal(expected, found))
        bound = self.tolerance * max(float(np.abs(expected).max()), SMALLEST_SCALE)
        with np.errstate(invalid="ignore", over="ignore"):
            return bool(np.abs(expected - found).max() <= bound)

    def next_like(self, value: NDArray[Any], met: set[int], behind: int) -> int | None:
        """Index of the first value of that shape (or else size) computed behind one and none of those met."""
        later = [(i, array) for i, array in self._by_size[value.size] if i > behind and i not in met]
        alike = [index for index, array in later if array.shape == value.shape]
        return next(iter([*alike, *(index for index, _ in later)]), None)

    def ordered_like(self, index: int, value: NDArray[Any]) -> NDArray[Any] | None:
        """A value of the reference as the program should have it; None where it has another size.

        Of several orders the one of the same shape is taken, and of those the nearest.
        """
        orders = [ordered for place, ordered in self._by_size[value.size] if place == index]
        orders = [ordered for ordered in orders if ordered.shape == value.shape] or orders
        if not orders:
            return None
        found = np.nan_to_num(value.astype(np.float64))
        flat = [np.nan_to_num(ordered.astype(np.float64)).reshape(value.shape) for ordered in orders]
        nearest = min(range(len(flat)), key=lambda i: float(np.abs(flat[i] - found).max()))
        return orders[nearest].reshape(value.shape)

    def is_mask(self, value: NDArray[Any]) -> bool:
        """Whether a value tells who sees whom as the reference does: True, its opposite, or a bias, 0 or very little.

        Columns behind the reference's are free places of a cache.
        """
        new_BS, all_BT = self._places.new_BS, self._places.all_BT
        columns = all_BT.shape[1]
        if value.ndim < 2 or value.shape[-1] < columns:
            return False
        sees = (value if value.dtype == bool else value > HIDDEN_BELOW)[..., :columns]
        try:
            sees = np.broadcast_to(sees.reshape((1,) * (4 - sees.ndim) + sees.shape), self._mask_B1ST.shape)
        except ValueError:
            return False
        same = []
        for row, (new, real) in enumerate(zip(new_BS, all_BT, strict=True)):
            expected, queries = self._mask_B1ST[row, 0][new], new
            if self._places.own_lengths:
                expected = np.pad(expected[:, real], ((0, 0), (0, columns - real.sum())))
                queries = np.arange(len(new)) < new.sum()
            same.append((sees[row, 0][queries] == expected).reshape(-1))
        agree = np.concatenate(same)
        return bool(agree.all() or (value.dtype == bool and not agree.any()))

    def _orders(self, array: NDArray[Any]) -> Iterator[NDArray[Any]]:
        yield array
        if array.ndim == 4:
            # Heads before tokens, and behind them.
            yield array.swapaxes(1, 2)
            yield array.swapaxes(2, 3)
        elif array.ndim == 3 and array.shape[2] % self._places.head_dim == 0:
            yield array.reshape(*array.shape[:2], -1, self._places.head_dim).swapaxes(1, 2)

    def _where_the_program_has_it(self, array: NDArray[Any]) -> NDArray[Any]:
        if self._places.are_plain or array.ndim < 2:
            return array
        for real in (self._places.new_BS, self._places.all_BT):
            rows, columns = real.shape
            for axis in (1, 2):
                if array.ndim > axis and array.shape[0] == rows and array.shape[axis] == columns:
                    return self._places.moved(array, axis, real)
        return array


class _Recorder(TorchDispatchMode):
    """Hands what operators put out to ``keep``, under the module it is computed in; not the parameters themselves."""

    def __init__(self, module: nn.Module, keep: Callable[[str, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keep, self._tracker, self._keeping = keep, ModuleTracker(), False
        self._names: dict[int, str] = {}
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def __enter__(self) -> _Recorder:
        self._tracker.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._tracker.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if self._keeping:
            return outputs
        self._keeping = True
        try:
            operator = func.overloadpacket.__name__
            name = f"{self._place()}{operator}"
            if operator in SAME_NUMBERS:
                name = self._names.get(args[0].data_ptr(), name)
            for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
                if isinstance(output, Tensor) and output.untyped_storage().data_ptr() not in self._parameters:
                    self._names[output.data_ptr()] = name
                    self._keep(name, output)
            if func is torch.ops.aten.rsqrt.default:
                self._keep(f"{self._place()}sqrt", args[0].sqrt())
            if func is torch.ops.aten.silu.default:
                # Programs compute it as a product with this.
                self._keep(f"{self._place()}sigmoid", args[0].sigmoid())
        finally:
            self._keeping = False
        return outputs

    def _place(self) -> str:
        place = max((name for name in self._tracker.parents if name != "Global"), key=len, default="")
        inside = place.partition(".")[2]
        return f"{inside}: " if inside else ""


@contextmanager
def recording(module: nn.Module, keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, what ``module`` computes is kept, with attention in its parts, and products before their bias."""
    hooks = [
        part.register_forward_hook(_before_bias(name, part, keep))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and part.bias is not None
    ]
    hooks += [
        part.register_forward_pre_hook(_of_every_expert(name, keep))
        for name, part in module.named_modules()
        if isinstance(part, Experts)
    ]
    try:
        with sdpa_kernel(SDPBackend.MATH), _Recorder(module, keep):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _before_bias(name: str, linear: nn.Linear, keep: Callable[[str, Tensor], None]) -> Callable[..., None]:
    def hook(_: nn.Module, given: tuple[Tensor], __: Tensor) -> None:
        keep(f"{name}: product", functional.linear(given[0], linear.weight))

    return hook


def _of_every_expert(name: str, keep: Callable[[str, Tensor], None]) -> Callable[..., None]:
    """Programs without a loop compute all experts for every token, where the reference computes those it chose."""

    def hook(experts: Experts, given: tuple[Tensor]) -> None:
        x_XH = given[0].reshape(-1, given[0].shape[-1])
        both_EXF = torch.einsum("xh,efh->exf", x_XH, experts.gate_up)
        gate_EXF, up_EXF = both_EXF.chunk(2, dim=-1)
        down_EXH = torch.einsum("exf,ehf->exh", functional.silu(gate_EXF) * up_EXF, experts.down)
        for part, value in (("gate_up", both_EXF), ("gate", gate_EXF), ("up", up_EXF), ("down", down_EXH)):
            keep(f"{name}.{part} of every expert", value)
        keep(f"{name}: sigmoid of every expert", gate_EXF.sigmoid())
        keep(f"{name}: silu of every expert", functional.silu(gate_EXF))
        keep(f"{name}: product of every expert", functional.silu(gate_EXF) * up_EXF)

    return hook
