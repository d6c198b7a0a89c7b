"""A device's session with its trainer: one request at a time, through reconnects and either side's death.

After each Hello the trainer's Welcome tells how many steps it has applied, and the two are brought together before the
request goes on: a trainer that came back older is fed from the device's journal; what it has answered already is
fetched from its log, not sent again; what has arrived of a message, either way, does not travel twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from adc_edge.channel import Answer, Channel
from adc_edge.connection import ClientKeys, LinkLost, Stopped
from adc_edge.errors import LinkError, ProtocolError, RefusedError
from adc_edge.framing import Body, cut
from adc_edge.journal import Journal, Key
from adc_edge.protocol import (
    Absent,
    Bye,
    Evaluate,
    Fetch,
    FromTrainer,
    Gradient,
    Hello,
    Message,
    Step,
    Welcome,
    unpack_from_device,
)
from adc_edge.tcp import frame_bytes

WELCOME_MS = 60_000  # a trainer that computes another device's step answers late, and its heartbeats go on
FAREWELL_S = 60.0


class Behind(Exception):
    """The trainer stands at ``applied`` and the journal does not reach back so far.

    The device must return to a checkpoint of a step from ``oldest`` to ``applied``, or give up.
    """

    def __init__(self, applied: int, oldest: int) -> None:
        super().__init__(applied, oldest)
        self.applied, self.oldest = applied, oldest


class DeviceChannel(Channel):
    """One device's session.

    Args:
        endpoint: ``tcp://HOST:PORT``.
        hello: makes the Hello of the current state.
        journal: of the steps that were sent.
        keys: for an encrypted connection.
        notify: told in words when the link is lost, tried again, and back.
        stop: asked while waiting; True raises Stopped.
        gradient_bytes: exact body size that a Gradient must have; asked before allocating.
    """

    def __init__(
        self,
        endpoint: str,
        hello: Callable[[], Hello],
        journal: Journal,
        *,
        keys: ClientKeys | None = None,
        notify: Callable[[str], None] = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
        gradient_bytes: Callable[[Gradient], int] = lambda gradient: 0,
    ) -> None:
        super().__init__(endpoint, keys=keys, notify=notify, stop=stop)
        self._hello, self._journal, self._gradient_bytes = hello, journal, gradient_bytes
        self._pending: tuple[Message, Body] | None = None
        self._life = 0  # the trainer's
        self._received = (0, 0)  # transfer and bytes of our unfinished message that the trainer holds
        self._sent = (0, 0)  # transfer and bytes of a message that have left already
        self.applied = 0
        self.outages = 0
        self.repeated = [0, 0]  # bytes up and down that an undisturbed run would not have needed

    def submit(self, message: Message, body: Body = b"") -> None:
        """Start a request; the bytes travel while the caller goes on. Its answer comes from ``result``."""
        assert self._pending is None, "one request at a time"
        self._pending = (message, body)
        try:
            self._request(message, body)
        except LinkLost:
            self._disconnect()  # `result` resumes

    def result(self, outage_s: float | None = None) -> Answer:
        """The answer to the submitted request, reconnecting and resuming as often as needed.

        Args:
            outage_s: give up after this long without the trainer; None: never.

        Raises:
            Behind: as ``open``.
            LinkError: after ``outage_s``.
            RefusedError: the trainer refused the request.
            ProtocolError: answers that cannot be read, three in a row.
            Stopped: ``stop`` said so.
        """
        assert self._pending is not None
        message, body = self._pending
        try:
            while True:
                try:
                    answer = self.receive()
                    if isinstance(answer[0], Absent) and isinstance(message, Evaluate):
                        self.send(message, body)  # its log does not reach back so far: it judges once more
                        continue
                    self._note(answer[0])
                    return answer
                except LinkLost as lost:
                    self._resume(lost, outage_s, message, body)
        finally:
            self._pending = None

    def farewell(self, session: int) -> None:
        """Tell the trainer that the session is over, and wait until it has made that durable."""
        try:
            self.submit(Bye(session))
            self.result(FAREWELL_S)
            self._journal.prune(self.applied)
        except (LinkError, RefusedError, Stopped):
            self._notify("the trainer did not acknowledge the end; if it comes back, run the same command again")

    def send(self, message: Message, body: Body = b"") -> None:
        """As Channel, counting what travels again."""
        transfer, end = getattr(message, "transfer", 0), getattr(message, "offset", 0)
        before = self._sent[1] if transfer == self._sent[0] else 0
        for header, piece in cut(message, body):
            self._live().send(header, piece)
            end += len(piece)
            if body and end <= before:
                self.repeated[0] += frame_bytes(header, piece)
            elif body:
                self._sent = (transfer, end)

    def _resume(self, lost: LinkLost, outage_s: float | None, message: Message, body: Body) -> None:
        self._notify(f"link lost ({lost}); waiting for the trainer at {self.endpoint}")
        self.outages += 1
        self.open(outage_s)
        self._notify("the trainer is back")
        with contextlib.suppress(LinkLost):  # then `receive` finds it lost again
            self._request(message, body)

    def _request(self, message: Message, body: Body) -> None:
        """Send a request, or what is missing of it, or ask for the answer that was given before."""
        if isinstance(message, (Step, Evaluate)) and message.step < self.applied:
            part = message.part if isinstance(message, Evaluate) else None
            durable = message.durable if isinstance(message, Step) else 0
            transfer, have = self._inbox.unfinished
            offset = have if transfer == message.transfer else 0
            self.send(Fetch(message.session, message.step, part, message.transfer, durable, offset))
        else:
            self.send(self._rest(message), body)

    def _rest(self, message: Message) -> Message:
        """The same message from where the trainer's copy ends."""
        transfer, have = self._received
        if have and getattr(message, "transfer", None) == transfer:
            return msgspec.structs.replace(message, offset=have)
        return message

    def _greet(self) -> None:
        hello = self._hello()
        self.send(hello)
        welcome, _ = self.receive(WELCOME_MS)
        if not isinstance(welcome, Welcome):
            raise LinkLost(f"a {type(welcome).__name__} instead of a Welcome")
        if welcome.life != self._life:  # what it sent in another life may not be what it sends now
            self.repeated[1] += self._inbox.unfinished[1]
            self._inbox.drop()
            self._life = welcome.life
        self._received = (welcome.transfer, welcome.received_bytes)
        self.applied = welcome.applied
        self._prune(welcome.durable)
        if welcome.applied < hello.next_step:
            if hello.oldest > welcome.applied:
                raise Behind(welcome.applied, welcome.oldest)
            self._feed(hello)

    def _feed(self, hello: Hello) -> None:
        """Bring a trainer that came back older to where this device stands."""
        self._notify(f"the trainer came back at step {self.applied}; sending it the steps to {hello.next_step} again")
        up, down = self._live().framed
        for step in range(self.applied, hello.next_step):
            kept = self._journal.read(Key(step))
            if kept is None:
                raise Behind(step, step)
            message = unpack_from_device(kept[0])
            assert isinstance(message, Step)
            message = msgspec.structs.replace(message, replay=True, durable=hello.durable, offset=0)
            self.send(self._rest(message), kept[1])
            answer, _ = self.receive()
            if not isinstance(answer, Gradient) or answer.step != step:
                raise LinkLost(f"a {type(answer).__name__} instead of an answer to step {step}")
            self._note(answer)
            now = self._live().framed
            self.repeated[0] += now[0] - up
            self.repeated[1] += now[1] - down
            up, down = now

    def _note(self, answer: FromTrainer) -> None:
        if isinstance(answer, Gradient):
            self.applied = max(self.applied, answer.step + 1)
            self._prune(answer.durable)

    def _prune(self, durable: int | None) -> None:
        """Drop what the trainer can no longer need; one that keeps nothing on disk never comes back for any of it."""
        self._journal.prune(self.applied if durable is None else durable)

    def _body_bytes(self, message: FromTrainer) -> int:
        if isinstance(message, Gradient):
            expected = self._gradient_bytes(message)
            if message.body_bytes not in (0, expected):  # 0: the answer to a replay
                raise ProtocolError(
                    f"a gradient of {message.body_bytes} bytes", f"{expected} bytes", "use one version", "size"
                )
            return message.body_bytes
        return super()._body_bytes(message)
