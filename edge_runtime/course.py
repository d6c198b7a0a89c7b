"""The course of a run: the settings of each step. It began with some; recorded decisions change them on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from adc_edge.arrays import Float32
from adc_edge.codec.precision import Precision, decode, encode, encoded_bytes
from adc_edge.data.loader import Loader
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.edge_runtime.tally import StepRecord
from adc_edge.method.ratio import Shape
from adc_edge.planning.follow import Alternative, Change, Follower
from adc_edge.planning.step_model import LinkRates
from adc_edge.storage.decisions import Decision, Decisions
from adc_edge.wire.messages import TRIPLE_BYTES

_PHASES = ("data", "forward", "encode", "send", "recompute", "decode", "backward", "cloud", "cloud_codec")
_ROUNDS = 2

logger = logging.getLogger(__name__)

MessageForm = tuple[Shape, Precision, Precision]  # of a micro-batch, with the precisions of activations and gradients


class Course:
    """The settings of each step.

    Args:
        base: those that the run began with.
        decisions: recorded changes; they hold whether or not this process follows the link.
    """

    def __init__(self, base: StepSettings, decisions: Decisions) -> None:
        self._base, self._decisions = base, decisions
        self._follower: Follower | None = None
        self._trainer_step = 0  # the first step of which the trainer had learned nothing when this process met it

    def at(self, step: int) -> StepSettings:
        """Return the settings of a step."""
        decision = self._decisions.at(step)
        return self._base if decision is None else _changed(self._base, decision)

    def begun_at(self, step: int) -> Decision | None:
        """Return the decision whose first step this is, if there is one."""
        decision = self._decisions.at(step)
        return decision if decision is not None and decision.step == step else None

    @property
    def changes(self) -> int:
        """Number of changes so far."""
        return len(self._decisions)

    def met(self, applied: int, learned: int) -> None:
        """Take the trainer's position: a step that it has begun keeps its settings, whatever is decided now."""
        self._trainer_step = max(self._trainer_step, applied + (learned > 0))

    def follow(self, alternatives: Sequence[Alternative], step: int) -> None:
        """Follow the link from ``step`` on, among ``alternatives``."""
        now = self.at(step)
        current = (now.shape, now.precision, now.gradient_precision)
        places = [place for place, one in enumerate(alternatives) if _form(one) == current]
        if places and len(alternatives) > 1:
            self._follower = Follower(alternatives, places[0], now.micro_batches, now.window)

    def observe(self, record: StepRecord, link: LinkRates | None) -> None:
        """Take a finished step; if another setting pays, record it for the next step.

        Raises:
            OSError: the decision cannot be written; then it does not hold.
        """
        following, now_s = record.step + 1, time.monotonic()
        if self._follower is None or link is None or not self._decisions.may_begin(following, self._trainer_step):
            return
        seconds = {phase: float(getattr(record, f"seconds_{phase}")) for phase in _PHASES}
        change = self._follower.observe(seconds, record.seconds, link, now_s)
        if change is not None:
            self._decisions.add(_decision(following, change))
            self._follower.take(change, now_s)


def alternatives(
    forms: Sequence[MessageForm], engine: Engine, loader: Loader, step: int, settings: StepSettings
) -> list[Alternative]:
    """Return the forms with the bytes and the codec's seconds of their messages, measured on a batch of this run.

    Args:
        forms: what the run may take.
        engine: entered.
        loader: of the training images.
        step: whose batch is taken.
        settings: of a step.
    """
    images = loader.batch(step).images[: settings.shape.images]
    sent: dict[Shape, Float32] = {}
    found = []
    for shape, up, down in forms:
        if shape not in sent:
            init_rows = loader.init_rows(step, shape.clusters, shape.images)
            sent[shape] = engine.compress(images, init_rows, shape.kept - settings.prefix).activations
        there, here = _codec_seconds(sent[shape], up), _codec_seconds(sent[shape], down)
        size = (shape.clusters, shape.kept, settings.dim)
        found.append(
            Alternative(
                shape,
                up,
                down,
                bytes_up=encoded_bytes(size, up) + TRIPLE_BYTES * shape.images,
                bytes_down=encoded_bytes(size, down),
                codec_seconds=there[0] + here[1],
                trainer_codec_seconds=there[1] + here[0],
            )
        )
    return found


def _codec_seconds(x: Float32, precision: Precision) -> tuple[float, float]:
    """Seconds to encode and to decode a tensor."""
    times = []
    for _ in range(_ROUNDS):
        start = time.monotonic()
        data = encode(x, precision)
        middle = time.monotonic()
        decode(memoryview(data), x.shape, precision)
        times.append((middle - start, time.monotonic() - middle))
    encoding, decoding = np.min(times, axis=0).tolist()
    return encoding, decoding


def _changed(base: StepSettings, decision: Decision) -> StepSettings:
    shape = msgspec.structs.replace(base.shape, clusters=decision.clusters, kept=decision.kept)
    return msgspec.structs.replace(
        base, shape=shape, precision=decision.precision, gradient_precision=decision.gradient_precision
    )


def _decision(step: int, change: Change) -> Decision:
    shape, up, down = _form(change.alternative)
    return Decision(step, shape.clusters, shape.kept, up, down, f"{change.alternative}: {change.why}")


def _form(alternative: Alternative) -> MessageForm:
    down: Any = alternative.gradient_precision
    return alternative.shape, alternative.precision, down
