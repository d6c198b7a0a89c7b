"""A step on the device: forward, send, recompute while it travels, receive, backward, refresh; and evaluation."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from adc_edge import noise
from adc_edge.device_channel import DeviceChannel
from adc_edge.edge_runtime.engine import Engine, Sent
from adc_edge.edge_runtime.tally import Evaluation, StepRecord
from adc_edge.errors import ProtocolError
from adc_edge.framing import Body
from adc_edge.journal import Journal, Key
from adc_edge.labels import label_triples
from adc_edge.loader import Batch, Loader
from adc_edge.noise import NoiseSettings
from adc_edge.precision import Float32, Precision, decode, encode, encoded_bytes
from adc_edge.protocol import Evaluate, Evaluated, Gradient, Step, pack
from adc_edge.ratio import Shape

if TYPE_CHECKING:  # the shim needs torch, which a frozen device lacks
    from adc_edge.edge_runtime.shim import Shim


_TRANSFER_BITS = 62


class StepSettings(msgspec.Struct, frozen=True):
    """What every step of a run shares."""

    session: int
    shape: Shape
    prefix: int
    classes: int
    precision: Precision
    planned_steps: int
    drift_every: int = 0
    noise: NoiseSettings = NoiseSettings()
    seed: int = 0  # of the noise
    outage_s: float | None = None  # how long to wait for a trainer that went away


class DeviceLoop:
    """Runs steps and evaluations; owns no weights and no files.

    Args:
        engine: entered.
        shim: trains the trunk; None when it is frozen.
        loader: of the training split.
        channel: opened.
        journal: the channel's.
        settings: see StepSettings.
    """

    def __init__(
        self,
        engine: Engine,
        shim: Shim | None,
        loader: Loader,
        channel: DeviceChannel,
        journal: Journal,
        settings: StepSettings,
    ) -> None:
        self.engine, self.shim, self.loader, self.channel, self.settings = engine, shim, loader, channel, settings
        self._journal = journal
        self._transfer = secrets.randbits(_TRANSFER_BITS)  # no process continues a message that another one began
        self._expected: tuple[int, ...] = (0,)
        self._totals = channel.totals()
        self.down_mbit_s: float | None = None
        self.trouble: OSError | None = None  # why the last step is not in the journal

    def step(self, step: int, durable: int) -> StepRecord:
        """One step, from images to new weights.

        Args:
            step: its number.
            durable: the oldest step that this device may come back to.

        Raises:
            Stopped: asked to stop while waiting; the step is dropped, nothing has changed here.
            Behind, LinkError, RefusedError, ProtocolError: see DeviceChannel.
        """
        settings = self.settings
        start = time.monotonic()
        batch = self.loader.batch(step)
        seeds = self.loader.seeds(step, settings.shape.clusters)
        loaded = time.monotonic()
        sent = self.engine.compress(batch.images, seeds, settings.shape.kept - settings.prefix)
        message, body = self._pack(step, batch, sent, durable)
        forward = time.monotonic()
        self.channel.submit(message, body)
        self._keep(step, message, body)
        if self.shim is not None and not self.engine.keeps_graph:
            self.shim.recompute(batch.images, sent)
        recomputed = time.monotonic()
        gradient, answer = self._gradient(step)
        arrived = self._arrival(forward)
        back = time.monotonic()
        drift = self._drift(step, sent)
        if self.shim is not None:
            self.shim.apply(self._received(answer, gradient.precision, step), step, settings.planned_steps)
            self.engine.refresh(self.shim.weights())
        end = time.monotonic()
        up, down = self._bytes()
        return StepRecord(
            step=step,
            loss=gradient.loss,
            accuracy=gradient.accuracy,
            bytes_up=up,
            bytes_down=down,
            seconds=end - start,
            seconds_data=loaded - start,
            seconds_forward=forward - loaded,
            seconds_recompute=recomputed - forward,
            seconds_link=max(0.0, arrived - forward - gradient.seconds_cloud),
            seconds_cloud=gradient.seconds_cloud,
            seconds_backward=end - back,
            drift=drift,
        )

    def evaluate(self, step: int, loader: Loader, limit: int, precision: Precision) -> tuple[Evaluation, int, int]:
        """The test split through both halves, nothing merged or dropped; with the bytes it took up and down."""
        images = correct = 0
        loss = 0.0
        for part, indices in enumerate(loader.sample(limit)):
            batch = loader.plain(indices)
            if not len(batch.labels):
                continue
            body = encode(self.engine.whole(batch.images), precision) + batch.labels.astype("<i4").tobytes()
            self._transfer += 1
            self.channel.submit(
                Evaluate(self.settings.session, step, part, self._transfer, len(body), len(batch.labels), precision),
                body,
            )
            answer, _ = self.channel.result(self.settings.outage_s)
            if not isinstance(answer, Evaluated) or (answer.step, answer.part) != (step, part):
                raise _unexpected(answer, "the evaluation's answer")
            images, correct, loss = images + answer.images, correct + answer.correct, loss + answer.loss_sum
        share = (correct / images, loss / images) if images else (float("nan"), float("nan"))
        return Evaluation(step, images, *share), *self._bytes()

    def rewound(self) -> None:
        """The weights have been set back to a checkpoint's: the engine must know."""
        if self.shim is not None:
            self.engine.refresh(self.shim.weights())

    def gradient_bytes(self, gradient: Gradient) -> int:
        """Size that a Gradient's body must have, for the channel's check before it allocates."""
        return 0 if self.shim is None else encoded_bytes(self._expected, gradient.precision)

    def _pack(self, step: int, batch: Batch, sent: Sent, durable: int) -> tuple[Step, Body]:
        settings = self.settings
        triples = label_triples(sent.assignment, batch.labels, settings.classes)
        self._expected = sent.activations.shape
        body = self._encoded(sent, step) + triples.tobytes()
        self._transfer += 1
        clusters, kept, _ = sent.activations.shape
        message = Step(
            session=settings.session,
            step=step,
            micro_batch=0,
            micro_batches=1,
            transfer=self._transfer,
            body_bytes=len(body),
            images=len(batch.labels),
            clusters=clusters,
            kept=kept,
            triples=len(triples),
            precision=settings.precision,
            gradient=self.shim is not None,
            durable=durable,
        )
        return message, body

    def _keep(self, step: int, message: Step, body: Body) -> None:
        """Journal a step while it travels: one that is killed before has not been done by this device either."""
        try:
            self._journal.append(Key(step), pack(message), body)
            self.trouble = None
        except OSError as error:  # the run goes on; only a trainer that comes back older could now not be fed
            self.trouble = error

    def _encoded(self, sent: Sent, step: int) -> bytes:
        """The activations as they arrive: the noise of the channel model included, if there is one."""
        settings = self.settings
        if not settings.noise.any:
            return encode(sent.activations, settings.precision)
        rng = noise.noise_rng(settings.seed, step, "up")
        clean = encode(noise.awgn(sent.activations, settings.noise.snr_up_db, rng), settings.precision)
        return noise.bit_errors(clean, self._expected, settings.precision, settings.noise.bit_error_rate, rng)

    def _received(self, answer: memoryview, precision: Precision, step: int) -> Float32:
        """The gradient, with the noise of the channel model, if there is one."""
        settings = self.settings
        if not settings.noise.any:
            return decode(answer, self._expected, precision)
        rng = noise.noise_rng(settings.seed, step, "down")
        rate = settings.noise.bit_error_rate
        noisy = noise.bit_errors(bytes(answer), self._expected, precision, rate, rng)
        return noise.awgn(decode(noisy, self._expected, precision), settings.noise.snr_down_db, rng)

    def _gradient(self, step: int) -> tuple[Gradient, memoryview]:
        answer, body = self.channel.result(self.settings.outage_s)
        if not isinstance(answer, Gradient) or answer.step != step:
            raise _unexpected(answer, f"the gradient of step {step}")
        self.down_mbit_s = answer.down_mbit_s
        return answer, body

    def _arrival(self, earliest: float) -> float:
        """When the answer's last byte came, which may be before the recompute was done."""
        now = time.monotonic()
        tcp = self.channel.tcp()
        return max(earliest, now - tcp.last_received_ms / 1e3) if tcp else now

    def _drift(self, step: int, sent: Sent) -> float | None:
        every = self.settings.drift_every
        return self.shim.drift(sent) if self.shim is not None and every and step % every == 0 else None

    def _bytes(self) -> tuple[int, int]:
        before, self._totals = self._totals, self.channel.totals()
        up, down = np.subtract(self._totals, before)
        return int(up), int(down)


def _unexpected(answer: object, expected: str) -> ProtocolError:
    return ProtocolError(f"a {type(answer).__name__}", expected, "use one version on both sides", "order")
