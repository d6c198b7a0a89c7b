"""Runs as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from adc_edge.watch.metrics.book import RunBook
from adc_edge.watch.metrics.endpoint import MetricsServer
from adc_edge.watch.metrics.gauges import GaugeCollector
from adc_edge.watch.metrics.instruments import Instruments

if TYPE_CHECKING:
    from adc_edge.watch.reading.state import Line, WatchedRun

_LONGEST_NAME = 50


class MetricsExporter:
    """Serves the metrics of ``runs`` until it is closed.

    Args:
        runs: to be refreshed by the caller, who hands over the new lines.
        bind: address to listen on.
        port: 0 takes a free one.

    Raises:
        SettingError: nothing can listen there.
    """

    def __init__(self, runs: Sequence[WatchedRun], bind: str, port: int) -> None:
        registry = CollectorRegistry()
        instruments = Instruments(registry)
        self._books = {id(run): RunBook(run, name, instruments) for run, name in zip(runs, _names(runs), strict=True)}
        registry.register(GaugeCollector(list(self._books.values())))
        self._server = MetricsServer(registry, bind, port)
        host = f"[{bind}]" if ":" in bind else bind
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def take(self, lines: Sequence[Line]) -> None:
        """Count new lines."""
        for line in lines:
            self._books[id(line.run)].take(line)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _names(runs: Sequence[WatchedRun]) -> list[str]:
    """Return a different name for each run: its directory's, with a number behind it where another has the same."""
    names: list[str] = []
    for run in runs:
        name = run.path.resolve().name[:_LONGEST_NAME]
        same = sum(other.rpartition("#")[0] == name or other == name for other in names)
        names.append(f"{name}#{same + 1}" if same else name)
    return names
