"""The link of `infer` to its trainer: requests with a deadline, and a thread that brings the link back.

One `Channel` has two users that take turns: the caller while the link is here, the thread while it is away. A request
that got no answer in time is over: its connection is dropped, so a late answer reaches nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Float32
from adc_edge.edge_runtime.choosing.link import LinkTimes, probe_link
from adc_edge.edge_runtime.infer.attempts import Attempts, KnownAddresses
from adc_edge.edge_runtime.infer.models import SplitRequest
from adc_edge.edge_runtime.infer.questions import TrainerQuestions
from adc_edge.errors import AdcEdgeError, LinkError, ProtocolError, SettingError
from adc_edge.wire.channel import Channel, padding_bytes
from adc_edge.wire.connection import ClientKeys, LinkLost, Stopped
from adc_edge.wire.inference_messages import Infer, Logits
from adc_edge.wire.messages import ClassNames, FromTrainer

_PAUSE_S = 0.2  # from one attempt to come back to the next, at least
_ANSWER_MS = 60_000  # a trainer that works for others answers late
_LONGEST_BACK_OFF_S = 30.0  # before a link is used again that has missed each deadline right after it came back

logger = logging.getLogger(__name__)


class HeadReply(NamedTuple):
    """Logits ``[T, classes]`` of a request, and the trainer's own seconds."""

    logits: Float32
    seconds_cloud: float


class TrainerLink:
    """Requests to the head of a trainer.

    Args:
        endpoint: ``tcp://HOST:PORT``.
        digest: of the bundle.
        classes: outputs of the head.
        keys: keys for an encrypted connection.
        stop: asked while waiting; True raises Stopped.
        loopback_alone: connect to no other address, whatever the name resolves to: there are no keys.
        wants_names: whether the trainer is asked for the class names.
    """

    def __init__(
        self,
        endpoint: str,
        digest: str,
        classes: int,
        *,
        keys: ClientKeys | None = None,
        stop: Callable[[], bool] = lambda: False,
        loopback_alone: bool = False,
        wants_names: bool = False,
    ) -> None:
        self._classes, self._asked_to_stop = classes, stop
        self.channel = Channel(
            endpoint,
            keys=keys,
            stop=self._must_stop,
            loopback_alone=loopback_alone,
            body_bytes=self._body_bytes,
            look_up=KnownAddresses(),
        )
        self._questions = TrainerQuestions(self.channel, digest, wants_names)
        self.names: list[str] = []  # class names of the trainer that has answered a request
        self.head_steps = 0  # steps that the head has learned which answered last
        self.beside_whole = False  # a whole model that has learned no steps judges too, so the head must be like it
        self._pending: Infer | None = None
        self._attempt_ends_s: float | None = None  # of the thread's attempt
        self._thread: threading.Thread | None = None
        self._is_back, self._closing = threading.Event(), threading.Event()
        self._misses = 0  # deadlines missed in a row, each right after the link came back
        self._answered = True  # whether a request was answered since then
        self.trouble = self._warned = ""  # why the trainer that is there cannot be used; what was logged of it

    def open(self, wait_s: float | None, up_bytes: int, down_bytes: int) -> LinkTimes:
        """Connect, check that the trainer answers inference with this bundle, and measure the link by pings.

        Args:
            wait_s: how long to try; None: for ever.
            up_bytes: size of the requests.
            down_bytes: size of their answers.

        Raises:
            LinkError: no trainer answers in time.
            SettingError: it trains, or has another bundle.
            RefusedError, Stopped: see ``Channel.open``.
        """
        times = probe_link(self.channel, up_bytes, down_bytes, wait_s)
        with self._lasting():
            self._questions.ask()
            self._questions.check(_ANSWER_MS)
        return times

    def head_seconds(self, request: SplitRequest, times: int) -> float:
        """Return the seconds that the head needs for a request, the least of a few.

        Raises:
            LinkError: the link broke.
            RefusedError, Stopped: see ``ask``.
        """
        with self._lasting():
            return min(self.ask(request, None).seconds_cloud for _ in range(times))

    @property
    def here(self) -> bool:
        """Whether a request can be sent; takes the channel back from the thread if that has brought the link back."""
        if self._thread is not None and self._is_back.is_set():
            self._thread.join()
            self._thread = None
        return self._thread is None

    def ask(self, request: SplitRequest, deadline_s: float | None) -> HeadReply:
        """Return the head's answer to a request.

        Raises:
            LinkLost: the link was lost, or no answer came in time (None: there is no such time).
            RefusedError: the trainer refused.
            Stopped: ``stop`` returned True.
        """
        self._pending = request.message
        end = None if deadline_s is None else time.monotonic() + deadline_s
        self.channel.send(request.message, request.body)
        while True:
            left_ms = None if end is None else max(1.0, 1e3 * (end - time.monotonic()))
            answer, body = self.channel.receive(left_ms)
            if isinstance(answer, Logits) and answer.transfer == request.message.transfer:
                self._misses, self._answered = 0, True
                self._trust(answer)
                logits = np.frombuffer(body, "<f4").reshape(answer.clusters, answer.classes)
                return HeadReply(logits, answer.seconds_cloud)

    def leave(
        self,
        sample: SplitRequest,
        good_enough: Callable[[float], bool],
        limit_s: float,
        every_s: float = _PAUSE_S,
    ) -> None:
        """Give the channel to a thread, which brings the link back.

        Args:
            sample: a request by which the thread tries the link.
            good_enough: told the seconds that its answer took; True: the link may be used again.
            limit_s: seconds that its answer may take.
            every_s: from one attempt to the next, at least.
        """
        assert self._thread is None, "the link is away already"
        self._misses = self._misses + 1 if not self._answered else 0
        self._answered = False
        back_off_s = min(_LONGEST_BACK_OFF_S, 0.25 * 2**self._misses) if self._misses else 0.0
        self._is_back.clear()
        arguments = sample, good_enough, limit_s, every_s, back_off_s
        self._thread = threading.Thread(target=self._bring_back, args=arguments, name="link", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Return whether the link is back, after ``seconds`` at most."""
        self._is_back.wait(seconds)
        return self.here

    def close(self) -> None:
        """End the thread, and close every socket."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.channel.close()

    def _bring_back(
        self,
        sample: SplitRequest,
        good_enough: Callable[[float], bool],
        limit_s: float,
        every_s: float,
        back_off_s: float,
    ) -> None:
        attempts = Attempts(1e-3 * live.rtt_ms if (live := self.channel.tcp()) else 0.0)
        self.channel.disconnect()
        pause_s = back_off_s
        while not self._closing.wait(pause_s):
            pause_s, began = every_s, time.monotonic()
            limits = attempts.begin()
            self._attempt_ends_s = began + sum(limits)
            try:
                took = self._connected(sample, limit_s, limits.connect_s)
                self.trouble = self._warned = ""
                self._attempt_ends_s = None
                if good_enough(took):
                    self._is_back.set()
                    return
                pause_s = max(every_s, 50 * took)  # trying takes a fiftieth of the link
            except (LinkLost, Stopped) as error:
                attempts.fail(in_time=isinstance(error, LinkLost))
                self.trouble = ""
                pause_s = max(0.0, began + every_s - time.monotonic())
            except AdcEdgeError as error:  # another trainer is there, for example
                self._tell(error)
                pause_s = max(every_s, 1.0)
            self._attempt_ends_s = None

    def _connected(self, sample: SplitRequest, limit_s: float, connect_s: float) -> float:
        """Connect once, and return the seconds of a request."""
        took: list[float] = []
        self.channel.connect(lambda: took.append(self._try_sample(sample, limit_s)), connect_s)
        return took[-1]

    def _try_sample(self, sample: SplitRequest, limit_s: float) -> float:
        """Return the seconds of a request on a new connection.

        It is sent with the questions to the trainer, unless that was no trainer to use at the last attempt: each round
        trip less brings the link back sooner.
        """
        self._questions.ask()
        doubtful, start = bool(self.trouble), time.monotonic()
        if not doubtful:
            self._send_sample(sample)
        self._questions.check(None)  # until the attempt ends
        self._attempt_ends_s = None  # the trainer is there, and the request has the time that it needs
        if doubtful:
            start = time.monotonic()
            self._send_sample(sample)
        answer, _ = self.channel.receive(1e3 * limit_s)
        if not isinstance(answer, Logits):
            raise LinkLost(f"a {type(answer).__name__} instead of logits")
        took = time.monotonic() - start
        if self.beside_whole and answer.head_step:
            raise SettingError(
                f"the head at {self.channel.endpoint} has learned {answer.head_step} steps, the whole model here none",
                "two that judge alike",
                "merge the run with its head, export the result with --whole, and use that bundle on both sides",
            )
        self._trust(answer)
        return took

    def _send_sample(self, sample: SplitRequest) -> None:
        self._pending = sample.message
        self.channel.send(sample.message, sample.body)

    def _trust(self, answer: Logits) -> None:
        """Take over what the trainer has told: its head fits this trunk."""
        self.names, self.head_steps = self._questions.names, answer.head_step

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        """Raise LinkError where the link breaks within the block."""
        try:
            yield
        except LinkLost as lost:
            received = f"the link to {self.channel.endpoint} broke ({lost})"
            raise LinkError(received, "a link that lasts", "try again") from None

    def _tell(self, error: AdcEdgeError) -> None:
        self.trouble = error.received
        if error.received != self._warned:
            self._warned = error.received
            logger.warning("%s", error.received)

    def _must_stop(self) -> bool:
        ends = self._attempt_ends_s
        return self._asked_to_stop() or self._closing.is_set() or (ends is not None and time.monotonic() > ends)

    def _body_bytes(self, message: FromTrainer) -> int:
        """Body size of an answer; raises ProtocolError for logits that do not fit the request."""
        if isinstance(message, ClassNames):
            return message.body_bytes
        if not isinstance(message, Logits):
            return padding_bytes(message)
        rows = self._pending.clusters if self._pending is not None else 0
        if (message.clusters, message.classes, message.body_bytes) != (rows, self._classes, 4 * rows * self._classes):
            received = f"logits [{message.clusters}, {message.classes}] in {message.body_bytes} bytes"
            raise ProtocolError(received, f"[{rows}, {self._classes}] in float32", "use one version", "size")
        return message.body_bytes
