"""A device's trunk in a fleet: when it takes an average, its change until then, and the answer applied."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from msgspec import UNSET
from rich.filesize import decimal
from safetensors.numpy import load

from adc_edge.arrays import Float32, Weights
from adc_edge.codec.trunk_changes import added, changes_bytes, decode_changes, encode_changes, shapes_of
from adc_edge.defaults import FleetPrecision
from adc_edge.edge_runtime.fleet.exchange import TrunkExchange, brought_forward, check_fleet, check_round
from adc_edge.edge_runtime.fleet.record import AverageRecord, TakenAverage
from adc_edge.edge_runtime.fleet.state import FleetState
from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.edge_runtime.screen.display import Display
from adc_edge.edge_runtime.state import RunState
from adc_edge.errors import CheckpointError
from adc_edge.storage.position import Position
from adc_edge.storage.run_dir import AVERAGES, RunDir
from adc_edge.wire.connection import Stopped
from adc_edge.wire.fleet_messages import FleetTerms, TrunkDelta

_PAUSE_S = 1.0  # between two tries to write to a full disk

logger = logging.getLogger(__name__)


class SharedTrunk:
    """Brings the trunk of a run together with those of other devices.

    The trainer's answer is on the disk before anything depends on it. So a step that is done again begins with the
    trunk that it began with, and a change that was counted is never sent as another one.

    Args:
        loop: has the trunk, and speaks with the trainer.
        state: position of the run.
        run_dir: keeps the averages and metrics.
        bundled: the bundle's trunk.safetensors, which is the fleet's trunk of round 0.
        total: steps of the whole run.
        display: says what the run waits for.
    """

    def __init__(
        self, loop: DeviceLoop, state: RunState, run_dir: RunDir, bundled: Path, total: int, display: Display
    ) -> None:
        self._loop, self._state, self._run_dir = loop, state, run_dir
        self._bundled, self._total, self._display = bundled, total, display
        self._kept: AverageRecord | None = None

    @property
    def terms(self) -> FleetTerms | None:
        """The trainer's terms; None: it brings no trunks together, or this one is frozen."""
        welcome = self._loop.session.welcome
        return None if welcome is None or self._loop.refresher is None else welcome.fleet or None

    @property
    def owes(self) -> bool:
        """Whether the trunk has learned since the last average; a run that never joined a fleet owes nothing."""
        return self.terms is not None and self._state.fleet.averaged not in (None, self._state.step)

    @property
    def due(self) -> bool:
        """Whether an average is to be taken before the present step."""
        step, fleet, terms = self._state.step, self._state.fleet, self.terms
        if fleet.averaged == step or self._loop.refresher is None:
            return False
        if terms is None or self._record.has(step):
            return self._record.has(step)
        if self._is_done_again:  # then it follows the record
            return self._is_lost(0)
        return fleet.averaged is None or step % terms.every == 0 or step == self._total

    @property
    def is_extended(self) -> bool:
        """Whether the run goes on at a step where it had come to its end, so that another average is due there."""
        step, fleet = self._state.step, self._state.fleet
        if fleet.averaged != step or self._loop.refresher is None:
            return False
        return (fleet.ended and self.terms is not None) or self._record.taken(step, fleet.number + 1)

    def end(self) -> None:
        """Note that the run has come to its end."""
        self._state.fleet.ended = True

    def announce(self) -> None:
        """Say on which terms averages are taken; raises CheckpointError if the trainer's rounds are not this run's."""
        if (terms := self.terms) is None:
            return
        check_fleet(self._state.fleet, terms)
        check_round(self._state.fleet.round, terms.round)
        size = decimal(changes_bytes(shapes_of(self._weights()), terms.precision))
        what = "averaged with the other devices'" if terms.mode == "averaged" else "handed from device to device"
        logger.info("fleet    the trunk is %s every %d steps", what, terms.every)
        logger.info("fleet    a change is %s in %s; the fleet is at round %d", size, terms.precision, terms.round)
        if self._state.fleet.averaged is None and self._state.step:
            logger.info("fleet    what this trunk has learned alone in %d steps is its first change", self._state.step)

    def average(self, last: bool) -> int:
        """Take an average, and return the bytes that this took down.

        The trainer's answer is taken from the record if the step is done again.

        Args:
            last: no step of the run follows.

        Raises:
            Stopped: asked to stop while waiting; nothing has changed.
            CheckpointError: the trainer has lost rounds that this device has, or the record an average of a step that
                is done again.
            ProtocolError: the trunk or the answer is not finite, or the answer is not of this trunk.
            Behind, LinkError, RefusedError: see DeviceSession.
        """
        state, base = self._state, self._state.fleet.base or load(self._bundled.read_bytes())
        number = state.fleet.number + 1 if state.fleet.averaged == state.step else 0
        change = self._change(base)
        found = self._record.read(state.step, state.fleet.round, number)
        if found is None and self._is_lost(number):
            raise _lost(self._run_dir, state.step)
        taken, body = found or self._exchange(change, last)
        trunk = brought_forward(base, taken.answer, body)
        residual = state.fleet.residual  # without a change it is still to be made up for
        if change is not None:
            residual = _rounding({} if taken.answer.left_out else change, taken.precision)
        if found is None:
            self._keep(taken, body, number)
        assert self._loop.refresher is not None
        self._loop.refresher.take(trunk)
        state.fleet = FleetState(state.step, taken.answer.round, trunk, residual, taken.fleet, number, taken.last)
        self._tell(taken)
        return taken.bytes_down

    @property
    def _record(self) -> AverageRecord:
        if self._kept is None:
            self._kept = AverageRecord(None if self._run_dir.path is None else self._run_dir.path / AVERAGES)
        return self._kept

    @property
    def _is_done_again(self) -> bool:
        """Whether the trainer has learned from the present step: this device has begun it before."""
        return self._loop.session.trainer > Position(self._state.step)

    def _is_lost(self, number: int) -> bool:
        """Whether this device has taken an average before the present step that its record does not give."""
        return self.terms is None or (self._is_done_again and self._record.taken(self._state.step, number))

    def _weights(self) -> Weights:
        assert self._loop.shim is not None
        return self._loop.shim.weights()

    def _change(self, base: Weights) -> dict[str, Float32] | None:
        """The change since ``base``, with what the rounding of earlier ones left out; None: nothing was learned."""
        residual = self._state.fleet.residual
        if not self._images():
            return None
        change = {name: value - base[name] for name, value in self._weights().items()}
        return added(change, residual) if residual else change

    def _images(self) -> int:
        """Images that the trunk has learned from since the last average."""
        return (self._state.step - (self._state.fleet.averaged or 0)) * self._loop.loader.batch_size

    def _exchange(self, change: Weights | None, last: bool) -> tuple[TakenAverage, memoryview]:
        """Send the change, wait for the answer, and count what that cost."""
        state, terms, loop, start = self._state, self.terms, self._loop, time.monotonic()
        assert terms is not None
        body = b"" if change is None else encode_changes(change, terms.precision)
        message = TrunkDelta(
            session=state.session,
            step=state.step,
            base=state.fleet.round,
            transfer=0,
            body_bytes=len(body),
            images=self._images(),
            precision=terms.precision,
            last=last,
            fleet=state.fleet.fleet if state.fleet.round and state.fleet.fleet else UNSET,
        )
        if last:
            logger.info("the trunk has done its last step; the last average is taken once the other devices' have too")
        self._display.averaging(_wait(terms, last))
        exchange = TrunkExchange(loop.session, shapes_of(self._weights()))
        answer, received = exchange.ask(message, body, loop.settings.outage_s)
        seconds = time.monotonic() - start
        up, down = loop.new_bytes()
        fleet = (self.terms or terms).fleet or 0  # of the trainer that has answered
        return TakenAverage(answer, terms.precision, up, down, seconds, fleet, last), received

    def _keep(self, taken: TakenAverage, body: memoryview, number: int) -> None:
        """Keep an answer before anything depends on it, however long a full disk takes; raises Stopped."""
        while True:
            try:
                self._record.keep(taken, body, self._state.durable, number)
                return
            except OSError as error:
                self._display.trouble(error)
            try:
                self._loop.session.channel.pause(_PAUSE_S)
            except Stopped:
                self._state.tally.add_bytes(taken.bytes_up, taken.bytes_down, "trunk_")
                raise

    def _tell(self, taken: TakenAverage) -> None:
        """Count an average, and tell it to those who watch."""
        answer, step = taken.answer, self._state.step
        self._state.tally.average(taken)
        self._run_dir.metric(
            kind="average",
            step=step,
            round=answer.round,
            devices=answer.devices,
            bytes_up=taken.bytes_up,
            bytes_down=taken.bytes_down,
            seconds=taken.seconds,
            left_out=answer.left_out or None,
        )
        self._display.averaging(None)
        if answer.left_out:
            logger.warning("the change of this trunk up to step %d is in no average: %s", step, answer.left_out)
        logger.debug("step %d: took the average of round %d", step, answer.round)


def _lost(run_dir: RunDir, step: int) -> CheckpointError:
    return CheckpointError(
        f"{run_dir.path}: step {step} is to be done again, and {AVERAGES}/ lacks the average that it began with",
        f"{AVERAGES}/ as this run wrote it: what the trainer has learned since depends on that trunk",
        f"restore {AVERAGES}/ from a copy, or start this device over with --fresh",
    )


def _rounding(change: Weights, precision: FleetPrecision) -> dict[str, Float32]:
    """Return the part of a change that its encoding loses."""
    if precision == "fp32":
        return {}
    sent = decode_changes(encode_changes(change, precision), shapes_of(change), precision)
    return {name: value - sent[name] for name, value in change.items()}


def _wait(terms: FleetTerms, last: bool) -> str:
    """Return the thing that the run waits for, in words."""
    if last:
        return "the last steps of the fleet's other devices"
    return "the fleet's average" if terms.mode == "averaged" else "its turn"
