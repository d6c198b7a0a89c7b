"""The time that the trainer's loop spends for each session, and what that leaves a device: its share and its wait.

The loop serves one message at a time. A message that comes meanwhile waits: it adds to the time of the device's step,
and is no time of its link. Figures are of the last WINDOW_S seconds.

share = max(1 - u, p/P), where u is the part of the time that other sessions took, and p/P the device's part of the
priorities of all devices at work: a trainer that has more to do than it can takes turns. A message that comes at any
instant waits for what is left of the one that is being served, u E[S^2] / (2 E[S]) in the mean, where S are the seconds
of the others' messages. Where waits of this device's own messages were measured, their mean is told instead: devices
fall into step with each other.

A round of several ranks is no session's work, and takes nothing from a device's share. Messages wait for it all the
same, so that it is one of the S.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.cloud_trainer.registry import Peer
from adc_edge.planning.profile import TrainerShare
from adc_edge.wire.link_messages import Pong
from adc_edge.wire.messages import FromTrainer, Gradient
from adc_edge.wire.tcp import TcpInfo

WINDOW_S = 10.0
_GONE_S = 60.0  # a session that is silent for so long joins anew
_JOINED_S = 1.0  # its part of the time is that of this long at least
_LEAST_S = 2e-4  # least time of the loop that counts; a piece of a message takes less
_LEAST_OUTSIDE_S = 0.02  # without a session: a device's pings before its own take less, a measurement of the head more
_WAITS = 5  # measured ones from which on their mean is told
_NO_SESSION = -1
_ROUND = -2  # the key of the rounds of several ranks
_NO_DEVICES = (_NO_SESSION, _ROUND)


class _Served(NamedTuple):
    """One message."""

    session: int
    start_s: float
    end_s: float
    rest_s: float  # at the end, after its answer was sent
    waited_s: float | None  # for other sessions; None: not known, or it queued behind one of its own session

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class _Work:
    """The work for one session within the window."""

    def __init__(self, start_s: float) -> None:
        self.since_s = self.end_s = start_s  # when it joined; the end of its last message or piece
        self.answer_s = self.answered_s = -math.inf  # when its last answer was begun, and over
        self.messages = self.waits = 0
        self.seconds = self.squares = self.rest_s = self.waited_s = 0.0

    def add(self, served: _Served, sign: int) -> None:
        """Count a message, or with ``sign`` -1 drop it."""
        self.messages += sign
        self.seconds += sign * served.seconds
        self.squares += sign * served.seconds**2
        self.rest_s += sign * served.rest_s
        self.waits += sign * (served.waited_s is not None)
        self.waited_s += sign * (served.waited_s or 0.0)
        if not self.messages:  # no error of rounding stays
            self.seconds = self.squares = self.rest_s = self.waited_s = 0.0

    def part(self, now_s: float) -> float:
        """Return the part of the loop's time."""
        return self.seconds / min(WINDOW_S, max(now_s - self.since_s, _JOINED_S))


class TrainerLoad:
    """The work of the loop, as far as it concerns sessions.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._served: deque[_Served] = deque()
        self._work: dict[int, _Work] = {}
        self._start_s = self._rest_s = 0.0  # of the message that is being served
        self._waited: dict[int, float] = {}  # by the sessions that are being served
        self._paused: dict[int, tuple[float, float]] = {}  # each session's last pause
        self._round_s: float | None = None  # in a round: since when the loop has done nothing else
        self.priority: Callable[[int], float] = lambda session: 1.0  # of a session

    def begin(self) -> None:
        """Note that the loop takes a message or a piece of one, or answers a message that has waited."""
        self._start_s, self._rest_s, self._waited = self._clock(), 0.0, {}
        self._count_round(self._start_s)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Count the block as a round of several ranks, except for the pieces of messages that are taken in it."""
        self._round_s = self._clock()
        try:
            yield
        finally:
            self._count_round(self._clock())
            self._round_s = None

    def _count_round(self, end_s: float) -> None:
        """Count the part of a round that ends, if there is one."""
        if self._round_s is not None and end_s - self._round_s >= _LEAST_S:
            self._count(_Served(_ROUND, self._round_s, end_s, 0.0, None), answered=False)

    def arrival_s(self, live: TcpInfo | None) -> float | None:
        """Return the time at which the message arrived whose last piece the loop has just taken; None: not known.

        Args:
            live: the kernel's figures of its connection at ``begin``; None: there are none.
        """
        return None if live is None else self._start_s - live.last_received_ms / 1e3

    def pause(self, session: int, paused: bool) -> None:
        """Note that the messages of a session wait from now on, or that they do no longer."""
        now_s = self._clock()
        self._paused[session] = (now_s, math.inf) if paused else (self._paused.get(session, (now_s, 0.0))[0], now_s)

    def after_sending(self, work: Callable[[], object]) -> None:
        """Do the work that waits until an answer is on its way."""
        start = self._clock()
        try:
            work()
        finally:
            self._rest_s += self._clock() - start

    def end(self, *peers: Peer, answered: bool = True) -> float:
        """Count what the loop took since ``begin`` for the peers' sessions, an equal part each; return one part.

        Args:
            peers: the connections of the messages that were answered together, or of a piece that was taken.
            answered: whether a message was answered.
        """
        now_s, start_s = self._clock(), self._start_s
        seconds, rest_s = (now_s - start_s) / len(peers), self._rest_s / len(peers)
        for number, peer in enumerate(peers, 1):
            session = _session(peer)
            if seconds >= (_LEAST_OUTSIDE_S if session == _NO_SESSION else _LEAST_S):
                end_s = now_s if number == len(peers) else self._start_s + number * seconds
                self._count(_Served(session, start_s, end_s, rest_s, self._waited.get(session)), answered)
                start_s = end_s
            if peer.session is not None and peer.session.record.finished:
                self._forget(session)
        if self._round_s is not None:
            self._round_s = now_s
        return seconds

    def _count(self, served: _Served, answered: bool) -> None:
        self._drop(served.end_s)
        work = self._work.setdefault(served.session, _Work(served.start_s))
        work.end_s = served.end_s
        if answered:
            work.answer_s, work.answered_s = self._start_s, served.end_s
        work.add(served, 1)
        self._served.append(served)

    def told(self, answer: FromTrainer, peer: Peer, arrived_s: float | None) -> FromTrainer:
        """Return the answer to a message that the loop took at ``begin``, with the share of the device if it has one.

        Args:
            answer: any; those to Step and Ping tell.
            peer: the device's connection.
            arrived_s: as ``arrival_s`` told; None: not known.
        """
        if not isinstance(answer, Gradient | Pong):
            return answer
        share = self.share(_session(peer), arrived_s)
        return answer if share is UNSET else msgspec.structs.replace(answer, share=share)

    def share(self, session: int, arrived_s: float | None) -> TrainerShare | UnsetType:
        """Return the share of a session; UNSET if nothing else was at work.

        Args:
            session: the session, or -1 for a device that asks before it has one.
            arrived_s: time at which the message arrived that is being served; None: not known.
        """
        self._drop(self._start_s)
        others = [work for key, work in self._work.items() if key != session and work.messages]
        devices = 1 + sum(work.messages > 0 for key, work in self._work.items() if key not in (session, *_NO_DEVICES))
        paused_s = 0.0 if arrived_s is None else self._paused_since(session, arrived_s)
        if not paused_s and (not others or (session == _NO_SESSION and devices == 1)):
            return UNSET
        waited_s = None
        if arrived_s is not None:  # what others took during the pause counts once
            since_s = max(arrived_s, self._paused[session][1]) if paused_s else arrived_s
            waited_s = paused_s + self._waited_for_others(session, since_s)
        own = self._work.get(session)
        if waited_s is not None and not paused_s and (own is None or arrived_s is None or arrived_s >= own.answered_s):
            self._waited[session] = waited_s
        seconds, squares = sum(work.seconds for work in others), sum(work.squares for work in others)
        busy = min(1.0, max(0.0, sum(work.part(self._start_s) for work in others)))
        rounds = self._work[_ROUND].part(self._start_s) if _ROUND in self._work else 0.0
        expected_s = busy * squares / (2 * seconds) if seconds else 0.0
        if session != _NO_SESSION and own is not None and own.waits >= _WAITS:
            expected_s = own.waited_s / own.waits
        return TrainerShare(
            share=min(1.0, max(1 - busy + rounds, self._least(session))),
            wait_s=max(0.0, expected_s),
            devices=devices,
            rest_s=max(0.0, own.rest_s / own.messages) if own is not None and own.messages else 0.0,
            waited_s=UNSET if waited_s is None else waited_s,
        )

    def _least(self, session: int) -> float:
        """Return a session's part of the time while every device at work wants more of it."""
        others = [key for key, work in self._work.items() if key not in (session, *_NO_DEVICES) and work.messages]
        own = 1.0 if session == _NO_SESSION else self.priority(session)
        return own / (own + sum(map(self.priority, others)))

    def offer(self) -> tuple[float, float]:
        """Return what a new session may expect: its part of the time, and the seconds of a message."""
        now_s = self._clock()
        self._drop(now_s)
        busy = [work for key, work in self._work.items() if key not in _NO_DEVICES and work.messages]
        used, messages = sum(work.part(now_s) for work in busy), sum(work.messages for work in busy)
        seconds = sum(work.seconds for work in busy) / messages if messages else 0.0
        return max(1 - used, self._least(_NO_SESSION)), seconds

    def _waited_for_others(self, session: int, arrived_s: float) -> float:
        """Seconds that others and rounds took since a message arrived, and since the session's last one was taken."""
        own = self._work.get(session)
        since_s = arrived_s if own is None or session == _NO_SESSION else max(arrived_s, own.answer_s)
        total = 0.0
        for served in reversed(self._served):
            if served.end_s <= since_s:
                break
            if served.session != session:
                total += served.end_s - max(served.start_s, since_s)
        return total

    def _paused_since(self, session: int, arrived_s: float) -> float:
        """Seconds that a session was paused since a message of it arrived."""
        start_s, end_s = self._paused.get(session, (0.0, 0.0))
        return max(0.0, min(end_s, self._start_s) - max(start_s, arrived_s))

    def _forget(self, session: int) -> None:
        """Forget a session that is closed: it takes no more of the trainer's time."""
        self._served = deque(served for served in self._served if served.session != session)
        self._work.pop(session, None)
        self._paused.pop(session, None)

    def _drop(self, now_s: float) -> None:
        """Forget what lies before the window."""
        while self._served and self._served[0].end_s < now_s - WINDOW_S:
            served = self._served.popleft()
            self._work[served.session].add(served, -1)
        for session in [key for key, work in self._work.items() if now_s - work.end_s > _GONE_S]:
            del self._work[session]


def _session(peer: Peer) -> int:
    return _NO_SESSION if peer.session is None else peer.session.id
