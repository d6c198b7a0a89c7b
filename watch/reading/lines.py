"""A line of a run's files, as it is handed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from adc_edge.watch.reading.state import WatchedRun


class RunLine(NamedTuple):
    """A new line of metrics.jsonl or events.jsonl; ``anew``: its file begins with it, also after it was rewound."""

    run: WatchedRun
    kind: str
    values: dict[str, Any]
    anew: bool
