"""The trunk that the devices have in common: takes their messages, closes rounds, and says which answers are due.

Knows no socket and no clock: times are told. A device that is not answered asks again on its next connection.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.fleet.barrier import Barrier
from adc_edge.cloud_trainer.fleet.change import Contribution, EncodedChange
from adc_edge.cloud_trainer.fleet.closed_round import ClosedRound
from adc_edge.cloud_trainer.fleet.rounds import KEPT_ROUNDS, Rounds, SettledStep
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.fleet.turns import Turns
from adc_edge.errors import ProtocolError
from adc_edge.method.averaging import combined, outliers
from adc_edge.wire.fleet_messages import TrunkAverage, TrunkDelta

_RETRY_S = 1.0

logger = logging.getLogger(__name__)


class Member(NamedTuple):
    """A session as it stands now; ``present``: it is connected and not paused."""

    present: bool
    finished: bool
    applied: int  # steps of it that the head has learned


Due = tuple[TrunkAverage, bytes]
Members = Mapping[int, Member]


class CommonTrunk:
    """The trunk of a fleet in the modes ``averaged`` and ``sequential``.

    Args:
        settings: the fleet's.
        rounds: the trunk.
        scheme: decides when a round closes and who may go on.
        on_round: told each round once it is on disk.
        name: gives the name of a session's device, for the log.
        returning: sessions that an earlier process has served: the first round waits for them too.
    """

    def __init__(
        self,
        settings: FleetSettings,
        rounds: Rounds,
        scheme: Barrier | Turns,
        on_round: Callable[[ClosedRound], None] = lambda closed: None,
        name: Callable[[int], str] = str,
        returning: Iterable[int] = (),
    ) -> None:
        self._returning = set(returning)
        self._settings, self._rounds, self._scheme = settings, rounds, scheme
        self._on_round, self._name = on_round, name
        self._asked: dict[int, TrunkDelta] = {}  # questions that are not answered yet, by session
        self._open: dict[int, Contribution] = {}  # contributions that are in no round yet, by session
        self._done: set[int] = set()  # sessions whose last step brought no change
        self._resumed: set[int] = set()  # sessions that had come to their end and have asked to go on
        self._retry_s = -math.inf  # when to try again what could not be written
        self._in_trouble = False  # the last try failed

    @property
    def waiting(self) -> bool:
        """Whether anything may become due."""
        return bool(self._asked or self._open)

    @property
    def held_bytes(self) -> int:
        """Size of the contributions to the open round."""
        return sum(contribution.change.nbytes for contribution in self._open.values())

    def rejoin(self, session: int, step: int, goes_on: bool) -> None:
        """Note that a session has a new connection: what it asked before, it will ask again.

        Args:
            session: the session.
            step: where its device stands.
            goes_on: the device has steps to do.
        """
        if goes_on and step >= self._rounds.ended().get(session, math.inf):  # its question may have been answered
            self._resumed.add(session)
        self._returning.discard(session)
        self._asked.pop(session, None)
        self._scheme.withdraw(session)

    def take(self, message: TrunkDelta, body: Body, now_s: float, applied: int, images: int) -> None:
        """Take a device's message; ``due`` answers it.

        Args:
            message: the message.
            body: the encoded change.
            now_s: time on a clock that never goes back.
            applied: steps of the session that the head has learned.
            images: in these steps.

        Raises:
            ProtocolError: code ``history``: its trunk is of a round that this run does not know; ``order``: the head
                has not learned so many steps or images; ``nan``, ``size``: of the change. Nothing has changed.
        """
        session, step = message.session, message.step
        self._check_history(message)
        counts = message.images > 0 and not self._rounds.is_settled(session, step)
        self._check_claim(message, applied, images, counts)
        if counts:
            change = EncodedChange(body, self._rounds.shapes, message.precision)
            self._contribute(message, Contribution(step, message.images, change, message.last, images), now_s)
        self._done.discard(session)
        self._resumed.discard(session)
        if message.last and not message.images:
            self._done.add(session)
        self._asked[session] = message
        if not message.last:
            self._scheme.ask(session)
            settled = self._rounds.last_settled(session)
            if settled is None or step >= settled.step:  # an older one only does again what it has done
                self._resumed.add(session)

    def _check_history(self, message: TrunkDelta) -> None:
        """Raise ProtocolError if a device's trunk is of a round that this run has not made; round 0 is the bundle's."""
        known, remedy = (
            self._rounds.newest,
            "restore the trainer's --run directory, or start over with --fresh on all sides",
        )
        if message.base > known:
            expected = f"round {known} or earlier, which this run has come to"
            raise ProtocolError(f"a trunk of round {message.base}", expected, remedy, "history")
        if message.base and message.fleet and message.fleet != self._rounds.fleet:
            received = f"a trunk of round {message.base} of another fleet"
            raise ProtocolError(received, "the rounds that this run has made", remedy, "history")

    def _check_claim(self, message: TrunkDelta, applied: int, images: int, counts: bool) -> None:
        """Raise ProtocolError if a device has done less than it says: its weight in a mean is its number of images."""
        remedy = "restart `adc-edge serve`; it resumes"
        if message.step > applied:
            received, expected = f"a trunk before step {message.step}", f"step {applied}, which the head has come to"
            raise ProtocolError(received, expected, remedy, "order")
        settled = self._rounds.last_settled(message.session)
        learned = images - (0 if settled is None else settled.images)
        if counts and message.images > learned:
            received = f"a change by {message.images} images"
            raise ProtocolError(received, f"{learned} at most, which the head has learned since", remedy, "order")

    def _contribute(self, message: TrunkDelta, contribution: Contribution, now_s: float) -> None:
        session, behind = message.session, self._rounds.newest - message.base
        if behind > KEPT_ROUNDS:
            why = (
                f"it changes the trunk of round {message.base}, {behind} rounds ago; at most {KEPT_ROUNDS} are allowed"
            )
            self._rounds.leave_out(session, message.step, why, message.last, contribution.learned)
            self._open.pop(session, None)  # what it sent before is a part of this change
            self._scheme.drop(session)
            logger.warning("the change of device %r at step %d is left out: %s", self._name(session), message.step, why)
            return
        self._open[session] = contribution
        self._scheme.contribute(session, now_s)

    def due(self, now_s: float, members: Members) -> list[Due]:
        """Close the rounds that are complete, and return the answers that are to be sent now.

        Args:
            now_s: time on the clock of ``take``.
            members: all sessions.
        """
        if now_s >= self._retry_s:
            self._try_to_go_on(now_s, members)
        ended = len(self._ended(members))
        due = [asked for asked in self._asked.values() if self._is_due(asked, ended)]
        for asked in due:
            del self._asked[asked.session]
        return [self._answer(asked) for asked in due]

    def _try_to_go_on(self, now_s: float, members: Members) -> None:
        try:
            self._go_on(now_s, members)
            self._in_trouble = False
        except OSError as error:
            self._retry_s = now_s + _RETRY_S
            if not self._in_trouble:
                logger.warning("the fleet's trunk cannot be written: %s; its devices wait", error)
            self._in_trouble = True

    def _go_on(self, now_s: float, members: Members) -> None:
        """Close the rounds that are complete, and pass the turn on; raises OSError."""
        self._forget_resumed(members)
        present = {session for session, member in members.items() if member.present and not member.finished}
        expected = (present | self._returning) - self._ended(members)
        while closing := self._scheme.closing(now_s, expected):
            self._close(closing, now_s, expected)
        for session in self._ended(members) - self._resumed:  # one that is away keeps its turn for a while
            if session not in self._asked or self._asked[session].last:  # one that came back older goes on once more
                self._scheme.leave(session)
        self._scheme.advance(now_s, present)
        idle = self._scheme.idle(now_s, {session: members[session].applied for session in present})
        if idle is not None:
            text = "device %r has the turn and has done no step for %g s; others wait for it (docs/fleet.md)"
            logger.warning(text, self._name(idle), self._settings.wait_s)

    def _forget_resumed(self, members: Members) -> None:
        """Forget those that have come to an end again, or done a step since: as if they had never come to an end."""
        ended = self._rounds.ended()
        for session in list(self._resumed):
            member = members.get(session)
            if member is None or member.finished or member.applied > ended.get(session, -1):
                self._resumed.discard(session)

    def _ended(self, members: Members) -> set[int]:
        """The sessions that have come to their last step, and have done none since; one that is to go on is there."""
        ended = {session for session, member in members.items() if member.finished}
        for session, step in self._rounds.ended().items():
            if session not in members or members[session].applied <= step:
                ended.add(session)
        return (ended | self._done) - {s for s in self._resumed if s in members and members[s].present}

    def _close(self, sessions: list[int], now_s: float, expected: set[int]) -> None:
        """Make a round of the contributions of some sessions; raises OSError, and nothing has changed."""
        start = time.monotonic()
        found = {session: self._open[session] for session in sorted(sessions)}
        changes = [contribution.change for contribution in found.values()]
        judged = outliers(changes) if self._settings.guard else {}
        left_out = {session: judged[i] for i, session in enumerate(found) if i in judged}
        counted = {session: contribution for session, contribution in found.items() if session not in left_out}
        images = [contribution.images for contribution in counted.values()]
        change = combined([one.change for one in counted.values()], images, self._settings.robust)
        number = self._rounds.newest + 1
        settled = {
            session: SettledStep(one.step, number, left_out.get(session, ""), one.last, one.learned)
            for session, one in found.items()
        }
        size, waited_s = self._rounds.close(change, settled), self._scheme.waited_s(now_s)
        self._scheme.closed(sessions)
        self._returning.clear()
        for session in sessions:
            del self._open[session]
        closed = ClosedRound(
            number=number,
            sessions=list(counted),
            left_out=left_out,
            missing=self._scheme.missing(sessions, expected),
            images=sum(images),
            bytes_up=sum(change.nbytes for change in changes),
            bytes_down=size,
            waited_s=waited_s,
            seconds=time.monotonic() - start,
        )
        self._on_round(closed)

    def _is_due(self, asked: TrunkDelta, ended: int) -> bool:
        if asked.images and not self._rounds.is_settled(asked.session, asked.step):
            return False
        if asked.last:
            return ended >= self._settings.devices
        return self._scheme.may_go_on(asked.session)

    def _answer(self, asked: TrunkDelta) -> Due:
        whole, body = self._rounds.since(asked.base)
        settled = self._rounds.last_settled(asked.session)
        why = settled.why if settled is not None and settled.step == asked.step and asked.images else ""
        answer = TrunkAverage(
            session=asked.session,
            step=asked.step,
            transfer=asked.transfer,
            body_bytes=len(body),
            base=asked.base,
            round=self._rounds.newest,
            precision=self._rounds.precision,
            whole=whole,
            devices=self._rounds.devices,
            left_out=why,
        )
        return answer, body
