"""A device's session with its trainer: requests one behind another, through reconnects and either side's death.

After each Hello the trainer's Welcome tells how many steps it has applied, and the two are brought together before the
request goes on: a trainer that came back older is fed from the device's journal; what it has answered already is
fetched from its log, not sent again; what has arrived of a message, either way, does not travel twice.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable

import msgspec

from adc_edge.arrays import Body
from adc_edge.errors import LinkError, ProtocolError, RefusedError
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.wire.channel import Answer, Channel
from adc_edge.wire.connection import ClientKeys, LinkLost, Stopped
from adc_edge.wire.framing import chunk_bytes, to_frames
from adc_edge.wire.messages import (
    CHUNK_BYTES,
    Absent,
    Bye,
    Evaluate,
    Fetch,
    FromTrainer,
    Gradient,
    Hello,
    Message,
    Ping,
    Step,
    Welcome,
    unpack_from_device,
)
from adc_edge.wire.tcp import frame_bytes

PROBE_BYTES = CHUNK_BYTES
_PROBES = 3
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
        self._pending: deque[tuple[Message, Body]] = deque()
        self._incarnation = 0  # the trainer's
        self._received = (0, 0)  # transfer and bytes of our unfinished message that the trainer holds
        self._sent: dict[int, int] = {}  # bytes that have left already, of each message in flight
        self._micro_batches = 1  # of each step
        self._durable = 0  # steps that the trainer cannot lose
        self.trainer_keeps = True  # its run on disk, so that it may come back for what the journal holds
        self.applied = 0  # steps that the trainer has applied
        self.learned = 0  # micro-batches that it has learned of the next
        self.outages = 0
        self.repeated = [0, 0]  # bytes up and down that an undisturbed run would not have needed

    @property
    def in_flight(self) -> int:
        """Requests whose answers have not been taken yet."""
        return len(self._pending)

    def submit(self, message: Message, body: Body = b"") -> None:
        """Start a request; the bytes travel while the caller goes on. Answers come from ``result``, in order.

        ``body`` must stay as it is until its answer has come: it may have to travel again.
        """
        self._pending.append((message, body))
        try:
            self._request(message, body)
        except LinkLost:
            self._disconnect()  # `result` resumes
        self._journal.prune(self._durable)  # while it travels

    def result(self, outage_s: float | None = None) -> Answer:
        """The answer to the oldest submitted request, reconnecting and resuming as often as needed.

        After an error nothing is in flight any more.

        Args:
            outage_s: give up after this long without the trainer; None: never.

        Raises:
            Behind: as ``open``.
            LinkError: after ``outage_s``.
            RefusedError: the trainer refused the request.
            ProtocolError: answers that cannot be read, three in a row.
            Stopped: ``stop`` said so.
        """
        assert self._pending, "nothing was submitted"
        try:
            while True:
                try:
                    answer = self.receive()
                    message, body = self._pending[0]
                    if isinstance(answer[0], Absent) and isinstance(message, Evaluate):
                        self.send(message, body)  # its log does not reach back so far: it judges once more
                        continue
                    self._note(answer[0])
                    self._pending.popleft()
                    self._sent.pop(getattr(message, "transfer", 0), None)
                    return answer
                except LinkLost as lost:
                    self._resume(lost, outage_s)
        except BaseException:
            self._pending.clear()
            self._sent.clear()
            raise

    def farewell(self, session: int) -> None:
        """Tell the trainer that the session is over, and wait until it has made that durable."""
        try:
            self.submit(Bye(session))
            self.result(FAREWELL_S)
            self._journal.prune(self.applied)
            self._journal.drop_spares()
        except (LinkError, RefusedError, Stopped):
            self._notify("the trainer did not acknowledge the end; if it comes back, run the same command again")

    def probe(self) -> tuple[float, float] | None:
        """Seconds of an empty round trip, and of PROBE_BYTES one way; None if the link breaks."""
        try:
            empty, full = (min(self._ping(size) for _ in range(_PROBES)) for size in (0, PROBE_BYTES))
        except LinkLost:
            self._disconnect()
            return None
        return empty, max(0.0, full - empty) / 2

    def _ping(self, size: int) -> float:
        start = time.monotonic()
        Channel.send(self, Ping(0, size, size), bytes(size))
        self.receive(WELCOME_MS)
        return time.monotonic() - start

    def send(self, message: Message, body: Body = b"") -> None:
        """As Channel, counting what travels again."""
        transfer, end = getattr(message, "transfer", 0), getattr(message, "offset", 0)
        before = self._sent.get(transfer, 0)
        for header, piece in to_frames(message, body, chunk_bytes(self.tcp())):
            self._live().send(header, piece)
            end += len(piece)
            if body and end <= before:
                self.repeated[0] += frame_bytes(header, piece)
            elif body:
                self._sent[transfer] = end

    def _resume(self, lost: LinkLost, outage_s: float | None) -> None:
        self._notify(f"link lost ({lost}); waiting for the trainer at {self.endpoint}")
        self.outages += 1
        self.open(outage_s)
        self._notify("the trainer is back")
        with contextlib.suppress(LinkLost):  # then `receive` finds it lost again
            for message, body in self._pending:
                self._request(message, body)

    def _request(self, message: Message, body: Body) -> None:
        """Send a request, or what is missing of it, or ask for the answer that was given before."""
        if not self._answered(message):
            self.send(self._rest(message), body)
            return
        assert isinstance(message, Step | Evaluate)
        transfer, have = self._inbox.unfinished
        self.send(
            Fetch(
                session=message.session,
                step=message.step,
                part=message.part if isinstance(message, Evaluate) else None,
                micro_batch=message.micro_batch if isinstance(message, Step) else 0,
                transfer=message.transfer,
                durable=message.durable if isinstance(message, Step) else 0,
                offset=have if transfer == message.transfer else 0,
            )
        )

    def _answered(self, message: Message) -> bool:
        """Whether the trainer is past that message."""
        if isinstance(message, Step):
            return (message.step, message.micro_batch) < (self.applied, self.learned)
        return isinstance(message, Evaluate) and message.step < self.applied

    def _rest(self, message: Message) -> Message:
        """The same message from where the trainer's copy ends, which is of use to the first body that follows only."""
        if not isinstance(message, Step | Evaluate):
            return message
        (transfer, have), self._received = self._received, (0, 0)
        return msgspec.structs.replace(message, offset=have) if have and message.transfer == transfer else message

    def _greet(self) -> None:
        hello = self._hello()
        self.send(hello)
        welcome, _ = self.receive(WELCOME_MS)
        if not isinstance(welcome, Welcome):
            raise LinkLost(f"a {type(welcome).__name__} instead of a Welcome")
        if welcome.incarnation != self._incarnation:  # what it sent in another life may not be what it sends now
            self.repeated[1] += self._inbox.unfinished[1]
            self._inbox.drop()
            self._incarnation = welcome.incarnation
        self._received = (welcome.transfer, welcome.received_bytes)
        self.applied, self.learned, self._micro_batches = welcome.applied, welcome.learned, hello.micro_batches
        self._note_durable(welcome.durable)
        ours = self._position(hello)
        if (self.applied, self.learned) < ours:
            if hello.oldest > self.applied:
                raise Behind(self.applied, welcome.oldest)
            self._feed(hello, ours)

    def _position(self, hello: Hello) -> tuple[int, int]:
        """The first step and micro-batch that this device has no gradient for."""
        first = next((message for message, _ in self._pending), None)
        return (first.step, first.micro_batch) if isinstance(first, Step) else (hello.next_step, 0)

    def _feed(self, hello: Hello, until: tuple[int, int]) -> None:
        """Bring a trainer that came back older to where this device stands."""
        self._notify(f"the trainer came back at step {self.applied}; sending it what it lacks up to step {until[0]}")
        up, down = self._live().framed
        while (at := (self.applied, self.learned)) < until:
            kept = self._journal.read(JournalKey(*at))
            if kept is None:
                raise Behind(at[0], at[0])
            message = unpack_from_device(kept[0])
            assert isinstance(message, Step)
            message = msgspec.structs.replace(message, replay=True, durable=hello.durable, offset=0)
            self.send(self._rest(message), kept[1])
            answer, _ = self.receive()
            if not isinstance(answer, Gradient) or (answer.step, answer.micro_batch) != at:
                raise LinkLost(f"a {type(answer).__name__} instead of an answer to step {at[0]}")
            self._note(answer)
            now = self._live().framed
            self.repeated[0] += now[0] - up
            self.repeated[1] += now[1] - down
            up, down = now

    def _note(self, answer: FromTrainer) -> None:
        if isinstance(answer, Gradient):
            following = (answer.step, answer.micro_batch + 1)
            if following[1] >= self._micro_batches:
                following = (answer.step + 1, 0)
            self.applied, self.learned = max((self.applied, self.learned), following)
            self._note_durable(answer.durable)

    def _note_durable(self, durable: int | None) -> None:
        """How far the trainer cannot come back behind; one that keeps nothing on disk does not come back at all."""
        self.trainer_keeps = durable is not None
        self._durable = self.applied if durable is None else durable

    def _body_bytes(self, message: FromTrainer) -> int:
        if isinstance(message, Gradient):
            expected = self._gradient_bytes(message)
            if message.body_bytes not in (0, expected):  # 0: the answer to a replay
                raise ProtocolError(
                    f"a gradient of {message.body_bytes} bytes", f"{expected} bytes", "use one version", "size"
                )
            return message.body_bytes
        return super()._body_bytes(message)
