"""The steps of a device's run, with checkpoints, evaluations and recovery. Assembled by `runner.py`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from adc_edge.codec.precision import Precision
from adc_edge.data.loader import Loader
from adc_edge.edge_runtime.choosing.course import Course
from adc_edge.edge_runtime.choosing.evaluating import precision_of_evaluations, tell_of_another
from adc_edge.edge_runtime.fleet.trunk import SharedTrunk
from adc_edge.edge_runtime.frozen.freezing import TrunkFreeze
from adc_edge.edge_runtime.frozen.length import RunLength
from adc_edge.edge_runtime.frozen.parting import Parting
from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.edge_runtime.recovery import Behind, check_knows
from adc_edge.edge_runtime.screen.banner import banner, engine_line
from adc_edge.edge_runtime.screen.display import Display
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.state import RunState
from adc_edge.edge_runtime.tally import best_of
from adc_edge.edge_runtime.trunk.best import BestHalves
from adc_edge.errors import CheckpointError, LinkError
from adc_edge.storage.bundle import TRUNK, Manifest
from adc_edge.storage.checkpoint import KEPT
from adc_edge.storage.journal import LIMIT_BYTES
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.connection import Stopped

logger = logging.getLogger(__name__)


class Training:
    """The steps of one process.

    Args:
        settings: the settings of the run.
        manifest: the bundle's manifest.
        loop: does the steps.
        course: the settings of each step.
        why_engine: why `--engine auto` has chosen the loop's engine; nothing where it was named.
        state: position of the run, and its checkpoints.
        run_dir: keeps metrics.
        test: images to evaluate with.
        display: shows progress.
        length: steps of the run, and those of them that this device sends.
        stop: asked between steps.
    """

    def __init__(
        self,
        settings: ServeSettings,
        manifest: Manifest,
        loop: DeviceLoop,
        course: Course,
        why_engine: str,
        state: RunState,
        run_dir: RunDir,
        test: Loader,
        display: Display,
        length: RunLength,
        stop: Callable[[], bool],
    ) -> None:
        self.settings, self.manifest, self.loop, self.why_engine = settings, manifest, loop, why_engine
        self.course = course
        self.state, self.run_dir = state, run_dir
        self.test, self.display, self.stop = test, display, stop
        self.length, self.total = length, length.sent
        self._best = BestHalves(loop, state, run_dir)
        self._fleet = SharedTrunk(loop, state, run_dir, settings.bundle / TRUNK, self.total, display)
        self._unkept_bytes = 0  # gradients since the last checkpoint, which the trainer keeps until the next
        self._at_work: Literal["", "step", "evaluation_", "trunk_"] = ""
        self._trouble: OSError | None = None  # why the last checkpoint failed
        self._freeze, self._parting = TrunkFreeze(loop, length), Parting(state, loop.session, length)

    def run(self) -> None:
        """Train to the last step, or until ``stop`` returns True; a checkpoint is made in any case.

        Raises:
            LinkError, RefusedError, ProtocolError: see DeviceSession.
            CheckpointError: the two sides' states cannot be brought together.
        """
        state = self.state
        done = self._is_over()
        try:
            if not self._opened(done):
                return
            if self._parting.is_needed_no_more():
                return
            done = done and self._is_over()  # opening may have gone back to an older checkpoint
            if done:
                logger.info("nothing is left to do: %s", self.stop_reason or "this run is complete")
            else:
                self._announce()
            while not self.stop():
                try:
                    if self._freeze.follow(state.step):
                        self._save()  # beside the last checkpoint another with this trunk: either may be damaged
                    if self._fleet.due:
                        self._average()
                    if self._evaluation_due():
                        self._evaluate()
                    if self._is_over():
                        if self._fleet.owes:  # an evaluation has ended the run
                            self._average()
                        self._fleet.end()
                        if self.stop_reason and not done:
                            logger.info("ending at step %d: %s", state.step, self.stop_reason)
                        state.save()  # first: the trainer then deletes its log of answers
                        if self.loop.session.close_session():
                            self._parting.note()
                        return
                    if self._fleet.is_extended:
                        self._average()
                    self._step()
                except Behind as behind:
                    self._go_back(behind)
        except Stopped:
            state.tally.add_bytes(*self.loop.new_bytes(), "" if self._at_work == "step" else self._at_work)
            dropped = "; the step in flight is dropped" if self._at_work == "step" else ""
            logger.info("stopped while waiting for the trainer%s", dropped)
        finally:
            state.save()

    def _opened(self, done: bool) -> bool:
        """Open the session; False if nothing is left to do for this device, and its trainer does not answer."""
        try:
            self._open(self.settings.wait_s)
        except LinkError:
            if self._parting.was_before():
                return False
            if not done or self.length.alone:  # whether a trainer that goes on alone has everything is its word only
                raise
            logger.info("this run is complete, and its trainer has ended too: nothing is left to do")
            return False
        return True

    def _announce(self) -> None:
        """Say what the run will do."""
        settings, loop = self.settings, self.loop
        self._freeze.check_trainer()
        if settings.keep_best:
            self._best.check_trainer()
        test_images = sum(map(len, self.test.sample(settings.evaluate_images)))
        settings = msgspec.structs.replace(settings, evaluate_precision=self._evaluation_precision())
        device = "cpu" if loop.shim is None else loop.shim.device.type
        loop.settings = self.course.at(self.state.step)
        congestion = loop.session.channel.congestion
        for line in banner(settings, self.manifest, loop.settings, test_images, congestion, device):
            logger.info(line)
        logger.info(engine_line(loop.engine, self.why_engine))
        self._fleet.announce()
        self.course.follow(loop, self.state.step)

    def _step(self) -> None:
        settings, state, loop, run_dir = self.settings, self.state, self.loop, self.run_dir
        loop.settings = self.course.at(state.step)
        if decision := self.course.begun_at(state.step):
            run_dir.metric(kind="plan", **msgspec.to_builtins(decision))
        self._at_work = "step"
        record = loop.step(state.step, state.durable)
        self._at_work = ""
        state.tally.add(record, loop.loader.batch_size)
        self._tally_link()
        figures = loop.settings.figures(loop.shim is None) | loop.link.figures()
        run_dir.metric(kind="step", **msgspec.to_builtins(record), **figures)
        self.display.step(record, state.tally, loop.link, loop.settings)
        state.step += 1
        try:
            self.course.observe(record, loop)
        except OSError as error:  # then the settings stay as they are
            self._trouble = error
        self._unkept_bytes += record.bytes_down
        every = settings.checkpoint_every
        if (every and state.step % every == 0) or self._unkept_bytes > LIMIT_BYTES // KEPT:
            self._save()
        self.display.trouble(self._trouble or loop.trouble or run_dir.trouble)

    def _average(self) -> None:
        last = self.state.step == self.total or self.stop_reason is not None
        self._at_work = "trunk_"
        self._unkept_bytes += self._fleet.average(last)
        self._at_work = ""
        self._tally_link()

    def _save(self) -> None:
        self._trouble = self.state.try_to_save()
        self._unkept_bytes = 0

    def _go_back(self, behind: Behind) -> None:
        """Return to a checkpoint that the trainer has reached, and reconnect: the journal cannot bring it forward."""
        stood = self.state.step
        self._freeze.thaw()
        # A trainer that knows nothing of this run is the wrong one, or has lost the run: keep what this device has.
        if behind.applied == 0 or not self.state.resume(behind.applied):
            raise CheckpointError(
                f"the trainer stands at step {behind.applied}, this device at {stood}, and its journal cannot fill "
                "the gap",
                "a trainer that has kept its run (--run)",
                "start the trainer with the --run directory it had, or start both sides over with --fresh",
            )
        logger.warning(
            "the journal is damaged: going back from step %d to the checkpoint of %d", stood, self.state.step
        )
        self._open(self.settings.outage_s)

    def _open(self, wait_s: float | None) -> None:
        try:
            self.loop.session.open(wait_s)
            sent = {*self.course.precisions(self.loop.shim is None), self.settings.evaluate_precision}
            check_knows(sent, self.loop.session.welcome)  # before anything is learned, also of later epochs
        except Behind as behind:
            self._go_back(behind)

    def _evaluation_due(self) -> bool:
        """Whether an evaluation is due; it belongs to the step that follows, whose checkpoint precedes it."""
        step, every, done = self.state.step, self.settings.evaluate_every, self.state.tally.evaluations
        due = step == self.total or (every > 0 and step > 0 and step % every == 0)
        return due and not (done and done[-1].step == step)

    @property
    def stop_reason(self) -> str | None:
        """Why the run ends at its present step though more are planned; None: it does not.

        Only an evaluation ends a run: there the trainer stands at the same step.
        """
        done, limit = self.state.tally.evaluations, self.settings.stop_after
        best, since = best_of(done)
        here = bool(done) and done[-1].step == self.state.step < self.total
        if not (limit and here and since >= limit):
            return None
        top = f"; the best was {best.accuracy:.1%} at step {best.step}" if best else ""
        return f"{since} evaluation{'s' * (since > 1)} in a row without gain (--stop-after {limit}){top}"

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do for this device: a trainer that is to go on alone must have said so."""
        ended = self.state.step >= self.total or self.stop_reason is not None
        return ended and (self._parting.acknowledged or not self.length.alone)

    def _is_over(self) -> bool:
        """Whether the run has done what it was asked for."""
        ended = self.state.step >= self.total and not self._evaluation_due()
        return ended or self.stop_reason is not None

    def _evaluation_precision(self) -> Precision:
        done, training = self.state.tally.evaluations, self.course.lasting_precision
        return precision_of_evaluations(self.settings, done, self.loop, self.test, training)

    def _evaluate(self) -> None:
        settings, tally, start = self.settings, self.state.tally, time.monotonic()
        self.display.evaluating()
        self._at_work = "evaluation_"
        limit, precision = settings.evaluate_images, self._evaluation_precision()
        result, up, down = self.loop.evaluate(self.state.step, self.test, limit, precision)
        tally.add_bytes(up, down, "evaluation_")  # at once: they are spent, whatever follows
        tell_of_another(tally.evaluations, precision)
        if result.mixed:
            logger.warning("the evaluation of step %d is not of this head and these images alone", result.step)
        if settings.keep_best and result.gains_on(tally.best):
            if self._best.keep(result):  # on both sides, before the tally says so
                tally.best = result
            kept = self.loop.new_bytes()
            tally.add_bytes(*kept, "evaluation_")
            up, down = up + kept[0], down + kept[1]
        self._at_work = ""
        tally.evaluations.append(result)
        tally.seconds_evaluation += time.monotonic() - start
        self._tally_link()
        self.run_dir.metric(kind="evaluation", **msgspec.to_builtins(result), bytes_up=up, bytes_down=down)
        self.display.evaluated(result)
        if settings.keep_best or settings.stop_after:
            self._save()  # an evaluation that decides is never repeated once the trainer is past its step

    def _tally_link(self) -> None:
        tally, session = self.state.tally, self.loop.session
        tally.outages += session.outages
        tally.bytes_repeated_up += session.repeated[0]
        tally.bytes_repeated_down += session.repeated[1]
        session.outages, session.repeated = 0, [0, 0]
        self.loop.measure_link(tally)
