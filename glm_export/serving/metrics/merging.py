"""Several servers' metrics as one page, for whoever scrapes what stands before them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class _Pages(Collector):
    def __init__(self, pages: Mapping[str, bytes], label: str) -> None:
        self._pages, self._label = pages, label

    def collect(self) -> Iterable[Metric]:
        """A family of each name, with the samples of every page."""
        families: dict[str, Metric] = {}
        for name, page in self._pages.items():
            for family in text_string_to_metric_families(page.decode()):
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, {**sample.labels, self._label: name}, sample.value)
        return families.values()


def merged(pages: Mapping[str, bytes], label: str) -> bytes:
    """One page of several.

    Counters stay apart: one that ends with its process would make a sum fall, which Prometheus takes for a new start.

    Args:
        pages: in Prometheus' text format, by the value of the label.
        label: that tells them apart.
    """
    registry = CollectorRegistry()
    registry.register(_Pages(pages, label))
    return generate_latest(registry)
