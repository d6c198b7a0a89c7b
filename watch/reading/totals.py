"""The cost of a run so far: bytes by kind, seconds by phase, outages and repeated steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

from adc_edge.watch.reading.directory import CheckpointHead
from adc_edge.watch.reading.lines import WAYS, SpentBytes, ToldSpending, spent_bytes
from adc_edge.watch.reading.values import branch, whole

Spending = Literal["training", "evaluation", "trunk", "repeated", "probes"]
SPENDINGS: tuple[Spending, ...] = ("training", "evaluation", "trunk", "repeated", "probes")
_TALLIED: dict[ToldSpending, str] = {  # names of the sums in a checkpoint's tally
    "training": "bytes",
    "evaluation": "bytes_evaluation",
    "trunk": "bytes_trunk",
}
_KEPT = 20_000  # lines since a checkpoint


class Totals:
    """Sums over a run.

    The lines are those of an undisturbed run. What killed processes sent stands in a device's newest checkpoint.
    """

    def __init__(self) -> None:
        self.images = self.uncompressed = 0  # uncompressed: bytes of the same batches as fp32, each way that is used
        self.seconds: dict[str, float] = {}  # of each phase, and "step" for all
        self.outages = 0
        self.steps_repeated: int | None = None  # not known before a device's first checkpoint
        self._lines = {(spending, way): 0 for spending in _TALLIED for way in WAYS}
        self._since: deque[tuple[int, SpentBytes]] = deque(maxlen=_KEPT)  # with the place of each line
        self._evaluations = 0
        self._head = CheckpointHead(0, {})  # the newest

    def add(self, values: Mapping[str, Any], trainer: bool = False) -> int:
        """Count the bytes of a line, and return them: both ways together."""
        spent = spent_bytes(values, trainer)
        if spent is None:
            return 0
        self._lines[spent.spending, "up"] += spent.up
        self._lines[spent.spending, "down"] += spent.down
        evaluated = spent.spending == "evaluation"
        place = self._evaluations if evaluated else whole(values, "step")
        self._evaluations += evaluated
        self._since.append((place, spent))
        return spent.both

    def add_seconds(self, phases: Mapping[str, float | None]) -> None:
        """Add the seconds of phases; None adds none."""
        for phase, seconds in phases.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + (seconds or 0.0)

    def take_checkpoint(self, head: CheckpointHead) -> None:
        """Take the sums that a device's checkpoint has."""
        tally = branch(head.meta, "tally")
        self._head = CheckpointHead(head.step, {name: branch(head.meta, name) for name in ("tally", "fleet")})
        until = self._until()
        self._since = deque((line for line in self._since if line[0] >= until[line[1].spending]), maxlen=_KEPT)
        if tally:
            self.outages, self.steps_repeated = whole(tally, "outages"), whole(tally, "steps_repeated")

    def spent(self, way: str) -> dict[Spending, int]:
        """Return the bytes of each kind that went ``up`` or ``down``."""
        tally = branch(self._head.meta, "tally")
        lost = {spending: self._lost(spending, way) for spending in _TALLIED}
        told = {spending: self._lines[spending, way] for spending in _TALLIED}
        repeated = whole(tally, f"bytes_repeated_{way}")
        return {
            "training": max(told["training"] + lost["training"] + lost["evaluation"] - repeated, 0),
            "evaluation": told["evaluation"],
            "trunk": told["trunk"] + lost["trunk"],
            "repeated": repeated,
            "probes": whole(tally, f"bytes_probe_{way}"),
        }

    @property
    def bytes_all(self) -> int:
        """All bytes, both ways."""
        return sum(sum(self.spent(way).values()) for way in WAYS)

    def _until(self) -> dict[ToldSpending, int]:
        """The place of the first line of each kind that the newest checkpoint does not know."""
        evaluations = branch(self._head.meta, "tally").get("evaluations") or ()
        fleet = branch(self._head.meta, "fleet")
        averaged = whole(fleet, "averaged") + 1 if fleet else 0
        return {"training": self._head.step, "evaluation": len(evaluations), "trunk": averaged}

    def _lost(self, spending: ToldSpending, way: str) -> int:
        """Return the bytes before the checkpoint that no line has: of steps done twice, or given up."""
        tally, until = branch(self._head.meta, "tally"), self._until()[spending]
        if not tally:
            return 0
        later = sum(
            spent.up if way == "up" else spent.down
            for place, spent in self._since
            if spent.spending == spending and place >= until
        )
        return max(whole(tally, f"{_TALLIED[spending]}_{way}") - (self._lines[spending, way] - later), 0)
