"""A line of a run's files, as it is handed on, and the bytes that it tells of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from adc_edge.watch.reading.values import text, whole

if TYPE_CHECKING:
    from adc_edge.watch.reading.state import WatchedRun

ToldSpending = Literal["training", "evaluation", "trunk"]
METRIC_KINDS = ("step", "evaluation", "plan", "average", "trunk")  # of lines of metrics.jsonl; all others are events
WAYS = ("up", "down")
_OF_DEVICE: dict[str, ToldSpending] = {"step": "training", "evaluation": "evaluation", "average": "trunk"}
# A trainer's line of a round has the bytes of all devices; those of each exchange stand in a line of their own.
_OF_TRAINER: dict[str, ToldSpending] = {"step": "training", "evaluation": "evaluation", "trunk": "trunk"}


class RunLine(NamedTuple):
    """A new line of metrics.jsonl or events.jsonl; ``anew``: its file begins with it, also after it was rewound."""

    run: WatchedRun
    kind: str
    values: dict[str, Any]
    anew: bool


class SpentBytes(NamedTuple):
    """The bytes of a line: a device's at its socket, a trainer's in bodies of messages."""

    spending: ToldSpending
    up: int
    down: int

    @property
    def both(self) -> int:
        """Bytes up and down."""
        return self.up + self.down


def spent_bytes(values: Mapping[str, Any], trainer: bool) -> SpentBytes | None:
    """Return the bytes that a line of a run tells of; None if lines of its kind tell of none."""
    spending = (_OF_TRAINER if trainer else _OF_DEVICE).get(text(values, "kind", 40))
    if spending is None:
        return None
    prefix = "body_bytes" if trainer and "bytes_up" not in values else "bytes"
    return SpentBytes(spending, whole(values, f"{prefix}_up"), whole(values, f"{prefix}_down"))
