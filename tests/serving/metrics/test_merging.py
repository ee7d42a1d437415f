"""Several servers' metrics on one page: nothing is added up, nothing lost."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from glm_export.serving.engine import Engine
from glm_export.serving.metrics.exposition import exposition
from glm_export.serving.metrics.merging import merged
from glm_export.serving.metrics.reading import parsed
from glm_export.serving.worker import Worker
from tests.helpers.toy_session import ToySession


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(page.decode())
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
        if not one.name.endswith("_created")
    }


def test_pages_stay_apart_and_are_read_as_one_model() -> None:
    workers = [Worker(Engine(ToySession("shared"))) for _ in range(2)]
    for number, worker in enumerate(workers):
        worker.counts.generated_tokens = 10 + number
        worker.counts.first_token_s.observe(0.1)
        worker.counts.requests["stop"] = number + 1
    pages = {name: exposition({"m": worker}) for name, worker in zip("AB", workers, strict=True)}
    together = samples(merged(pages, label="replica"))
    apart = {
        (name, tuple(sorted((*labels, ("replica", replica))))): value
        for replica, page in pages.items()
        for (name, labels), value in samples(page).items()
    }
    assert together == apart
    assert len(apart) > 40
    read = parsed(merged(pages, label="replica").decode())["m"]
    assert read["glm_generation_tokens_total"] == 21
    assert read["glm_requests_total"] == 3
