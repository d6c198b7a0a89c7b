"""The progress of `serve`: a live area on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console

from adc_edge.edge_runtime.screen.dashboard import Dashboard
from adc_edge.edge_runtime.screen.figures import RunFigures, step_parts
from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.edge_runtime.tally import Evaluation, StepRecord, Tally
from adc_edge.logs import plain_room
from adc_edge.planning.passive import LinkEstimate
from adc_edge.screen.live import LiveArea, can_draw
from adc_edge.screen.words import fitted, roughly
from adc_edge.wire.channel import Channel

_LOG_EVERY_S = 5.0
_FIRST_STEPS = 5  # after which the time of a step is told; the very first one is not counted

logger = logging.getLogger(__name__)


class Display:
    """Progress of a run.

    Args:
        console: where it is shown.
        total: steps of the run.
        done: steps that were done before this process.
        insecure: warn all the time that the run is in the clear.
        title: what is trained, and with which trainer.
        frozen: nothing but losses come back from the trainer.
    """

    def __init__(
        self, console: Console, total: int, done: int, insecure: bool = False, title: str = "", frozen: bool = False
    ) -> None:
        self._console, self._trouble = console, ""
        self.figures = RunFigures(total, done, insecure, title, frozen)
        self._shown = ExitStack()
        self._live = can_draw(console)
        self._total, self._logged_at, self._pace = total, 0.0, _Pace()
        if insecure:
            logger.warning("--insecure: whoever is on the way to the trainer can read and change what is sent")

    def __enter__(self) -> Display:
        """Start the live area."""
        if self._live:
            dashboard = self._shown.enter_context(Dashboard(self.figures, self._console))
            self._shown.enter_context(LiveArea(self._console, dashboard.draw, dashboard.draw_line))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live area, and leave its first row on the screen."""
        self._shown.close()

    def follow(self, channel: Channel) -> None:
        """Show from now on when and how often ``channel`` tries to reach the trainer."""
        self.figures.channel = channel

    def outage(self, lost: bool) -> None:
        """Show, until the next step, that the link is lost or that the trainer is back."""
        self.figures.link_state = "lost" if lost else "back"

    def evaluating(self) -> None:
        """Show, until its result, that an evaluation is under way."""
        self.figures.evaluating_since = time.monotonic()

    def averaging(self, waits_for: str | None) -> None:
        """Show that the run waits for other devices, and for what; None: no longer."""
        self.figures.fleet_wait = None if waits_for is None else (waits_for, time.monotonic())

    def trouble(self, error: OSError | None) -> None:
        """Log that a file cannot be written while the run goes on, once for each change."""
        text = "" if error is None else f"{error.filename or 'writing'}: {error.strerror}"
        if text and text != self._trouble:
            logger.warning(
                "%s; the run goes on, but this process, if it dies, resumes from the last good checkpoint only", text
            )
        elif self._trouble and not text:
            logger.info("the files of the run can be written again")
        self._trouble = text

    def step(
        self,
        record: StepRecord,
        tally: Tally,
        link: LinkEstimate | None = None,
        settings: StepSettings | None = None,
    ) -> None:
        """Show that a step is done. On a terminal this only keeps the references; the screen draws when it likes."""
        if self._live:
            self.figures.note(record, tally, link, settings)
        else:
            self._log(record.step + 1, tally, link)

    def _log(self, done: int, tally: Tally, link: LinkEstimate | None) -> None:
        """Log progress every few seconds, and once what the first steps say about the time of all."""
        pace_s = self._pace.seconds(tally)
        left = "" if pace_s is None else roughly((self._total - done) * pace_s)
        if pace_s is not None and self._pace.steps == _FIRST_STEPS and done < self._total:
            logger.info("about %s to go at %s a step, evaluations apart", left, roughly(pace_s))
        if time.monotonic() - self._logged_at > _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            begun = [f"step {done}/{self._total}", *([f"{left} left"] if left else [])]
            parts = [*begun, *step_parts(tally, link)]
            logger.info(fitted(parts, plain_room(self._console), keep=len(begun)))

    def evaluated(self, evaluation: Evaluation) -> None:
        """Log the result of an evaluation."""
        self.figures.evaluating_since = None
        logger.info(
            f"step {evaluation.step}/{self._total}  test accuracy {evaluation.accuracy:.1%}, "
            f"loss {evaluation.loss:.3f} on {evaluation.images} images"
        )


class _Pace:
    """Time of a step of this process, without the first, which also warms up."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self.steps = 0  # that were timed

    def seconds(self, tally: Tally) -> float | None:
        """Note a step that was added to ``tally``; return the mean time of those so far, None after the first."""
        if self._first is None:
            self._first = tally.steps, tally.seconds
            return None
        steps, seconds = self._first
        self.steps = tally.steps - steps
        return (tally.seconds - seconds) / self.steps if self.steps > 0 else None
