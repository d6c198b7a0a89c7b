"""The row of whole numbers with which each rank joins a round, and the table of all ranks' rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adc_edge.errors import RunError


class RankRow(NamedTuple):
    """One rank's part in a round."""

    steps: int = 0  # complete steps that the head is to learn, or has learned since the last average
    images: int = 0  # of these steps
    full: int = 0  # 1: as many as there may be between two averages
    planned: int = 0  # 1: the session of the first one has told the length of its run
    to_come: int = 0  # steps that the devices of this rank have yet to do
    tells: int = 0  # bytes that the members have to tell
    saves: int = 0  # 1: a checkpoint is wanted
    stops: int = 0  # 1: the run is to end
    answered: int = 0  # messages since the last round
    computed_ms: int = 0  # of the time since the last round
    elapsed_ms: int = 0
    head_step: int = 0  # steps of the head; without local steps the same on all ranks


class RankRows(NamedTuple):
    """The rows of all ranks, by rank."""

    rows: list[RankRow]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> RankRows:
        """Return the table of rows as they travel."""
        return cls([RankRow(*row) for row in rows])

    def total(self, field: str) -> int:
        """Return the sum of a field over all ranks."""
        return sum(getattr(row, field) for row in self.rows)

    def before(self, rank: int) -> int:
        """Return the number of steps of the ranks before ``rank``."""
        return sum(row.steps for row in self.rows[:rank])

    def weight(self, images: int, steps: int) -> float:
        """Return the weight of a sum of steps, which were weighed by their images among themselves.

        With n_i the images of step i, m steps in all ranks and n their mean, a sum over some of them is
        sum_i (n_i / n_sum) g_i. Its weight is n_sum / n: exactly 1 where these are all steps, or have as many images
        as the others.

        Args:
            images: of these steps together.
            steps: their number, at least 1.
        """
        return (images * self.total("steps")) / (steps * self.total("images"))

    def planned(self) -> bool:
        """Return whether the first step of the round is one of a device that plans a number of steps."""
        return bool(next((row.planned for row in self.rows if row.steps), 0))

    def check_alike(self) -> None:
        """Raise RunError if the heads of the ranks do not have the same number of steps."""
        steps = [row.head_step for row in self.rows]
        if len(set(steps)) > 1:
            raise apart(f"heads with {', '.join(map(str, steps))} steps")


def apart(received: str) -> RunError:
    """Return the error of ranks whose heads have come apart."""
    return RunError(
        f"the ranks have {received}",
        "the same head on all ranks",
        "start them again: they go back to the last checkpoint, which all had alike; the same version of adc-edge and "
        "of torch must be on all hosts",
    )
