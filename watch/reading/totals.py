"""The cost of a run so far: bytes by kind, seconds by phase, outages and repeated steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

from adc_edge.watch.reading.directory import CheckpointHead
from adc_edge.watch.reading.values import branch, whole

Spending = Literal["training", "evaluation", "repeated", "probes"]
SPENDINGS: tuple[Spending, ...] = ("training", "evaluation", "repeated", "probes")
_WAYS = ("up", "down")
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
        self._lines = {(kind, way): 0 for kind in ("step", "evaluation") for way in _WAYS}
        self._since: deque[tuple[str, int, int, int]] = deque(maxlen=_KEPT)  # kind, place, bytes up and down
        self._evaluations = 0
        self._head: tuple[int, dict[str, Any]] = (0, {})  # step and tally of the newest checkpoint

    def add(self, kind: str, values: Mapping[str, Any], trainer: bool = False) -> None:
        """Count the line of a step or an evaluation."""
        prefix = "body_bytes_" if trainer and kind == "step" else "bytes_"
        sizes = [whole(values, f"{prefix}{way}") for way in _WAYS]
        for way, size in zip(_WAYS, sizes, strict=True):
            self._lines[kind, way] += size
        place = whole(values, "step") if kind == "step" else self._evaluations
        self._evaluations += kind == "evaluation"
        self._since.append((kind, place, *sizes))  # type: ignore[arg-type]

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add the seconds of a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def take_checkpoint(self, head: CheckpointHead) -> None:
        """Take the sums that a device's checkpoint has."""
        tally = branch(head.meta, "tally")
        self._head = head.step, tally
        until = {"step": head.step, "evaluation": len(tally.get("evaluations") or ())}
        self._since = deque((line for line in self._since if line[1] >= until[line[0]]), maxlen=_KEPT)
        if tally:
            self.outages, self.steps_repeated = whole(tally, "outages"), whole(tally, "steps_repeated")

    def spent(self, way: str) -> dict[Spending, int]:
        """Return the bytes of each kind that went ``up`` or ``down``."""
        tally = self._head[1]
        lost = self._lost("step", way, "bytes") + self._lost("evaluation", way, "bytes_evaluation")
        repeated = whole(tally, f"bytes_repeated_{way}")
        evaluation = self._lines["evaluation", way]
        training = max(self._lines["step", way] + lost - repeated, 0)
        probes = whole(tally, f"bytes_probe_{way}")
        return {"training": training, "evaluation": evaluation, "repeated": repeated, "probes": probes}

    @property
    def bytes_all(self) -> int:
        """All bytes, both ways."""
        return sum(sum(self.spent(way).values()) for way in _WAYS)

    def _lost(self, kind: str, way: str, name: str) -> int:
        """Return the bytes before the checkpoint that no line has: of steps done twice, or given up."""
        step, tally = self._head
        if not tally:
            return 0
        until = step if kind == "step" else len(tally.get("evaluations") or ())
        place = 2 + _WAYS.index(way)
        later = sum(int(line[place]) for line in self._since if line[0] == kind and line[1] >= until)
        return max(whole(tally, f"{name}_{way}") - (self._lines[kind, way] - later), 0)
