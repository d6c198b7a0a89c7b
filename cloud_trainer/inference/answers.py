"""Answers to Infer, and to nothing of a training: what a trainer started with ``--serve-only`` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from msgspec import UNSET

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.codec.on_device import decode_to
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.errors import ProtocolError
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.halves import HalfState
from adc_edge.wire.class_names import pack_names
from adc_edge.wire.inference_messages import Infer, LearnedTrunk, Logits
from adc_edge.wire.link_messages import Bulk, Ping
from adc_edge.wire.messages import BUNDLE_DIGITS, ClassNames, FromDevice, FromTrainer

_FIT = (
    "on the device name the run that trained with this head: infer --weights RUN; or join both halves with "
    "`adc-edge merge`, export the result and use that bundle on both sides"
)


class Inference:
    """Inference on a trainer that trains: every Infer is refused, and other messages are left to the caller."""

    about: ClassVar[dict[str, Any]] = {}  # for a Pong

    def body_bytes(self, message: FromDevice, limits: MessageLimits) -> int | None:
        """Return the size of the body of a message that is answered here; None: it is another's.

        Raises:
            ProtocolError: the message is refused.
        """
        if isinstance(message, Infer):
            raise ProtocolError(
                "an Infer, and this trainer trains",
                "a trainer that only answers inference",
                "start one with: adc-edge trainer --serve-only",
                "order",
            )
        return None

    def answer(self, message: FromDevice, body: memoryview) -> tuple[FromTrainer, Body] | None:
        """Return the answer to such a message; None: it is another's."""
        return None


class HeadInference(Inference):
    """Inference with a head that does not learn.

    Args:
        bundle: the bundle that every device must have.
        training: the head.
        state: what the head has learned; frozen: with the bundle's trunk alone.
        names: class names in the order of the outputs; none: they are not known.
    """

    about: ClassVar[dict[str, Any]] = {"infers": True}

    def __init__(self, bundle: Bundle, training: HeadTraining, state: HalfState, names: Sequence[str]) -> None:
        self._bundle, self._training, self._state = bundle, training, state
        self._names = pack_names(names)
        self.requests = self.rows = 0  # answered so far; a row is an image or a cluster of them
        self.seconds = 0.0

    def body_bytes(self, message: FromDevice, limits: MessageLimits) -> int | None:
        """Return as ``Inference`` does; whatever trains is refused, before memory is allocated for it."""
        if isinstance(message, Ping | Bulk):
            return None
        if isinstance(message, ClassNames):
            return message.body_bytes
        if not isinstance(message, Infer):
            raise ProtocolError(
                f"a {type(message).__name__} of a training, and this trainer does not train (--serve-only)",
                "requests of `adc-edge infer`",
                "to train, start the trainer without --serve-only",
                "order",
            )
        self._check_bundle(message)
        self._check_trunk(message)
        return limits.infer_bytes(message)

    def answer(self, message: FromDevice, body: memoryview) -> tuple[FromTrainer, Body] | None:
        """Return as ``Inference`` does.

        Raises:
            ProtocolError: code ``nan``: the activations or the logits are not finite.
        """
        if isinstance(message, ClassNames):
            return ClassNames(message.session, message.transfer, len(self._names)), self._names
        if not isinstance(message, Infer):
            return None
        start = time.monotonic()
        shape = message.clusters, message.kept, self._bundle.manifest.dim
        activations = decode_to(self._training.device, body, shape, message.precision)
        logits = self._training.logits(activations).cpu().numpy().astype("<f4", copy=False)
        if not np.isfinite(logits).all():
            raise ProtocolError("logits that are not finite", "finite ones", "check the weights of both halves", "nan")
        seconds = time.monotonic() - start
        self.requests, self.rows, self.seconds = self.requests + 1, self.rows + len(logits), self.seconds + seconds
        data = np.ascontiguousarray(logits).view(np.uint8).reshape(-1).data
        rows, classes = logits.shape
        return Logits(message.transfer, len(data), rows, classes, seconds, self._state.steps, message.session), data

    def _check_bundle(self, message: Infer) -> None:
        ours = self._bundle.digest[:BUNDLE_DIGITS]
        if message.bundle is not UNSET and message.bundle != ours:
            raise ProtocolError(
                f"bundle {message.bundle[:BUNDLE_DIGITS]}…",
                f"bundle {ours}…, {self._bundle.manifest.model} split {self._bundle.manifest.split}",
                "copy the trainer's bundle to the device",
                "bundle",
            )

    def _check_trunk(self, message: Infer) -> None:
        """Raise ProtocolError, code ``history``, unless trunk and head have learned the same steps together."""
        state, trunk = self._state, message.trunk
        if trunk is UNSET:
            if state.steps and not state.frozen:
                received = f"the bundle's trunk, and this head has learned {state.steps} steps"
                raise ProtocolError(received, "the trunk that has learned with it", _FIT, "history")
        elif not _fits(trunk, state):
            known = state.learned.get(trunk.session)
            expected = "a session that this head has learned with" if known is None else f"step {known} of that session"
            received = f"a trunk of step {trunk.step} of session {trunk.session:016x}"
            raise ProtocolError(received, expected, _FIT, "history")


def _fits(trunk: LearnedTrunk, state: HalfState) -> bool:
    step = state.learned.get(trunk.session)
    if trunk.frozen:
        return step is not None or not state.steps or state.frozen
    return step == trunk.step or (trunk.final and step is not None and step > trunk.step)
