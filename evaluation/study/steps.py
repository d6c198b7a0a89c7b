"""The steps of a run, each with a real message body each way while device and trainer speak."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adc_edge.codec.by_epoch import PrecisionsByEpoch
from adc_edge.data.loader import Batch, Loader
from adc_edge.errors import ProtocolError
from adc_edge.evaluation.codecs.base import CodecBatch, EncodedBatch
from adc_edge.evaluation.fleet.devices import StudyDevices, turn_of
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.sent_once import FrozenPhase
from adc_edge.evaluation.study.split_model import SplitModel, computing
from adc_edge.evaluation.study.wire import Wire

_CHANCE = 7  # random stream of a step, apart from the loader's


class StudySteps:
    """The steps of a fleet of devices, or of one device whose trunk freezes.

    Args:
        devices: trunks, head, codecs and images.
        study: the number format.
        frozen: the phase after the trunk is frozen; None: it never is.
        by_epoch: precisions of each epoch; a device counts its own, as in `serve`.
    """

    def __init__(
        self, devices: StudyDevices, study: Study, frozen: FrozenPhase | None, by_epoch: PrecisionsByEpoch
    ) -> None:
        self._devices, self._study, self._frozen, self._by_epoch = devices, study, frozen, by_epoch

    def begin(self, step: int, wire: Wire) -> None:
        """Begin at ``step``: devices ask for their trunk, or what a frozen trunk sent before fills the store again.

        Of the latter no byte is counted: the totals of the run that goes on have them already.
        """
        if not step:
            self._devices.ask(wire)
        elif self._frozen is not None:
            self._frozen.fill(step, self._sent_before)

    def make(self, step: int, wire: Wire, planned: int) -> float:
        """Make one step on both sides, and return the loss.

        Raises:
            ProtocolError: the loss is not finite (code ``nan``).
        """
        if self._frozen is not None and step >= self._frozen.alone_from:
            return self._alone(self._frozen, step, planned)
        return self._exchange(step, wire, planned)

    def _exchange(self, step: int, wire: Wire, planned: int) -> float:
        """Make a step in which the device sends."""
        devices, study = self._devices, self._study
        turn = turn_of(devices.fleet, step)
        parts, loader = devices.parts[turn.device], devices.loaders[turn.device]
        keeps = self._frozen if self._frozen is not None and step >= self._frozen.first_step else None
        trains = devices.trains and keeps is None
        codec = parts.codec
        for module in (parts.trunk, parts.head, codec.device, codec.trainer):
            if module is not None:
                module.train()
        if keeps is not None:
            parts.trunk.eval()  # it computes as in an evaluation: what is kept must not depend on chance
        batch = loader.batch(turn.step) if keeps is None else keeps.images(step)
        sent = self._compressed(parts, batch, loader, turn.step, trains=trains)
        back = codec.gradient_precision if trains else None
        body = wire.up(sent.header, sent.body, back, turn.step)
        with computing(study):
            arrived = codec.extract(sent.header, body)
        if keeps is not None:
            keeps.keep(arrived.features, arrived.soft)
        value = self._backward(parts, arrived.features, arrived.soft, step)
        assert arrived.values.grad is not None
        encoded = codec.compress_gradient(arrived, arrived.values.grad) if trains else memoryview(b"")
        body = wire.down(encoded, codec.gradient_precision, turn.step, value)
        trunk, head = parts.optimizers
        if trains:
            sent.tensor.backward(codec.extract_gradient(sent, body))  # type: ignore[no-untyped-call]
            trunk.step(turn.step, -(-planned // devices.fleet.devices))
        head.step(step, planned)
        devices.stepped(turn)
        return value

    def _alone(self, frozen: FrozenPhase, step: int, planned: int) -> float:
        """Make a step of the head on what the trainer has kept."""
        parts = self._devices.parts[0]
        features, soft = frozen.batch(step, parts.trunk.spec.prefix)
        parts.head.train()
        value = self._backward(parts, features.to(parts.place), soft, step)
        parts.optimizers[1].step(step, planned)
        return value

    def _sent_before(self, step: int) -> tuple[Tensor, Tensor]:
        assert self._frozen is not None, "only a frozen trunk's activations can be had again"
        parts = self._devices.parts[0]
        parts.trunk.eval()
        sent = self._compressed(parts, self._frozen.images(step), self._devices.loaders[0], step, trains=False)
        with computing(self._study):
            arrived = parts.codec.extract(sent.header, sent.body)
        return arrived.features, arrived.soft

    def _compressed(self, parts: SplitModel, batch: Batch, loader: Loader, step: int, trains: bool) -> EncodedBatch:
        """Run trunk and codec on the images of a step of a device, in the precisions of its epoch."""
        codec, by_epoch = parts.codec, self._by_epoch
        if by_epoch.changes:
            codec.precision, codec.gradient_precision = by_epoch.of_step(step, loader.steps_per_epoch)
        images = torch.from_numpy(batch.images).to(parts.place)
        rng = np.random.default_rng([loader.seed, _CHANCE, step])
        with computing(self._study), torch.set_grad_enabled(trains):
            return parts.codec.compress(parts.trunk, CodecBatch(images, batch.labels, rng))

    def _backward(self, parts: SplitModel, features: Tensor, soft: Tensor, step: int) -> float:
        """Compute the head's gradients on features ``[R, k, D]`` with soft labels ``[R, C]``; return the loss."""
        with computing(self._study):
            logits = parts.head(features)
        loss = F.cross_entropy(logits.float(), soft)
        value = loss.item()
        if not np.isfinite(value):
            raise ProtocolError(
                f"a loss of {value} in step {step}", "a finite loss", "lower --lr or set --clip-norm", "nan"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return value
