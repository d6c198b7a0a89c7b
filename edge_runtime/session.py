"""A device's session with its trainer: pipelined requests, which survive reconnects and the death of either side.

After each Hello the trainer's Welcome tells how many steps it has applied. The two sides are brought together
(`recovery.py`) before the requests go on.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable

import msgspec

from adc_edge.arrays import Body
from adc_edge.codec.precision import encoded_bytes
from adc_edge.edge_runtime import recovery
from adc_edge.edge_runtime.classes.exchange import agree_on_classes
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.edge_runtime.frozen.send_epochs import check_keeps, where_trainer_stands
from adc_edge.edge_runtime.recovery import Behind
from adc_edge.errors import LinkError, ProtocolError, RefusedError
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.storage.position import MicroBatches, Position
from adc_edge.wire.channel import Answer, Channel, padding_bytes, tell_pause
from adc_edge.wire.connection import ClientKeys, LinkLost, Stopped, TrainerBusy
from adc_edge.wire.fleet_messages import TrunkAverage
from adc_edge.wire.framing import chunk_bytes, to_frames
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.message import Message
from adc_edge.wire.messages import Absent, Bye, ClassNames, Evaluate, FromTrainer, Gradient, Hello, Step, Welcome
from adc_edge.wire.tcp import frame_bytes

WELCOME_MS = 60_000  # a trainer that computes another device's step answers late, while its heartbeats go on
_CLOSE_S = 60.0
_LONGEST_PAUSE_S = 5.0

logger = logging.getLogger(__name__)


class DeviceSession:
    """One device's session.

    Args:
        endpoint: ``tcp://HOST:PORT``.
        hello: makes the Hello of the current state.
        journal: keeps the steps that were sent.
        dim: channels of an activation, which together with a request give its gradient's size.
        keys: keys for an encrypted connection.
        stop: asked while waiting; True raises Stopped.
        loopback_alone: connect to no other address, whatever the name resolves to: there are no keys.
        on_outage: told True when the link is lost and False when the trainer is back.
        on_try: as of the Channel.
        classes: the classes of the data; None: labels are the head's already.
        micro_batches: gives their number in a step; None: as the Hello tells.
    """

    def __init__(
        self,
        endpoint: str,
        hello: Callable[[], Hello],
        journal: Journal,
        dim: int,
        *,
        keys: ClientKeys | None = None,
        stop: Callable[[], bool] = lambda: False,
        loopback_alone: bool = False,
        on_outage: Callable[[bool], None] = lambda lost: None,
        on_try: Callable[[int], None] = lambda failed: None,
        classes: DeviceClasses | None = None,
        micro_batches: MicroBatches | None = None,
    ) -> None:
        self.channel = Channel(
            endpoint,
            keys=keys,
            stop=stop,
            loopback_alone=loopback_alone,
            body_bytes=self._body_bytes,
            on_try=on_try,
        )
        self._hello, self._journal, self._dim, self._on_outage = hello, journal, dim, on_outage
        self._pending: deque[tuple[Message, Body]] = deque()
        self._sent: dict[int, int] = {}  # bytes that have left already, for each message in flight
        self._classes = classes
        self._incarnation = self._told = 0  # of the trainer, and of the one that knows our classes
        self._held: recovery.Partial = (0, 0)  # what the trainer holds of our unfinished message
        self._said = 1  # micro-batches of each step, as the last Hello told
        self._micro_batches = micro_batches or (lambda step: self._said)
        self.trainer = Position(0)  # the first position that the trainer has not learned
        self._durable = 0  # steps that the trainer cannot lose
        self.trainer_keeps = True  # the trainer's run is on disk, so it may come back and need the journal
        self.welcome: Welcome | None = None  # the trainer's last one
        self.average_bytes: Callable[[TrunkAverage], int] = lambda answer: 0  # body size that it must have
        self.outages = self._busy = 0  # busy: times in a row that the trainer could not do it: its disk is full, say
        self.repeated = [0, 0]  # bytes up and down that an undisturbed run would not have needed

    @property
    def in_flight(self) -> int:
        """Requests whose answers have not been taken yet."""
        return len(self._pending)

    def open(self, wait_s: float | None) -> None:
        """Connect and open the session, trying for ``wait_s`` seconds (None: for ever).

        Raises:
            Behind: the trainer has lost steps that the journal does not hold.
            LinkError, RefusedError, Stopped: see ``Channel.open``.
        """
        self.channel.open(wait_s, self._open_session)

    def submit(self, message: Message, body: Body = b"") -> None:
        """Start a request; the bytes travel while the caller goes on. ``result`` gives the answers, in order.

        ``body`` must not change until its answer has come: it may have to travel again.
        """
        self._pending.append((message, body))
        try:
            self._request(message, body)
        except LinkLost:
            self.channel.disconnect()  # `result` resumes
        self._journal.prune(self._durable)  # while the message travels

    def result(self, outage_s: float | None = None) -> Answer:
        """The answer to the oldest submitted request, after as many reconnects as it takes.

        After an error no request is in flight any more.

        Args:
            outage_s: give up after this long without the trainer; None: never.

        Raises:
            Behind: see ``open``.
            LinkError: the trainer was away for ``outage_s``.
            RefusedError: the trainer refused the request.
            ProtocolError: three unreadable answers in a row.
            Stopped: ``stop`` returned True.
        """
        assert self._pending, "nothing was submitted"
        try:
            while True:
                try:
                    answer = self.channel.receive()
                    message, body = self._pending[0]
                    if isinstance(answer[0], Absent) and isinstance(message, Evaluate):
                        self._send(message, body)  # its log does not reach back so far: it evaluates once more
                        continue
                    self._note(answer[0])
                    self._pending.popleft()
                    self._busy = 0
                    self._sent.pop(getattr(message, "transfer", 0), None)
                    return answer
                except LinkLost as lost:
                    self._resume(lost, outage_s)
        except BaseException:
            self._pending.clear()
            self._sent.clear()
            raise

    def close_session(self) -> bool:
        """Tell the trainer that the session is over, and wait until it has made that durable; False: it has not."""
        try:
            self.submit(Bye(self._hello().session))
            self.result(_CLOSE_S)
            self._journal.prune(self.trainer.step)
            self._journal.drop_spares()
        except (LinkError, RefusedError, Stopped) as error:
            why = str(error) or "asked to stop while waiting"
            logger.warning("the trainer did not acknowledge the end; run the same command again once it can: %s", why)
            return False
        return True

    def close(self) -> None:
        """Close every socket at once."""
        self.channel.close()

    def _send(self, message: Message, body: Body = b"") -> None:
        """Send a message from its ``offset`` on, and count the bytes that were sent before."""
        recovery.check_knows((getattr(message, "precision", None), getattr(message, "gradient", None)), self.welcome)
        transfer, end = getattr(message, "transfer", 0), getattr(message, "offset", 0)
        before = self._sent.get(transfer, 0)
        for header, piece in to_frames(message, body, chunk_bytes(self.channel.tcp())):
            self.channel.send_piece(header, piece)
            end += len(piece)
            if body and end <= before:
                self.repeated[0] += frame_bytes(header, piece)
            elif body:
                self._sent[transfer] = end

    def _resume(self, lost: LinkLost, outage_s: float | None) -> None:
        logger.warning("link lost (%s); waiting for the trainer at %s", lost, self.channel.endpoint)
        self._on_outage(True)
        self.outages += 1
        if isinstance(lost, TrainerBusy):
            self._busy += 1
            self.channel.pause(min(_LONGEST_PAUSE_S, 0.1 * 2**self._busy))
        self.open(outage_s)
        logger.info("the trainer is back")
        self._on_outage(False)
        with contextlib.suppress(LinkLost):  # then `receive` finds the link lost again
            for message, body in self._pending:
                self._request(message, body)

    def _request(self, message: Message, body: Body) -> None:
        """Send a request, or what is missing of it, or ask for the answer that was given before."""
        if isinstance(message, Step | Evaluate) and recovery.is_answered(message, self.trainer):
            self._send(recovery.fetch_answer(message, self.channel.inbox.unfinished))
        elif isinstance(message, recovery.Continued):
            self._send_rest(message, body)
        else:
            self._send(message, body)

    def _send_rest(self, message: recovery.Continued, body: Body) -> None:
        held, self._held = self._held, (0, 0)  # what the trainer holds can only be of the first body that follows
        self._send(recovery.missing_part(message, held), body)

    def _open_session(self) -> None:
        """Say hello on a new connection, and bring a trainer that came back older to where this device stands."""
        hello = self._hello()
        self._send(hello)
        welcome, _ = self.channel.receive(WELCOME_MS)
        if not isinstance(welcome, Welcome):
            raise LinkLost(f"a {type(welcome).__name__} instead of a Welcome")
        recovery.check_follows(hello, welcome)
        check_keeps(hello, welcome)
        self.welcome = welcome
        if welcome.paused is True:
            tell_pause(True)
        if welcome.incarnation != self._incarnation:  # what another process sent may not be what this one sends
            self.repeated[1] += self.channel.inbox.unfinished[1]
            self.channel.inbox.drop()
            self._incarnation = welcome.incarnation
        if self._classes is not None and self._told != welcome.incarnation:
            agree_on_classes(self.channel, welcome, self._classes, WELCOME_MS)
            self._told = welcome.incarnation
        if others := welcome.other_steps:
            logger.info("this head has %d steps of other sessions; to compare options: trainer --one-session", others)
        self._held = (welcome.transfer, welcome.received_bytes)
        self.trainer, self._said = where_trainer_stands(hello.sends, welcome), hello.micro_batches
        self._note_durable(welcome.durable)
        oldest_request = self._pending[0][0] if self._pending else None
        device = recovery.device_position(oldest_request, hello.next_step)
        lost = recovery.positions_to_replay(self.trainer, device, hello.oldest, self._micro_batches)
        if lost:
            logger.info("the trainer came back at step %d; sending it the steps up to %d", lost[0].step, device.step)
        for position in lost:
            self._replay(position, hello.durable)

    def _replay(self, position: Position, durable: int | None) -> None:
        """Send a message of the journal again, and take its answer, which has no body."""
        up, down = self.channel.framed()
        kept = self._journal.read(JournalKey(*position))
        if kept is None:
            raise Behind(position.step)
        message = unpack_from_device(kept[0])
        assert isinstance(message, Step)
        self._send_rest(msgspec.structs.replace(message, replay=True, durable=durable, offset=0), kept[1])
        answer, _ = self.channel.receive()
        if not isinstance(answer, Gradient) or (answer.step, answer.micro_batch) != position:
            raise LinkLost(f"a {type(answer).__name__} instead of an answer to step {position.step}")
        self._note(answer)
        now = self.channel.framed()
        self.repeated[0] += now[0] - up
        self.repeated[1] += now[1] - down

    def _note(self, answer: FromTrainer) -> None:
        if isinstance(answer, Gradient):
            following = Position(answer.step, answer.micro_batch).next(self._micro_batches(answer.step))
            self.trainer = max(self.trainer, following)
            self._note_durable(answer.durable)

    def _note_durable(self, durable: int | None) -> None:
        """Keep the steps that the trainer cannot lose; a trainer that keeps nothing on disk (None) never comes back."""
        self.trainer_keeps = durable is not None
        self._durable = self.trainer.step if durable is None else durable

    def _body_bytes(self, message: FromTrainer) -> int:
        """Body size of an answer; raises ProtocolError if a gradient has another size than its request's tensor."""
        if isinstance(message, TrunkAverage):
            return self.average_bytes(message)
        if not isinstance(message, Gradient):
            return message.body_bytes if isinstance(message, ClassNames) else padding_bytes(message)
        expected = self._gradient_bytes(message)
        if message.body_bytes not in (0, expected):  # 0: the answer to a replay
            remedy = "install the same version of adc-edge on both sides"
            raise ProtocolError(f"a gradient of {message.body_bytes} bytes", f"{expected} bytes", remedy, "size")
        return message.body_bytes

    def _gradient_bytes(self, gradient: Gradient) -> int:
        for request, _ in self._pending:
            if isinstance(request, Step) and request.micro_batch == gradient.micro_batch and request.gradient:
                return encoded_bytes((request.clusters, request.kept, self._dim), gradient.precision)
        return 0
