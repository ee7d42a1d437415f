"""A session with a defect planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glm_export.inputs.feeds import Feeds
from glm_export.sessions.kv_cache import KvCache
from glm_export.sessions.session import Logits, Session, SessionDescription, Tensors
from glm_export.spec.batch_invariance import BatchInvariance


class Altered(Session):
    """A session with a defect planted: ``change`` gets each call's logits and the number of tokens read before it."""

    def __init__(self, inner: Session, change: Callable[[Logits, int], Logits]) -> None:
        super().__init__(inner.folder, inner.config)
        self.signature = inner.signature
        self.calls: list[tuple[int, ...]] = []
        self._inner, self._change, self._steps = inner, change, 0

    def describe(self) -> SessionDescription:
        return self._inner.describe()

    @property
    def batch_invariance(self) -> BatchInvariance:
        return self._inner.batch_invariance

    def weight_traffic(self, rows: int) -> int:
        return self._inner.weight_traffic(rows)

    def feeds(self, prompts: Any) -> Feeds:
        return self._inner.feeds(prompts)

    def _prefill(self, feeds: Feeds) -> Logits:
        self._steps = 0
        self.calls.append(feeds.input_ids.shape)
        return self._change(self._inner.prefill(feeds), 0)

    def _decode(self, feeds: Feeds) -> Logits:
        self._steps += 1
        return self._change(self._inner.decode(feeds), self._steps)

    def new_cache(self) -> KvCache[Any]:
        return self._inner.new_cache()

    def _run(self, tensors: Tensors) -> Tensors:
        return self._inner.run(tensors)

    def _close(self) -> None:
        self._inner.close()
