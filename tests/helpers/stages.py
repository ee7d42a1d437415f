"""Progress that is kept, to be compared with what was done."""

from __future__ import annotations

from glm_export.progress import Advance


class Recorded:
    """Progress that is kept: units that were announced, and those that came."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    def task(self, name: str, total: int) -> Advance:
        assert name not in self.stages, f"two stages are called {name}"
        stage = self.stages[name] = [total, 0]

        def advance(count: int) -> None:
            stage[1] += count

        return advance

    def whole(self) -> dict[str, int]:
        """Units by stage, each of which came once."""
        for name, (total, done) in self.stages.items():
            assert done == total > 0, name
        return {name: total for name, (total, _) in self.stages.items()}
