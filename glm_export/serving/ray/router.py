"""Where a request goes: to the replica that has read its beginning, unless that one has much more to do."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from glm_export.serving.ray.prefixes import SentPrefixes, rendezvous

SLACK = 4
"""Requests that a replica may have above the one with least, and still be sent what it has read the beginning of."""


class LoadRouter(RequestRouter):  # type: ignore[misc]
    """To a replica with least to do; the others where those are full."""

    def initialize_state(self, slack: int = SLACK, **_: Any) -> None:
        """Called by Ray Serve with the router's keywords.

        Args:
            slack: requests that a preferred replica may have above the one with least.
        """
        self._slack = slack
        self._placed: dict[str, tuple[PendingRequest, ReplicaID]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas, the best first."""
        if not candidate_replicas or pending_request is None:
            return [candidate_replicas]
        # All ranks are tried at once; only when all replicas are full does a request wait.
        pending_request.routing_context.should_backoff = True
        loads = self._loads(candidate_replicas)
        least = min(loads.values())
        first = self._chosen(pending_request, [one for one in loads if loads[one] <= least + self._slack], loads)
        idle = [one for one in candidate_replicas if loads[one.replica_id] == least]
        rest = [one for one in candidate_replicas if loads[one.replica_id] != least]
        if first is None:
            first = idle[len(self._placed) % len(idle)].replica_id
        self._placed[pending_request.metadata.internal_request_id] = pending_request, first
        return [[one for one in candidate_replicas if one.replica_id == first], idle, rest]

    def _chosen(
        self,
        pending: PendingRequest,  # noqa: ARG002 - for those that look at it
        candidates: list[ReplicaID],  # noqa: ARG002
        loads: Counter[ReplicaID],  # noqa: ARG002
    ) -> ReplicaID | None:
        """The one a request should go to, of those that have not much more to do; None leaves it to load."""
        return None

    def _loads(self, replicas: list[RunningReplica]) -> Counter[ReplicaID]:
        """Requests each has of this router, those on their way to it among them."""
        loads = Counter({one.replica_id: 0 for one in replicas})
        for key, (pending, replica) in list(self._placed.items()):
            if pending.future.cancelled():
                del self._placed[key]
            elif replica in loads:
                loads[replica] += 1
        return loads

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:  # noqa: ARG002 - Ray's
        """A replica took a request."""
        self._placed[pending_request.metadata.internal_request_id] = pending_request, replica_id

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:  # noqa: ARG002 - Ray's
        """It has answered, or will not."""
        self._placed.pop(internal_request_id, None)


class PrefixRouter(LoadRouter):
    """To the replica that was sent the longest beginning of the prompt, if it has not much more to do than others.

    A prompt that begins like none before goes to a replica that its first piece says, among those with least to do: so
    another router, which has not seen it, would choose the same.
    """

    def initialize_state(self, slack: int = SLACK, **_: Any) -> None:
        """Called by Ray Serve with the router's keywords, as :meth:`LoadRouter.initialize_state`."""
        super().initialize_state(slack)
        self._sent: SentPrefixes[ReplicaID] = SentPrefixes()

    def _chosen(
        self, pending: PendingRequest, candidates: list[ReplicaID], loads: Counter[ReplicaID]
    ) -> ReplicaID | None:
        pieces = _pieces(pending)
        if not pieces:
            return None
        known = self._sent.longest(pieces, candidates)
        if known:
            return min(known, key=lambda one: (loads[one], one.unique_id))
        least = min(loads[one] for one in candidates)
        return rendezvous(pieces[0], [one for one in candidates if loads[one] == least], str)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica reads a prompt."""
        super().on_request_routed(pending_request, replica_id, result)
        self._sent.sent(_pieces(pending_request), replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas came or went."""
        before = set(self.curr_replicas)
        super().update_replicas(replicas)
        gone = before - set(self.curr_replicas)
        if gone:
            self._sent.forget(gone)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A replica died."""
        super().on_replica_actor_died(replica_id)
        self._sent.forget({replica_id})


def _pieces(pending: PendingRequest) -> tuple[bytes, ...]:
    """Of a request's beginning: what replicas are called with has them, or says nothing of it."""
    first = pending.args[0] if pending.args else None
    return tuple(getattr(first, "pieces", ()))
