"""The fleet of one trainer: who fits its mode, and the common trunk beside sessions, record and run directory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import UNSET, UnsetType
from safetensors.numpy import load

from adc_edge.arrays import Body, Float32
from adc_edge.cloud_trainer.fleet.barrier import Barrier
from adc_edge.cloud_trainer.fleet.closed_round import ClosedRound
from adc_edge.cloud_trainer.fleet.common_trunk import CommonTrunk, Due, Member
from adc_edge.cloud_trainer.fleet.rounds import Rounds
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.fleet.turns import Turns
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.cloud_trainer.registry import Peer, SessionRegistry, outside_session
from adc_edge.codec.trunk_changes import changes_bytes
from adc_edge.errors import ProtocolError
from adc_edge.files import write_atomic
from adc_edge.storage.bundle import TRUNK, Bundle
from adc_edge.storage.fleet_trunk import ROUNDS, FleetTrunk
from adc_edge.wire.fleet_messages import FleetTerms, TrunkDelta
from adc_edge.wire.messages import Hello, Step

_TURN = "turn"  # file beside the rounds: the session that has the turn

logger = logging.getLogger(__name__)


class DeviceFleet:
    """The devices of a trainer as one fleet.

    Args:
        settings: mode and terms.
        bundle: its trunk is that of round 0.
        sessions: all sessions.
        record: takes metrics and events of the rounds.
        run: run directory that keeps the rounds; None: they last as long as the process.
        head_steps: gives the steps that the head has learned, for the record.

    Raises:
        BundleError: the bundle's trunk is missing or changed, and the mode needs it.
        CheckpointError: the newest round on disk is damaged.
    """

    def __init__(
        self,
        settings: FleetSettings,
        bundle: Bundle,
        sessions: SessionRegistry,
        record: TrainerRecord,
        run: Path | None = None,
        head_steps: Callable[[], int] = lambda: 0,
    ) -> None:
        self.settings, self._sessions, self._record = settings, sessions, record
        self._head_steps = head_steps
        self.is_paused: Callable[[int], bool] = lambda session: False  # a person may pause a session
        self._rounds: Rounds | None = None
        self._trunk: CommonTrunk | None = None
        self._came: dict[int, int] = {}  # bytes of each session's questions that wait for their answer
        if settings.common:
            self._rounds = Rounds(_trunk_of(bundle), settings.precision, run)
            scheme = Barrier(settings.wait_s) if settings.mode == "averaged" else _turns(settings.wait_s, run)
            known = {session.id for session in sessions if not session.record.finished}
            returning = known | self._rounds.going_on()
            self._trunk = CommonTrunk(settings, self._rounds, scheme, self._tell, self._name, returning)

    @property
    def round(self) -> int:
        """Number of the newest round; 0 where each device has a trunk of its own."""
        return 0 if self._rounds is None else self._rounds.newest

    @property
    def trunk(self) -> Callable[[], FleetTrunk] | None:
        """Gives the trunk that the devices have in common; None where each has its own, or none is trained."""
        return None if self._rounds is None else self._rounds.now

    def log_start(self) -> None:
        """Log the mode, if it is not the usual one, and the round that the fleet has come to."""
        if self.settings.mode != "parallel":
            at = f"; round {self.round}" if self.settings.common else ": no device trains its trunk"
            logger.info("fleet    %s%s", self.settings.in_words(), at)

    def terms(self) -> FleetTerms | UnsetType:
        """The terms that a Welcome tells; UNSET: each device keeps its trunk to itself."""
        settings = self.settings
        if settings.mode == "averaged" or settings.mode == "sequential":
            fleet = UNSET if self._rounds is None else self._rounds.fleet
            return FleetTerms(settings.mode, settings.every, settings.precision, self.round, fleet)
        return UNSET

    def check_hello(self, hello: Hello) -> None:
        """Admit a device that fits the mode.

        Raises:
            ProtocolError: code ``version`` or ``shape``: it does not.
        """
        mode = f"--mode {self.settings.mode}"
        if self.settings.common and hello.fleet is UNSET:
            raise ProtocolError(
                "a device of an older version, which cannot bring its trunk together with others'",
                f"one that can: this trainer runs with {mode}",
                "install the trainer's version of adc-edge on the device, or start a trainer with --mode parallel",
                "version",
            )
        if self.settings.common and hello.fleet is not True:
            raise ProtocolError(
                "a device whose trunk is frozen",
                f"one that trains its trunk: this trainer runs with {mode}",
                "start `adc-edge serve` with --trunk train, or the trainer with --mode frozen",
                "shape",
            )
        if self.settings.mode == "frozen" and hello.fleet is True:
            raise _trains("a device that trains its trunk")

    def check_step(self, message: Step) -> None:
        """Raise ProtocolError, code ``shape``, for a step that asks for a gradient where no trunk is trained."""
        if not self.takes(message):
            raise _trains("a step that asks for a gradient")

    def takes(self, message: Step) -> bool:
        """Return whether a step fits the mode."""
        return self.settings.mode != "frozen" or message.gradient is None

    def body_bytes(self, message: TrunkDelta) -> int:
        """Exact size in bytes of a TrunkDelta's body.

        Raises:
            ProtocolError: code ``size``; or code ``shape``: there is no common trunk.
        """
        if self._rounds is None:
            raise ProtocolError(
                "a change of the fleet's trunk",
                f"none: this trainer runs with --mode {self.settings.mode}",
                "restart `adc-edge serve`: it asks the trainer for its mode",
                "shape",
            )
        size = changes_bytes(self._rounds.shapes, message.precision) if message.images else 0
        if message.body_bytes != size:
            raise ProtocolError(
                f"{message.body_bytes} bytes for the {message.precision} change of a trunk",
                f"{size} bytes",
                "use the same bundle and the same version of adc-edge on both sides",
                "size",
            )
        return size

    def knows(self, session: int) -> bool:
        """Return whether a session has contributed, also if the head does not know it any more."""
        return self._rounds is not None and self._rounds.last_settled(session) is not None

    def change_bytes(self) -> int:
        """Size of a device's change in the fleet's precision; 0: there is no common trunk."""
        return 0 if self._rounds is None else changes_bytes(self._rounds.shapes, self.settings.precision)

    def largest_bytes(self) -> int:
        """Upper bound on the body of a TrunkDelta."""
        return 0 if self._rounds is None else changes_bytes(self._rounds.shapes, "fp32")

    def held_bytes(self) -> int:
        """Size in bytes of the changes that wait for their round."""
        return 0 if self._trunk is None else self._trunk.held_bytes

    def joined(self, hello: Hello) -> None:
        """Note that a device has said Hello for a session: it asks again what it has asked before."""
        if self._trunk is not None:
            self._trunk.rejoin(hello.session, hello.next_step, hello.next_step < hello.steps)

    def take(self, peer: Peer, message: TrunkDelta, body: Body) -> None:
        """Take a message of ``body_bytes``; ``due`` answers it.

        Raises:
            ProtocolError: the message is refused; nothing has changed.
        """
        assert self._trunk is not None, "body_bytes refuses it"
        if peer.session is None or message.session != peer.session.id:
            raise outside_session(message)
        record = peer.session.record
        self._trunk.take(message, body, time.monotonic(), record.applied, record.images)
        self._came[message.session] = self._came.get(message.session, 0) + message.body_bytes

    def due(self) -> list[Due]:
        """The answers that are to be sent now; cheap to call again and again."""
        if self._trunk is None or not self._trunk.waiting:
            return []
        due = self._trunk.due(time.monotonic(), self._members())
        for answer, body in due:
            if any(peer.connected for _, peer in self._sessions.speakers(answer.session)):  # else it asks again
                came = self._came.pop(answer.session, 0)
                self._record.brought(answer, self._name(answer.session), self._head_steps(), came, len(body))
        return due

    def _members(self) -> dict[int, Member]:
        found = {}
        for session in self._sessions:
            present = self._record.presence.connected(session.id) and not self.is_paused(session.id)
            found[session.id] = Member(present, session.record.finished, session.applied)
        return found

    def _name(self, number: int) -> str:
        record = self._sessions.records().get(number)
        return f"{number:016x}" if record is None else record.device

    def _tell(self, closed: ClosedRound) -> None:
        names = {session: self._name(session) for session in (*closed.left_out, *closed.missing)}
        for session, why in closed.left_out.items():
            logger.warning("round %d leaves out the change of device %r: %s", closed.number, names[session], why)
        missing = "".join(f"; not waited for: {names[session]!r}" for session in closed.missing)
        count = len(closed.sessions)
        logger.info("round %d: the changes of %d device%s%s", closed.number, count, "s"[: count != 1], missing)
        left_out = [(names[session], why) for session, why in closed.left_out.items()]
        self._record.averaged(closed, left_out, self._head_steps())


def _trains(received: str) -> ProtocolError:
    return ProtocolError(
        received,
        "a device with a frozen trunk: this trainer runs with --mode frozen",
        "start `adc-edge serve` with --trunk frozen, or the trainer with another --mode",
        "shape",
    )


def _trunk_of(bundle: Bundle) -> dict[str, Float32]:
    weights = load(bundle.file(TRUNK).read_bytes())
    return {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}


def _turns(wait_s: float, run: Path | None) -> Turns:
    if run is None:
        return Turns(wait_s)
    path = run / ROUNDS / _TURN
    try:
        holder = int(path.read_text(), 16)
    except (OSError, ValueError):  # nobody has it: the first device that asks gets it
        holder = None
    return Turns(wait_s, holder, partial(_keep_turn, path))


def _keep_turn(path: Path, session: int | None) -> None:
    write_atomic(path, b"" if session is None else f"{session:016x}\n".encode())
