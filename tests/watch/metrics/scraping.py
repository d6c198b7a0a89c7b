"""Metrics as a scraper reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from adc_edge.watch.metrics.exporter import MetricsExporter
from adc_edge.watch.reading.state import WatchedRun


class Scraped:
    """An exporter of run directories, and what it answers."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.runs = [WatchedRun(path) for path in paths]
        self.exporter = MetricsExporter(self.runs, "127.0.0.1", 0)

    def refresh(self) -> None:
        """Hand over every new line."""
        for run in self.runs:
            while lines := run.refresh():
                self.exporter.take(lines)

    def text(self) -> str:
        with urlopen(self.exporter.url, timeout=20) as answer:
            return str(answer.read().decode())

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        self.refresh()
        families = text_string_to_metric_families(self.text())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def value(self, name: str, **labels: str) -> float | None:
        """The only sample of this name whose labels include ``labels``; None if there is none."""
        found = [v for (n, have), v in self.samples().items() if n == name and labels.items() <= have]
        assert len(found) <= 1, found
        return found[0] if found else None


@contextmanager
def scraped(*paths: Path) -> Iterator[Scraped]:
    it = Scraped(paths)
    try:
        yield it
    finally:
        it.exporter.close()
