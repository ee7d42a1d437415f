"""Decoding without waiting: the device chooses its own next token, and the host reads along one step behind.

While the host looks at a token, decides whether a text has ended and hands it out, the next step runs already. It needs
nothing from the host: what it reads was left on the device by the step before. So at most one step is wasted, when all
rows end; what it writes stands behind every row's end. Shapes: B rows, V vocabulary, N draws.
"""

from __future__ import annotations

import logging
from collections.abc import Generator

import torch

from glm_export.sessions.device.choosing import Draw, drawn, likeliest
from glm_export.sessions.device.device import Fetch, Launch
from glm_export.sessions.device.loop_step import LoopStep
from glm_export.sessions.device.moving_feeds import MovingFeeds
from glm_export.sessions.loop_request import INFINITE, NOT_A_NUMBER, LoopRequest

SLOTS = 2
"""Copies under way at most: of the step that runs, and of the one the host reads."""
RECORDED_AFTER = 16
"""Steps until choosing is captured: that costs about as much as it saves in so many."""


class TokenLoop:
    """Steps of one batch. ``steps``: as many as there are at most; ``launched``: so far.

    ``capture``: what chooses tokens is captured as a graph of its own, once it has run for a while.
    """

    def __init__(self, step: LoopStep, feeds: MovingFeeds, request: LoopRequest, *, steps: int, capture: bool) -> None:
        self.steps, self.launched = steps, 0
        self._step, self._feeds, self._request = step, feeds, request
        self._capture = capture
        device = step.device
        rows = len(request.finished_B)
        self._draw = Draw(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
        with device.on_stream():
            self._finished_B = torch.tensor(request.finished_B, device=device.target)
            self._remaining_B = torch.tensor(request.remaining_B, device=device.target)
            self._stops = torch.tensor(sorted(request.stop_ids), dtype=torch.int64, device=device.target)
            self._chosen_B = torch.zeros(rows, dtype=torch.int64, device=device.target)
            self._taken = torch.zeros(1, dtype=torch.int64, device=device.target)
            draws_BN = request.draws_BN
            self._draws_BN = None if draws_BN is None else torch.tensor(draws_BN, device=device.target)
        self._recorded: Launch | None = None

    def tokens(self) -> Generator[list[int], None, None]:
        """Ids of each row, step by step.

        Of a row that had ended, its padding; where none can be chosen, :data:`NOT_A_NUMBER` or :data:`INFINITE`.

        Raises:
            EnvironmentMissingError: the device refused a step.
        """
        ahead = self._launch() if self.steps else None
        try:
            while ahead is not None:
                behind = ahead
                ahead = self._launch() if self.launched < self.steps else None
                yield behind.wait().tolist()
        finally:
            # What was recorded may know this loop, and keep the cache it runs over.
            self._recorded = None

    def _launch(self) -> Fetch:
        """One step, and the copy of what it chose, which the host will wait for."""
        if self._capture and self.launched == RECORDED_AFTER:
            self._record()
        self._step.launch()
        with self._step.device.on_stream():
            (self._recorded or self._choose)()
        fetched = self._step.device.fetch(self._chosen_B, self.launched % SLOTS)
        self.launched += 1
        return fetched

    def _record(self) -> None:
        """From now on choosing is one launch; what it changes while it is warmed up is put back."""
        state = [*self._feeds.state, self._finished_B, self._remaining_B, self._taken]
        device = self._step.device
        with device.on_stream():
            before = [tensor.clone() for tensor in state]
        try:
            self._recorded = device.record(self._choose)
        except RuntimeError as error:
            self._capture = False
            logging.getLogger(__name__).warning("tokens are chosen without a CUDA graph: %s", error)
        with device.on_stream():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

    def _choose(self) -> None:
        """Choose a token a row, see which rows end by it, and move on."""
        request = self._request
        logits_BV = self._step.logits[:, 0]
        if self._draws_BN is None:
            ids_B = likeliest(logits_BV)
        else:
            # While choosing is warmed up there may be no more of them.
            column = self._taken.clamp(max=self._draws_BN.shape[1] - 1)
            draws_B = self._draws_BN.index_select(1, column)[:, 0]
            ids_B = drawn(logits_BV, draws_B, self._draw)
        # NaN comes out of amax as it went in.
        lost_B = ~logits_BV.amax(dim=-1).isfinite()
        # Filled, not chosen between: a number of the host's as an operand is copied to the device, and not captured.
        code_B = torch.full_like(ids_B, INFINITE).masked_fill(logits_BV.isnan().any(dim=-1), NOT_A_NUMBER)
        ids_B = ids_B.masked_fill(self._finished_B, request.pad_token_id)
        self._chosen_B.copy_(torch.where(lost_B & ~self._finished_B, code_B, ids_B))
        self._remaining_B.sub_(1)
        self._taken.add_(1)
        stopped_B = (ids_B[:, None] == self._stops[None]).any(dim=-1)
        self._finished_B.logical_or_(stopped_B | (self._remaining_B <= 0) | lost_B)
        self._feeds.advance(ids_B)
