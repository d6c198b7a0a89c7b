"""The trainer's socket on a rank: messages are answered between rounds, and pieces are taken at any time.

A message's answer leaves before the round that has the head learn it. While other ranks are waited for, pings and
Hellos are answered, and pieces of steps are taken; but no step is computed, since the head may change at that moment.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any

import zmq

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.answers import Request
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.devices.closing import Closing
from adc_edge.cloud_trainer.ranks.devices.door import Door
from adc_edge.cloud_trainer.ranks.expecting import Expecting
from adc_edge.cloud_trainer.ranks.learning.steps import RankSteps
from adc_edge.cloud_trainer.ranks.pauses import Pauses
from adc_edge.cloud_trainer.ranks.rounds import Outcome, RankRounds
from adc_edge.cloud_trainer.ranks.state.checkpoints import RankCheckpoints
from adc_edge.cloud_trainer.ranks.state.classes import RankClasses
from adc_edge.cloud_trainer.ranks.state.turn import RunTurn
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.scheduling.room import Room
from adc_edge.cloud_trainer.server import Server
from adc_edge.defaults import MAX_IMAGES, ROUND_WAIT_S, MergePasses
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.messages import Bye, ClassNames

_TICK_MS = 100
_SLICE_S = 0.02  # for so long messages that complete no step are answered before the next round
_ALONE_S = 0.5  # with local steps: a round is due after so long
_LOOK_S = 0.1  # between two looks at orders and keys while other ranks are waited for


class RankServer(Server):
    """A server whose head learns in rounds of all ranks.

    Args:
        bundle: the bundle that every device must have.
        training: the head's training, alike on all ranks.
        bind: ``tcp://HOST:PORT`` of this rank; port ``*`` lets the system choose.
        sessions: those that this rank serves.
        checkpoints: of all ranks.
        classes: the class names of all ranks.
        fleet: says who fits the mode.
        access: admission by keys; None: everybody who reaches the address is admitted.
        max_images: largest number of images in one message.
        merge_passes: how waiting steps of several devices of this rank go through the head together.
        max_devices: connected sessions of this rank beyond which a new one has to wait; 0: no such limit.
        sync: steps of this rank between two averages of the heads; 1: all steps of all ranks are learned together.
        round_wait_s: longest wait for a message that is expected of this rank's devices, before it joins a round.
    """

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        bind: str,
        sessions: SessionRegistry,
        *,
        checkpoints: RankCheckpoints,
        classes: RankClasses,
        fleet: DeviceFleet | None = None,
        access: Access | None = None,
        max_images: int = MAX_IMAGES,
        merge_passes: MergePasses = "off",
        max_devices: int = 0,
        sync: int = 1,
        round_wait_s: float = ROUND_WAIT_S,
    ) -> None:
        made = list[RankSteps]()

        def make(*arguments: Any) -> RankSteps:
            made.append(RankSteps(*arguments))
            return made[0]

        super().__init__(
            bundle,
            training,
            bind,
            sessions,
            checkpoints,
            access,
            max_images,
            classes=classes,
            fleet=fleet,
            merge_passes=merge_passes,
            max_devices=max_devices,
            steps=make,
        )
        self.steps = made[0]
        self._classes, self._all = classes, checkpoints
        self._learns_alone, self._pauses, self._expecting = sync > 1, Pauses(round_wait_s), Expecting()
        self._closing = Closing(self._record, checkpoints.save)
        self._naming: dict[int, QueuedMessage] = {}  # class names that wait for a round, one message of each session
        sessions.elsewhere_bytes = lambda: sum(len(asked.body) for asked in self._naming.values())
        sessions.is_spared = self._closing.waits_for
        self._urgent = False  # something waits for the next round
        self._answered, self._computed_s = 0, 0.0  # since the last round
        self._looked_s = 0.0
        self._door: Door | None = None
        self._rounds: RankRounds | None = None
        self.turn: RunTurn | None = None  # of these ranks at the run directory

    def join(self, rounds: RankRounds, door: Door) -> None:
        """Take what stands between this rank and the others; before ``serve``."""
        self._rounds, self._door = rounds, door
        self._orders.is_logged = door.speaks_for
        self._closing.kept(self._all.finished_sessions())

    def serve(self, stop: Callable[[], bool]) -> None:
        """Answer messages in turn with rounds, until all ranks are to end.

        Raises:
            RanksLost: another rank is gone.
            RunError: the ranks' heads have come apart, or nothing could be kept at the end.
        """
        assert self._rounds is not None, "join comes first"
        outcome = Outcome(False, None, False)
        while not outcome.over:
            self._answer_until_round(self._rounds, stop)
            self._urgent = False  # all that waits by now has its part in the round
            answered, self._answered = self._answered, 0
            computed_s, self._computed_s = self._computed_s, 0.0
            with self._load.round():
                outcome = self._rounds.turn(stop=stop(), answered=answered, computed_s=computed_s)
            self._pauses.after(outcome.busy)
            self._follow(outcome)
        self._rounds.end()

    def room(self) -> Room:
        """Return the room of this rank for new devices."""
        return self._answers.admission.room()

    def idle(self) -> None:
        """Take pieces, and answer what needs no step, while other ranks are waited for."""
        if time.monotonic() - self._looked_s > _LOOK_S:
            self._looked_s = time.monotonic()
            self._look_after()
        self._read()

    def _look_after(self) -> None:
        if self.turn is not None:
            self.turn.check()
        super()._look_after()

    def _answer_until_round(self, rounds: RankRounds, stop: Callable[[], bool]) -> None:
        """Answer messages until a round is due, which the other ranks may wait for.

        In lockstep it is due with the first step, with local steps after ``sync`` of them. It is also due when
        something waits for it, when no message is expected, and when none has come for a while. With local steps it is
        due after _ALONE_S at the latest: another rank may need one for its Hellos and Byes.
        """
        begun_s = since_s = time.monotonic()
        while not self._is_ready(rounds) and not self._urgent and not stop():
            self._read()
            self._look_after()
            now_s = time.monotonic()
            rest_s = self._pauses.seconds(self._expects, _SLICE_S if self._answered else None) - (now_s - since_s)
            if self._learns_alone and self._answered and now_s - begun_s > _ALONE_S:
                return
            if rest_s <= 0 and not (self.sessions.waiting.has_turn and (self._learns_alone or not self._answered)):
                return
            if taken := self.sessions.waiting.pop():
                self._answer_expected(taken)
                if self._learns_alone:
                    since_s = time.monotonic()
            else:
                self._socket.poll(min(_TICK_MS, round(1e3 * max(0.0, rest_s))), zmq.POLLIN)

    def _is_ready(self, rounds: RankRounds) -> bool:
        """Whether a round is due before the next step. With local steps the head learns here what was answered."""
        with self._load.round():
            return rounds.ready

    def _answer_expected(self, taken: list[QueuedMessage]) -> None:
        """Answer messages whose turn it is, and note when their devices sent them."""
        begun_s = time.monotonic()
        sessions = [(one.peer.session, one.arrived_s) for one in taken if one.peer.session is not None]
        for session, arrived_s in sessions:
            self._expecting.arrived(session, arrived_s)
        self._answer_waiting(taken)
        for session, _ in sessions:
            self._expecting.answered(session)
        self._answered += len(taken)
        self._computed_s += time.monotonic() - begun_s

    @property
    def _expects(self) -> bool:
        """Whether a message of a device of this rank is expected soon."""
        paused = self.sessions.waiting.fair.is_paused
        speaking = (peer.session for peer in self.sessions.peers.values() if peer.connected)
        at_work = (one for one in speaking if one is not None and not one.record.finished and not paused(one.id))
        return any(self._expecting.is_due(one, self._pauses.round_wait_s) for one in at_work)

    def _follow(self, outcome: Outcome) -> None:
        """Answer what has waited for a round."""
        assert self._door is not None, "join comes first"
        for asked in self._door.decided():
            with self._replies.refusing(asked.route, asked.peer):
                self._answer_hello(asked)
        self._replies.tell_dismissed()
        for session, asked in list(self._naming.items()):
            if self._classes.is_to_be_told(session):  # it came while the ranks had begun the round
                self._urgent = True
                continue
            del self._naming[session]
            with self._replies.refusing(asked.route, asked.peer):
                super()._answer(asked, (self._context_of(asked), asked.message, asked.body))
        if outcome.committed is not None:
            self._close_sessions(outcome.committed)

    def _close_sessions(self, committed: bool) -> None:
        """Answer the Byes that wait for a checkpoint."""
        if committed:
            for asked, reply in self._closing.kept(self._all.finished_sessions()):
                if self.sessions.peers.get(asked.route) is asked.peer:
                    self._replies.deliver([asked], [reply], None)
            return
        for asked in self._closing.failed():
            with self._replies.refusing(asked.route, asked.peer):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _answer_hello(self, asked: QueuedMessage) -> None:
        """Open a session here, tell its device where it is served, or let it wait for a round."""
        assert self._door is not None, "join comes first"
        if self.sessions.peers.get(asked.route) is not asked.peer:  # it has gone while it waited
            return
        found = self._door.hello(asked)
        if found == "here":
            super()._answer_hello(asked)
        elif found == "wait":
            self._urgent = True
        else:
            self._replies.deliver([asked], [(found, b"")], None)

    def _answer(self, asked: QueuedMessage, request: Request) -> None:
        """Answer a message; a Bye waits for a checkpoint, and new class names wait for a round."""
        session, message = asked.peer.session, asked.message
        speaks = self.sessions.peers.get(asked.route) is asked.peer and not asked.peer.cut_off
        if session is None or not speaks or getattr(message, "session", None) != session.id:
            super()._answer(asked, request)
        elif isinstance(message, Bye):
            if reply := self._closing.bye(asked, session):
                self._replies.deliver([asked], [reply], None)
        elif isinstance(message, ClassNames) and self._classes.must_wait(message, asked.body, session.record.device):
            self._naming[session.id] = asked  # in place of an earlier one, whose connection its device has given up
            self._urgent = True
        else:
            super()._answer(asked, request)
