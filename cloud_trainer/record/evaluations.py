"""The evaluations of a trainer's sessions, whose parts come one by one: one line of the metrics for each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

_MOST_PARTS, _MOST_KNOWN = 65_536, 1024


class EvaluatedPart(NamedTuple):
    """One message of an evaluation: its images, how many of them were judged correctly, and their losses' sum."""

    images: int
    correct: int
    loss_sum: float


class _Evaluation:
    def __init__(self, step: int) -> None:
        self.step, self.head_step = step, 0  # steps of the session, and of the head
        self.parts: list[EvaluatedPart] = []

    def line(self) -> dict[str, Any]:
        images, correct, loss = (sum(values) for values in zip(*self.parts, strict=True))
        return {
            "step": self.step,
            "head_step": self.head_step,
            "images": images,
            "accuracy": correct / images,
            "loss": loss / images,
        }


class SessionEvaluations:
    """Adds up the parts of each session's evaluation.

    A device that comes back older evaluates once more. What a line tells already is not told again.
    """

    def __init__(self) -> None:
        self._open: dict[int, _Evaluation] = {}
        self._incarnations: dict[int, int] = {}
        self._known: OrderedDict[tuple[str, int], tuple[Any, ...]] = OrderedDict()

    def add(self, session: int, step: int, part: int, judged: EvaluatedPart, head_step: int) -> None:
        """Take a part of the evaluation before a session's ``step``; one that comes again replaces what came before."""
        if part == 0:
            self._open[session] = _Evaluation(step)
        found = self._open.get(session)
        if found is None or found.step != step or not part <= len(found.parts) < _MOST_PARTS:
            self.drop(session)  # an earlier process of this trainer has answered its first parts
            return
        found.parts[part:] = [judged]  # those after it come again too
        found.head_step = head_step

    def resume(self, session: int, incarnation: int) -> None:
        """Note the process that speaks for a session; another one than before does not go on with its evaluation."""
        if self._incarnations.get(session) != incarnation:
            self.drop(session)
            self._incarnations[session] = incarnation

    def drop(self, session: int) -> None:
        """Forget the evaluation that a session has begun."""
        self._open.pop(session, None)

    def forget(self, session: int) -> None:
        """Forget a session."""
        self.drop(session)
        self._incarnations.pop(session, None)

    def take(self, session: int) -> dict[str, Any] | None:
        """Return the line of the evaluation that is over; None if there was none, or a line tells the same already."""
        found = self._open.pop(session, None)
        if found is None or not found.parts:
            return None
        line = {"session": f"{session:016x}", **found.line()}
        return line if self.learn(line) else None

    def learn(self, line: Mapping[str, Any]) -> bool:
        """Note a line; False if it was known."""
        key = str(line.get("session", "")), int(line["step"])
        told = line.get("images"), line.get("accuracy"), line.get("loss")
        if self._known.get(key) == told:
            return False
        self._known[key] = told
        self._known.move_to_end(key)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return True
