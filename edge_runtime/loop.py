"""A step on the device (forward, send, recompute while it travels, receive, backward, refresh), and evaluation."""

from __future__ import annotations

import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from adc_edge.arrays import Body, Float32, Labels
from adc_edge.codec.precision import Precision, encode
from adc_edge.data.loader import Batch, Loader
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.noise import NoisyCodec
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.edge_runtime.stopwatch import Stopwatch
from adc_edge.edge_runtime.tally import Evaluation, StepRecord, Tally, summed
from adc_edge.edge_runtime.trunk.refresher import Refresher
from adc_edge.errors import ProtocolError
from adc_edge.method.compressed import CompressedBatch
from adc_edge.method.labels import label_triples
from adc_edge.planning.message_sizes import evaluation_images
from adc_edge.planning.passive import LATE_MS, LinkEstimate, RateSample
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.wire.headers import pack_header
from adc_edge.wire.messages import Evaluate, Evaluated, Gradient, HeadKept, KeepHead, Step

if TYPE_CHECKING:  # the shim needs torch, which a frozen device lacks
    from adc_edge.edge_runtime.trunk.trainer import Shim


_TRANSFER_BITS = 62


class _InFlight(NamedTuple):
    """A micro-batch whose gradient has not arrived yet."""

    number: int
    images: Float32
    sent: CompressedBatch


class DeviceLoop:
    """Runs steps and evaluations; owns no weights and no files.

    Args:
        engine: computes what is sent; it is entered.
        shim: trains the trunk; None if the trunk is frozen, also from a step on (`frozen/freezing.py`).
        refresher: gives the engine the shim's weights; None likewise.
        loader: loads the training split.
        session: carries the messages.
        journal: keeps the messages of the session.
        settings: see StepSettings.
    """

    def __init__(
        self,
        engine: Engine,
        shim: Shim | None,
        refresher: Refresher | None,
        loader: Loader,
        session: DeviceSession,
        journal: Journal,
        settings: StepSettings,
    ) -> None:
        self.engine, self.shim, self.refresher = engine, shim, refresher
        self.loader, self.session, self.settings, self._journal = loader, session, settings, journal
        self._transfer = secrets.randbits(_TRANSFER_BITS)  # random: no process continues another one's message
        self._shapes: dict[int, tuple[int, ...]] = {}  # of the activations, for each micro-batch
        self._codec = NoisyCodec(settings.noise, settings.seed)
        self._totals = session.channel.totals()
        self.link = LinkEstimate()
        self._down: RateSample | None = None  # of the last answer
        self._answered = False  # since the link was measured
        self._up_arrival: float | None = None  # rate at which the last message came to the trainer
        self.trouble: OSError | None = None  # why a message of the last step is not in the journal

    def step(self, step: int, durable: int | None) -> StepRecord:
        """Do one step, from images to new weights, with its micro-batches in a pipeline.

        Every micro-batch is sent as soon as the engine has computed it and the window allows. Micro-batches in flight
        are recomputed meanwhile, so at most ``window`` graphs are held. Gradients are taken in order, so their sum has
        the same bits in whatever order they arrive.

        Args:
            step: number of the step.
            durable: the oldest step that this device may come back to; None: it keeps nothing.

        Raises:
            Stopped: asked to stop while waiting; the step is dropped and no weight has changed.
            Behind, LinkError, RefusedError, ProtocolError: see DeviceSession.
        """
        settings, watch = self.settings, Stopwatch()
        self.trouble = None
        with watch.phase("data"):
            batch = self.loader.batch(step)
        in_flight: deque[_InFlight] = deque()
        for micro_batch in range(settings.micro_batches):
            if len(in_flight) == settings.window:
                self._finish(step, in_flight, watch)
            in_flight.append(self._begin(step, micro_batch, batch, durable, watch))
        while in_flight:
            self._finish(step, in_flight, watch)
        if self.shim is not None and self.refresher is not None:
            with watch.phase("backward"):
                self.shim.update(step, settings.run_steps or settings.planned_steps)
                if self.refresher.due(step):
                    self.refresher.now()
        up, down = self.new_bytes()
        return watch.record(step, up, down)

    def _begin(self, step: int, micro_batch: int, batch: Batch, durable: int | None, watch: Stopwatch) -> _InFlight:
        """Compress a micro-batch and send it."""
        settings = self.settings
        size = settings.shape.images
        rows = slice(micro_batch * size, (micro_batch + 1) * size)
        part = Batch(batch.images[rows], batch.labels[rows])
        with watch.phase("forward"):
            init_rows = self.loader.init_rows(step, settings.shape.clusters, size, micro_batch)
            sent = self.engine.compress(part.images, init_rows, settings.shape.kept - settings.prefix)
        with watch.phase("encode"):
            message, body = self._pack(step, micro_batch, part, sent, durable)
        with watch.phase("send"):
            watch.departed()
            self.session.submit(message, body)
            self._keep(message, body)
        return _InFlight(micro_batch, part.images, sent)

    def _finish(self, step: int, in_flight: deque[_InFlight], watch: Stopwatch) -> None:
        """Recompute the micro-batches in flight, take the oldest one's gradient, and backpropagate it."""
        if self.shim is not None and not self.engine.keeps_graph:
            with watch.phase("recompute"):
                for part in list(in_flight)[self.shim.waiting :]:
                    self.shim.recompute(part.images, part.sent)
        part = in_flight.popleft()
        with watch.phase("wait"):
            gradient, answer = self._gradient(step, part.number)
        watch.answered(gradient, self._arrival())
        watch.drift(self._drift(step, part.sent))
        if self.shim is not None:
            with watch.phase("decode"):
                received = self._received(answer, gradient, step)
            with watch.phase("backward"):
                self.shim.backward(received)

    def evaluate(self, step: int, loader: Loader, limit: int, precision: Precision) -> tuple[Evaluation, int, int]:
        """Evaluate the test split with nothing merged or dropped; also returns the bytes sent up and down."""
        answers: list[Evaluated] = []
        sizes: list[int] = []
        for part, indices in enumerate(self.evaluation_parts(loader, limit)):
            outputs, labels = self._full_outputs(loader, indices)
            if not len(labels):
                continue
            body = encode(outputs, precision, labels.astype("<i4").tobytes())
            self._transfer += 1
            sizes.append(len(labels))
            if self.session.in_flight:  # this part was computed while the one before travelled
                answers.append(self._evaluated())
            self.session.submit(
                Evaluate(self.settings.session, step, part, self._transfer, len(body), len(labels), precision),
                body,
            )
        if self.session.in_flight:
            answers.append(self._evaluated())
        return summed(step, answers, sizes, precision), *self.new_bytes()

    def evaluation_parts(self, loader: Loader, limit: int) -> list[npt.NDArray[np.int64]]:
        """Return the images of each message of an evaluation."""
        welcome, shape = self.session.welcome, self.settings.shape
        if welcome is None or welcome.max_images is UNSET:
            return loader.sample(limit)
        size = evaluation_images(shape.tokens, self.settings.dim, loader.batch_size, welcome.max_images)
        return loader.sample(limit, size)

    def _full_outputs(self, loader: Loader, indices: npt.NDArray[np.int64]) -> tuple[Float32, Labels]:
        """The trunk's output ``[B, N, D]`` and the labels of these images, computed a batch at a time."""
        outputs = np.empty((len(indices), self.settings.shape.tokens, self.settings.dim), np.float32)
        labels: list[Labels] = []
        count = 0
        for part in np.split(indices, range(loader.batch_size, len(indices), loader.batch_size)):
            batch = loader.plain(part)  # without those that cannot be read
            if len(batch.labels):
                outputs[count : count + len(batch.labels)] = self.engine.full_output(batch.images)
                labels.append(batch.labels)
                count += len(batch.labels)
        return outputs[:count], np.concatenate(labels) if labels else np.empty(0, np.int64)

    def _evaluated(self) -> Evaluated:
        answer, _ = self.session.result(self.settings.outage_s)
        if not isinstance(answer, Evaluated):
            raise _unexpected(answer, "the evaluation's answer")
        return answer

    def keep_head(self, step: int, held: int | None) -> str:
        """Have the trainer keep its head of ``step``, and that of ``held``; returns why it has not, or nothing."""
        self.session.submit(KeepHead(self.settings.session, step, held))
        answer, _ = self.session.result(self.settings.outage_s)
        if not isinstance(answer, HeadKept):
            raise _unexpected(answer, "the kept head")
        return answer.fault

    def measure_link(self, tally: Tally) -> None:
        """Note what the kernels at both ends and the last messages tell of the link, in the estimate and in a tally."""
        tcp, fresh = self.session.channel.tcp(), self._answered
        self._answered = False
        if tcp is None or not fresh:  # the figures of the last step were noted
            return
        up = self.link.up.add(RateSample(tcp.delivery_mbit_s, tcp.app_limited, self._up_arrival))
        down = None if self._down is None else self.link.down.add(self._down)
        self.link.round_trip(tcp.rtt_min_ms)
        tally.link(tcp.rtt_ms, up, down, tcp.rtt_min_ms)

    def new_bytes(self) -> tuple[int, int]:
        """Bytes sent and received since the last step, evaluation or call of this."""
        before, self._totals = self._totals, self.session.channel.totals()
        up, down = np.subtract(self._totals, before)
        return int(up), int(down)

    def _pack(
        self, step: int, micro_batch: int, batch: Batch, sent: CompressedBatch, durable: int | None
    ) -> tuple[Step, Body]:
        settings = self.settings
        triples = label_triples(sent.assignment, batch.labels, settings.classes)
        self._shapes[micro_batch] = sent.activations.shape
        place = step * settings.micro_batches + micro_batch
        body = self._codec.encode(sent.activations, settings.precision, place, triples.tobytes())
        self._transfer += 1
        clusters, kept, _ = sent.activations.shape
        message = Step(
            session=settings.session,
            step=step,
            micro_batch=micro_batch,
            transfer=self._transfer,
            body_bytes=len(body),
            images=len(batch.labels),
            clusters=clusters,
            kept=kept,
            triples=len(triples),
            precision=settings.precision,
            gradient=None if self.shim is None else settings.gradient_precision,
            durable=durable,
            micro_batches=settings.micro_batches if settings.varies else UNSET,
        )
        return message, body

    def _keep(self, message: Step, body: Body) -> None:
        """Write a message to the journal while it travels."""
        if not self.session.trainer_keeps:
            return
        try:
            self._journal.append(JournalKey(message.step, message.micro_batch), pack_header(message), body)
        except OSError as error:  # the run goes on; a trainer that comes back older may now lack this step
            self.trouble = error

    def _received(self, answer: memoryview, gradient: Gradient, step: int) -> Float32:
        place = step * self.settings.micro_batches + gradient.micro_batch
        return self._codec.decode(answer, self._shapes[gradient.micro_batch], gradient.precision, place)

    def _gradient(self, step: int, micro_batch: int) -> tuple[Gradient, memoryview]:
        answer, body = self.session.result(self.settings.outage_s)
        if not isinstance(answer, Gradient) or (answer.step, answer.micro_batch) != (step, micro_batch):
            raise _unexpected(answer, f"the gradient of micro-batch {micro_batch} of step {step}")
        if answer.down_mbit_s is not None:
            tcp = self.session.channel.tcp()
            in_time = answer.body_bytes > 0 and tcp is not None and tcp.last_received_ms <= LATE_MS
            arrival = self.session.channel.inbox.arrival_mbit_s if in_time else None
            self._down = RateSample(answer.down_mbit_s, answer.down_app_limited is True, arrival)
        self._answered = True
        self._up_arrival, self.link.share = answer.up_mbit_s or None, answer.share or None
        return answer, body

    def _arrival(self) -> float:
        """The time at which the answer's last byte arrived, which may be before it was asked for."""
        tcp, now = self.session.channel.tcp(), time.monotonic()
        return now - tcp.last_received_ms / 1e3 if tcp else now

    def _drift(self, step: int, sent: CompressedBatch) -> float | None:
        if self.shim is None or self.refresher is None:
            return None
        every = self.settings.drift_every
        stale = self.refresher.every > 1 and self.refresher.due(step)  # the last step with old weights drifts most
        return self.shim.drift(sent) if stale or (every and step % every == 0) else None


def _unexpected(answer: object, expected: str) -> ProtocolError:
    return ProtocolError(
        f"a {type(answer).__name__}", expected, "install the same version of adc-edge on both sides", "order"
    )
