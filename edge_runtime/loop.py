"""A step on the device: forward, send, recompute while it travels, receive, backward, refresh; and evaluation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from adc_edge.channel import DeviceChannel
from adc_edge.edge_runtime.engine import Engine, Sent
from adc_edge.edge_runtime.tally import Evaluation, StepRecord
from adc_edge.errors import ProtocolError
from adc_edge.framing import Body
from adc_edge.labels import label_triples
from adc_edge.loader import Batch, Loader
from adc_edge.precision import Precision, decode, encode, encoded_bytes
from adc_edge.protocol import Evaluate, Evaluated, Gradient, Message, Step
from adc_edge.ratio import Shape

if TYPE_CHECKING:  # the shim needs torch, which a frozen device lacks
    from adc_edge.edge_runtime.shim import Shim


class StepSettings(msgspec.Struct, frozen=True):
    """What every step of a run shares."""

    session: int
    shape: Shape
    prefix: int
    classes: int
    precision: Precision
    planned_steps: int
    drift_every: int = 0


class DeviceLoop:
    """Runs steps and evaluations; owns no weights and no files.

    Args:
        engine: entered.
        shim: trains the trunk; None when it is frozen.
        loader: of the training split.
        channel: opened.
        settings: see StepSettings.
    """

    def __init__(
        self, engine: Engine, shim: Shim | None, loader: Loader, channel: DeviceChannel, settings: StepSettings
    ) -> None:
        self.engine, self.shim, self.loader, self.channel, self.settings = engine, shim, loader, channel, settings
        self._transfer = 0
        self._expected: tuple[int, ...] = (0,)
        self._totals = channel.totals()
        self.down_mbit_s: float | None = None

    def step(self, step: int) -> StepRecord:
        """One step, from images to new weights.

        Raises:
            Stopped: asked to stop while waiting; the step is dropped, nothing has changed here.
            LinkError, RefusedError, ProtocolError: see DeviceChannel.
        """
        settings = self.settings
        start = time.monotonic()
        batch = self.loader.batch(step)
        seeds = self.loader.seeds(step, settings.shape.clusters)
        loaded = time.monotonic()
        sent = self.engine.compress(batch.images, seeds, settings.shape.kept - settings.prefix)
        message, body = self._pack(step, batch, sent)
        forward = time.monotonic()
        self.channel.submit(message, body)
        if self.shim is not None and not self.engine.keeps_graph:
            self.shim.recompute(batch.images, sent)
        recomputed = time.monotonic()
        gradient, answer = self._gradient(step)
        arrived = self._arrival(forward)
        back = time.monotonic()
        drift = self._drift(step, sent)
        if self.shim is not None:
            self.shim.apply(decode(answer, self._expected, gradient.precision), step, settings.planned_steps)
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
            answer, _ = self.channel.result()
            if not isinstance(answer, Evaluated) or (answer.step, answer.part) != (step, part):
                raise _unexpected(answer, "the evaluation's answer")
            images, correct, loss = images + answer.images, correct + answer.correct, loss + answer.loss_sum
        share = (correct / images, loss / images) if images else (float("nan"), float("nan"))
        return Evaluation(step, images, *share), *self._bytes()

    def gradient_bytes(self, gradient: Gradient) -> int:
        """Size that a Gradient's body must have, for the channel's check before it allocates."""
        return 0 if self.shim is None else encoded_bytes(self._expected, gradient.precision)

    def _pack(self, step: int, batch: Batch, sent: Sent) -> tuple[Message, Body]:
        settings = self.settings
        triples = label_triples(sent.assignment, batch.labels, settings.classes)
        body = encode(sent.activations, settings.precision) + triples.tobytes()
        self._expected = sent.activations.shape
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
        )
        return message, body

    def _gradient(self, step: int) -> tuple[Gradient, memoryview]:
        answer, body = self.channel.result()
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
