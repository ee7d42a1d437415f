"""GPTQ: a weight rounded column by column, each column making good what the ones before it lost.

It lowers ``tr((W - Q) H (W - Q)^T)``, the squared error of the layer's output over the samples whose Gram matrix H is.
arXiv:2210.17323 and its official code, ``gptq.py`` of IST-DASLab/gptq.

The official code updates the columns still to come with the Cholesky factor of H's inverse. Here the same integers come
from the factor of H itself, a quarter of the work and one matrix less in memory: with ``H = U D U^T``, U upper
triangular with a diagonal of ones, column j is rounded at ``w_j + sum over i < j of (w_i - q_i) U_ij``, where w are the
weights as given. arXiv:2307.13304 shows the two to be one method (its LDLQ is OPTQ, as GPTQ was also called).

Shapes: N output channels (rows), K input channels, C = ceil(K / block) blocks of a row, n rows worked on together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_export.calibration.quantize import symmetric_scales
from glm_export.errors import InputError

PIECE_ROWS = 2048
"""Rows rounded together: they need the same factor and nothing of each other. Enough to keep products busy."""


class GramMatrix:
    """The sum of ``x x^T`` over samples x, as they come.

    Attributes:
        gram_KK: float32 ``[K, K]``, in the samples' unit squared. The official code's H is twice the mean instead;
            :func:`gptq_round` gives the same for both, dead columns' share of the damping apart.
        count: samples so far.
    """

    def __init__(self, columns: int, *, device: torch.device | str | None = None) -> None:
        self.gram_KK = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self.count = 0

    @torch.no_grad()
    def add(self, samples: Tensor) -> None:
        """Add samples ``[..., K]`` of any float dtype, summed in float32, in place.

        Raises:
            InputError: the last axis is not K long.
        """
        columns = self.gram_KK.shape[0]
        if samples.shape[-1:] != (columns,):
            raise InputError(f"samples have {columns} channels on their last axis; found {[*samples.shape]}")
        samples_RK = samples.reshape(-1, columns).to(self.gram_KK)
        self.gram_KK.addmm_(samples_RK.t(), samples_RK)
        self.count += samples_RK.shape[0]


@torch.no_grad()
def gptq_round(
    weight_NK: Tensor,
    gram_KK: Tensor,
    *,
    qmax: int,
    block: int | None,
    damping: float = 0.01,
    column_block: int = 128,
    order_by_activity: bool = False,
) -> tuple[Tensor, Tensor]:
    """Round a weight to symmetric integers so that its product with the samples changes least.

    As in the official code: columns without activation become zero; the diagonal grows by ``damping`` times its mean;
    a block's scales come from its weights as updated when its first column is due. Other than there, they are up to
    date for blocks narrower than ``column_block`` too, so ``column_block`` decides about speed and not about integers.

    Memory beside the inputs, in bytes: ``4 K^2`` for the factor, ``N K`` for the integers and ``8 K n`` for 2048 rows
    at a time. At K = 13696 and N = 4096 that is 0.75 + 0.06 + 0.22 GB. The inputs stay as they are.

    Args:
        weight_NK: ``[N, K]``, any float dtype.
        gram_KK: :attr:`GramMatrix.gram_KK` of the layer's inputs, or any positive multiple of it.
        qmax: the largest integer: 127 for int8, 7 for int4.
        block: neighbours along K that share a scale, or None for one scale per row, taken from the weights as given.
        damping: share of the mean diagonal that is added to the diagonal; the official code's percdamp.
        column_block: columns whose updates are applied together to the rest (the paper's lazy batch updates).
        order_by_activity: round the columns with the largest activations first, not the leftmost; the official code's
            actorder. Blocks stay neighbours in the weight's own order, so their scales come from the weights as given
            (static_groups).

    Returns:
        integers int8 ``[N, K]`` between ``-qmax`` and ``qmax``, and their scales float32 ``[N, C]``, all positive:
        what :func:`~glm_export.calibration.quantize.dequantize_symmetric` takes.

    Raises:
        InputError: shapes do not fit, the Gram matrix is not finite, all zero, or not positive definite after damping.
    """
    rows, columns = weight_NK.shape
    if gram_KK.shape != (columns, columns):
        raise InputError(f"a weight of {columns} columns needs a square Gram matrix of them; found {[*gram_KK.shape]}")
    dead_K = _dead_columns(gram_KK)
    plan = _plan(gram_KK, dead_K, damping=damping, order_by_activity=order_by_activity)
    width = columns if block is None else block
    static = block is None or order_by_activity
    batch = column_block if static else max(1, column_block // width) * width
    rounding = _Rounding(qmax=qmax, width=width, batch=batch, static=static)
    integers_NK = torch.empty(rows, columns, dtype=torch.int8, device=weight_NK.device)
    scales_NC = torch.empty(rows, math.ceil(columns / width), dtype=torch.float32, device=weight_NK.device)
    for begin in range(0, rows, PIECE_ROWS):
        piece = slice(begin, begin + PIECE_ROWS)
        # Nobody reads these inputs, so any value is right; zero costs nothing, and does not stretch the scales.
        alive_nK = weight_NK[piece].float().masked_fill(dead_K, 0.0)
        scales_NC[piece] = symmetric_scales(alive_nK, qmax=qmax, block=block)
        # Channels become rows of memory, because whole channels are worked on at a time.
        weight_Kn = alive_nK.t().index_select(0, plan.order)
        del alive_nK
        scales_Cn = scales_NC[piece].t().contiguous()
        integers_NK[piece, plan.order] = rounding.integers(weight_Kn, scales_Cn, plan).t()
        scales_NC[piece] = scales_Cn.t()
    return integers_NK, scales_NC


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """In which order columns are rounded, and what each one's error does to the rest.

    ``order``: the columns, int64 ``[K]``, the first to be rounded at the end: ``H = L L^T`` has a lower factor, so
    with the order reversed the routine that every device has gives U. ``positions``: the same as numbers. ``unit``: L
    with each column divided by its diagonal, float32 ``[K, K]``, both axes in that order: row i says how the error of
    ``order[i]`` changes the columns before it.
    """

    order: Tensor
    positions: list[int]
    unit: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rounding:
    """How columns are rounded: to what, with which scales, how many between two updates of the rest.

    ``static``: scales are given. Otherwise columns come in the weight's own order, and ``batch`` holds whole blocks.
    """

    qmax: int
    width: int
    batch: int
    static: bool

    def integers(self, weight_Kn: Tensor, scales_Cn: Tensor, plan: _Plan) -> Tensor:
        """Round ``[K, n]`` to int8, in the plan's order; what was given becomes what was lost. Fills the scales."""
        integers_Kn = torch.empty_like(weight_Kn, dtype=torch.int8)
        columns = len(plan.positions)
        for begin in range(0, columns, self.batch):
            low, high = max(0, columns - begin - self.batch), columns - begin
            # Rows from `high` on hold errors by now.
            values_Bn = torch.addmm(weight_Kn[low:high], plan.unit[high:, low:high].t(), weight_Kn[high:])
            for row in range(high - 1, low - 1, -1):
                position = plan.positions[row]
                block = position // self.width
                if not self.static and position % self.width == 0:
                    first = max(low, row + 1 - self.width)
                    self._set_scales(
                        scales_Cn[block], weight_Kn[first : row + 1], values_Bn[first - low : row + 1 - low],
                        plan.unit[first : row + 1, first : row + 1],
                    )  # fmt: skip
                # Algorithm 1 of arXiv:2210.17323: round a column, pass its error on to those not rounded yet.
                rounded_n = (values_Bn[row - low] / scales_Cn[block]).round_().clamp_(-self.qmax, self.qmax)
                integers_Kn[row] = rounded_n
                weight_Kn[row].addcmul_(rounded_n, scales_Cn[block], value=-1)
                values_Bn[: row - low].addr_(plan.unit[row, low:row], weight_Kn[row])
        return integers_Kn

    def _set_scales(self, scales_n: Tensor, given_Gn: Tensor, values_Gn: Tensor, unit_GG: Tensor) -> None:
        """Scales of a block from its weights as the official code has updated them by now.

        ``values`` count on the block's own columns to pass errors on among themselves; solving takes that out.
        """
        passed_Gn = values_Gn - given_Gn
        updated_Gn = given_Gn + torch.linalg.solve_triangular(unit_GG.t(), passed_Gn, upper=True, unitriangular=True)
        scales_n.copy_(symmetric_scales(updated_Gn.t(), qmax=self.qmax, block=None)[:, 0])


def _dead_columns(gram_KK: Tensor) -> Tensor:
    """Columns, bool ``[K]``, that no sample reached."""
    low, high = torch.aminmax(gram_KK)  # NaN is passed on, and no mask of K^2 is made
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise InputError("the Gram matrix of a layer's inputs has values that are not finite; check the samples")
    dead_K = gram_KK.diagonal() == 0
    if bool(dead_K.all()):
        raise InputError("the Gram matrix of a layer's inputs is all zero; no sample reached the layer")
    return dead_K


def _plan(gram_KK: Tensor, dead_K: Tensor, *, damping: float, order_by_activity: bool) -> _Plan:
    diagonal_K = gram_KK.diagonal().float().masked_fill(dead_K, 1.0)
    if order_by_activity:
        order_K = diagonal_K.argsort(descending=True, stable=True).flip(0)
    else:
        order_K = torch.arange(len(diagonal_K) - 1, -1, -1, device=gram_KK.device)
    # Transposed, because LAPACK works column by column: given any other layout it would make a copy.
    factor_KK = gram_KK[order_K[:, None], order_K].float().t()
    factor_KK.diagonal().copy_((diagonal_K + damping * diagonal_K.mean())[order_K])
    info = torch.empty((), dtype=torch.int32, device=gram_KK.device)
    torch.linalg.cholesky_ex(factor_KK, out=(factor_KK, info))
    if info.item():
        raise InputError(f"the Gram matrix is not positive definite with damping {damping}; raise the damping")
    factor_KK.div_(factor_KK.diagonal().clone())
    return _Plan(order=order_K, positions=order_K.tolist(), unit=factor_KK)
