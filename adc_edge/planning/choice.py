"""Goals, the settings that no other one beats, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from adc_edge.method.ratio import Ratio
from adc_edge.planning.accuracy.frontier import Estimate
from adc_edge.planning.step_model import Prediction, StepPlan

Quantity = Literal["seconds", "bytes", "accuracy", "ssim"]
ALMOST = 0.02  # a time within 2 % of another is as good
_SAME_POINTS = 0.5  # of accuracy: less is noise in every study that there is
DEFAULT_LOSS = -1.0  # points of accuracy, where nobody says what matters
_POINTS_A_LIMIT = 10.0
_UNKNOWN = 1e9


class Candidate(NamedTuple):
    """A setting with what it is expected to take and to give."""

    plan: StepPlan
    ratio: Ratio
    prediction: Prediction
    accuracy: Estimate | None  # points above uncompressed training; None: not measured
    ssim: Estimate | None  # of images that an attacker reconstructs; None: not measured
    few_rows: bool = False  # its messages are too small for principal components

    @property
    def bytes(self) -> int:
        """Bytes of a step, both ways."""
        return self.prediction.bytes_up + self.prediction.bytes_down


class Goal(NamedTuple):
    """A limit that the chosen setting must keep: accuracy at least, all others at most."""

    option: str
    quantity: Quantity
    limit: float

    def excess(self, candidate: Candidate) -> float:
        """Return the part of the limit by which it is missed; 0 if it is kept, infinite if the value is not known."""
        value = _value(candidate, self.quantity)
        if value is None:
            return float("inf")
        over = self.limit - value if self.quantity == "accuracy" else value - self.limit
        return 0.0 if over <= 1e-12 else over / max(abs(self.limit), 1e-12 if self.quantity != "accuracy" else 1.0)


class Choice(NamedTuple):
    """The chosen setting."""

    candidate: Candidate
    met: bool  # False: it is only the nearest to the goals
    reason: str
    unmeasured: Candidate | None = None  # keeps goals that no measured setting keeps; the one that is compressed least


def _value(candidate: Candidate, quantity: Quantity) -> float | None:
    if quantity == "seconds":
        return candidate.prediction.seconds
    if quantity == "bytes":
        return float(candidate.bytes)
    found = candidate.accuracy if quantity == "accuracy" else candidate.ssim
    return None if found is None else found.value


def pareto(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the rows that no other row beats, in their order.

    Args:
        costs: ``[n, c]``, where less is better. A row beats another if it is at most as large everywhere and smaller
            somewhere. Of equal rows the first stays.
    """
    table = np.asarray(costs, np.float64).reshape(len(costs), -1)
    order = np.lexsort(table.T[::-1])  # whatever beats a row comes before it
    kept: list[int] = []
    front = np.empty((0, table.shape[1]))
    for index in order.tolist():
        if not (front <= table[index]).all(axis=1).any():
            kept.append(index)
            front = table[sorted(kept)] if len(kept) == 1 else np.vstack((front, table[index]))
    return sorted(kept)


def front(candidates: Sequence[Candidate], with_ssim: bool) -> list[Candidate]:
    """Return the candidates that none beats in time, bytes and accuracy (and SSIM); an unknown value is the worst."""
    quantities: tuple[Quantity, ...] = ("seconds", "bytes", "accuracy", "ssim")[: 4 if with_ssim else 3]  # type: ignore[assignment]
    return [candidates[index] for index in pareto([[_cost(c, q) for q in quantities] for c in candidates])]


def _cost(candidate: Candidate, quantity: Quantity) -> float:
    value = _value(candidate, quantity)
    if value is None:
        return _UNKNOWN
    return -value if quantity == "accuracy" else value


def choose(candidates: Sequence[Candidate], goals: Sequence[Goal]) -> Choice:
    """Return the setting that serves the goals best, of those whose accuracy was measured.

    With a goal of accuracy it is the fastest that keeps all goals, with other goals the most accurate. Without any goal
    it is the fastest that loses at most one point. If none keeps the goals, the result is the nearest.

    Args:
        candidates: at least one.
        goals: limits.
    """
    known = [one for one in candidates if one.accuracy is not None]
    if not known:
        return Choice(_fastest(candidates), True, "the fastest setting; no accuracy was measured")
    limits = list(goals) or [Goal("", "accuracy", DEFAULT_LOSS)]
    fitting = [one for one in known if _keeps(one, limits)]
    if not fitting and not goals:
        return Choice(_most_accurate(known), True, "the most accurate setting; all lose more than one point")
    if not fitting:
        others = [one for one in candidates if one.accuracy is None and _keeps(one, goals)]
        least = max(others, key=_faithfulness, default=None)
        return Choice(_nearest(known, goals), False, "the nearest setting to the goals", least)
    count = f"{len(fitting)} setting{'s' * (len(fitting) != 1)}"
    if goals and not any(goal.quantity == "accuracy" for goal in goals):
        return Choice(_most_accurate(fitting), True, f"the most accurate of {count} that keep the goals")
    kept = "keep the goals" if goals else "lose at most one point to uncompressed training"
    return Choice(_fastest(fitting), True, f"the fastest of {count} that {kept}")


def _keeps(candidate: Candidate, goals: Sequence[Goal]) -> bool:
    return not any(goal.excess(candidate) for goal in goals)


def _most_accurate(measured: Sequence[Candidate]) -> Candidate:
    """Return the fastest of those that are as accurate as the best, but for noise."""
    most = max(map(_points, measured))
    return _fastest([one for one in measured if _points(one) >= most - _SAME_POINTS])


def _faithfulness(candidate: Candidate) -> tuple[bool, float, int]:
    """Rank settings without a measured accuracy: merging costs the most, then a trunk that is not trained."""
    trains = candidate.plan.gradient_precision is not None and not candidate.plan.freeze_first
    return trains, candidate.plan.shape.clusters / candidate.plan.shape.images, candidate.bytes


def _points(candidate: Candidate) -> float:
    assert candidate.accuracy is not None
    return candidate.accuracy.value


def _seconds(candidate: Candidate) -> float:
    return candidate.prediction.seconds


def _fastest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fastest; of those within 2 % of its time the one with the fewest bytes, then messages."""
    least = min(map(_seconds, candidates))
    close = [one for one in candidates if _seconds(one) <= least * (1 + ALMOST)]
    return min(close, key=lambda one: (one.bytes, one.plan.micro_batches, _seconds(one)))


def _nearest(candidates: Sequence[Candidate], goals: Sequence[Goal]) -> Candidate:
    """Return the candidate that misses the goals least; ten points of accuracy weigh as much as a whole limit."""

    def missed(candidate: Candidate) -> float:
        lost = max(0.0, -_points(candidate)) / _POINTS_A_LIMIT
        return lost + sum(min(goal.excess(candidate), _UNKNOWN) for goal in goals)

    return min(candidates, key=missed)


def spread_out(candidates: Sequence[Candidate], most: int, always: Sequence[Candidate]) -> list[Candidate]:
    """Return at most ``most`` of a front, evenly over time, ``always`` among them; fastest first."""
    ordered = sorted(candidates, key=_seconds)
    kept = list(always)
    if room := max(0, most - len(kept)):
        places = np.unique(np.linspace(0, len(ordered) - 1, min(room, len(ordered))).round().astype(int))
        kept += [ordered[place] for place in places if ordered[place] not in kept]
    return sorted(kept, key=_seconds)
