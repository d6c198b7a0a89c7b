"""The course of a run: the settings of each step. It began with some; epochs or recorded decisions change them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from adc_edge.arrays import Float32
from adc_edge.codec.precision import Precision, dct_bits, decode, encode
from adc_edge.defaults import MOST_MICRO_BATCHES
from adc_edge.edge_runtime.choosing.precisions import all_precisions, settings_of_step
from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.edge_runtime.recovery import knows_transforms
from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.edge_runtime.tally import StepRecord
from adc_edge.method.ratio import Shape
from adc_edge.planning.following.follow import Alternative, Change, Follower, MessageForm
from adc_edge.planning.message_sizes import sizes_of_messages
from adc_edge.planning.step_model import LinkRates
from adc_edge.storage.decisions import Decision, Decisions

_TRAINER = ("cloud", "cloud_codec", "cloud_wait")
_PHASES = ("data", "forward", "encode", "send", "recompute", "decode", "backward", "link", *_TRAINER)
_ROUNDS = 2

logger = logging.getLogger(__name__)


class Course:
    """The settings of each step.

    Args:
        base: those that the run began with.
        decisions: recorded changes; they hold whether or not this process follows the link.
        forms: what the run may send while it follows its link; empty: it does not follow.
        window: most micro-batches in flight, as it was asked for; 0: all.
    """

    def __init__(
        self, base: StepSettings, decisions: Decisions, forms: Sequence[MessageForm] = (), window: int = 0
    ) -> None:
        self._base, self._decisions, self._forms, self._window = base, decisions, list(forms), window
        self._follower: Follower | None = None

    def at(self, step: int) -> StepSettings:
        """Return the settings of a step."""
        decision = self._decisions.at(step)
        settings = settings_of_step(self._base, step) if decision is None else _changed(self._base, decision)
        return msgspec.structs.replace(settings, varies=bool(self._decisions.changes(-1)))

    @property
    def lasting_precision(self) -> Precision:
        """Precision of the activations that the run began with, its last one if it changes by epoch.

        Recorded decisions do not change it, so all evaluations of a run have one precision.
        """
        return self._base.lasting_precision

    def precisions(self, frozen: bool) -> set[Precision]:
        """Return those with which the run began, of all epochs; of activations alone if it is ``frozen``."""
        return all_precisions(self._base, frozen)

    @property
    def changes(self) -> int:
        """Number of changes so far."""
        return len(self._decisions.all)

    def begun_at(self, step: int) -> Decision | None:
        """Return the decision whose first step this is, if there is one."""
        decision = self._decisions.at(step)
        return decision if decision is not None and decision.step == step else None

    def follow(self, loop: DeviceLoop, step: int) -> None:
        """Follow the link from ``step`` on, if the run may: measure what the messages cost that it may send.

        Args:
            loop: its session is open, its engine chosen.
            step: whose batch is used to measure.
        """
        if not self._forms:
            return
        now = form_of(self.at(step))
        if not _trainer_follows(loop):
            logger.info("plan     this trainer is older than 0.9: the number of messages stays")
            self._forms = [form for form in self._forms if form.micro_batches == now.micro_batches]
        if loop.session.welcome is not None and loop.session.welcome.max_images:
            self._forms = [form for form in self._forms if form.shape.images <= loop.session.welcome.max_images]
        if not knows_transforms(loop.session.welcome):
            ways = ((form, dct_bits(form.precision) + dct_bits(form.gradient_precision)) for form in self._forms)
            self._forms = [form for form, transformed in ways if not transformed]
        recorded = [form_of(_changed(self._base, decision)) for decision in self._decisions.all]
        found = alternatives(list(dict.fromkeys([now, *recorded, *self._forms])), loop, step, self._window)
        self._forms = [one.form for one in found]
        self._follower = Follower(found, 0)
        logger.info("plan     follows the link, among %d settings", len(found))

    def observe(self, record: StepRecord, loop: DeviceLoop) -> None:
        """Take a finished step; if another setting pays, record it for the next step.

        A step that the trainer has begun keeps its settings, and so do the steps of recorded decisions.

        Raises:
            OSError: the decision cannot be written; then it does not hold.
        """
        following, now_s, trainer = record.step + 1, time.monotonic(), loop.session.trainer
        link, begun = _link(loop), trainer.step + (trainer.micro_batch > 0)
        if self._follower is None or link is None or not self._decisions.may_begin(following, begun):
            return
        self._follower.stand_at(self._forms.index(form_of(self.at(record.step))))  # a recorded decision may have begun
        seconds = {phase: float(getattr(record, f"seconds_{phase}")) for phase in _PHASES}
        count = None if _trainer_follows(loop) else self.at(record.step).micro_batches
        change = self._follower.observe(seconds, record.seconds, link, now_s, count, loop.link.share)
        if change is not None:
            decision = _decision(following, change)
            self._decisions.add(decision)
            self._follower.take(change, now_s)
            logger.info("plan     from step %d on %s", following, decision.why)


def alternatives(forms: Sequence[MessageForm], loop: DeviceLoop, step: int, window: int = 0) -> list[Alternative]:
    """Return the forms with the bytes and the codec's seconds of their messages, measured on the batch of ``step``.

    Args:
        forms: what a step may send.
        loop: its engine is chosen.
        step: whose batch is used.
        window: most micro-batches in flight; 0: all.
    """
    most = window or MOST_MICRO_BATCHES
    frozen, dim, images = loop.shim is None, loop.settings.dim, loop.loader.look_ahead(step).images
    sent: dict[Shape, Float32] = {}
    seconds: dict[tuple[Shape, Precision], tuple[float, float]] = {}
    found = []
    for form in forms:
        shape, up, down = form.shape, form.precision, form.gradient_precision
        if shape not in sent:
            init_rows = loop.loader.init_rows(step, shape.clusters, shape.images)
            slots = shape.kept - loop.settings.prefix
            sent[shape] = loop.engine.compress(images[: shape.images], init_rows, slots).activations
            if loop.shim is not None:
                loop.shim.drop()  # the graph of an engine that keeps it
        for precision in (up, down):
            if (shape, precision) not in seconds:
                seconds[shape, precision] = _codec_seconds(sent[shape], precision)
        activations, gradients = seconds[shape, up], (0.0, 0.0) if frozen else seconds[shape, down]
        bytes_up, bytes_down = sizes_of_messages(shape, dim, (up, None if frozen else down))
        found.append(
            Alternative(
                form,
                min(form.micro_batches, most),
                bytes_up,
                bytes_down,
                codec_seconds=activations[0] + gradients[1],
                trainer_codec_seconds=activations[1] + gradients[0],
            )
        )
    return found


def _trainer_follows(loop: DeviceLoop) -> bool:
    """Whether the trainer takes steps of another number of micro-batches."""
    welcome = loop.session.welcome
    return welcome is not None and welcome.follows is True


def _link(loop: DeviceLoop) -> LinkRates | None:
    link = loop.link
    up, down, rtt = link.up.recent_mbit_s, link.down.recent_mbit_s, link.rtt_min_ms
    if not up or rtt is None:  # a kernel may tell 0
        return None
    return LinkRates(rtt, up, down or up)  # a frozen trunk's answers are too small to measure


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
    images = base.micro_batches * base.shape.images // decision.micro_batches
    return msgspec.structs.replace(
        base,
        micro_batches=decision.micro_batches,
        window=decision.window,
        shape=msgspec.structs.replace(base.shape, images=images, clusters=decision.clusters, kept=decision.kept),
        precision=decision.precision,
        gradient_precision=decision.gradient_precision,
    )


def _decision(step: int, change: Change) -> Decision:
    taken = change.alternative
    count, shape, up, down = taken.form
    return Decision(step, count, taken.window, shape.clusters, shape.kept, up, down, f"{taken}: {change.why}")


def form_of(settings: StepSettings) -> MessageForm:
    """Return what a step's messages are."""
    return MessageForm(settings.micro_batches, settings.shape, settings.precision, settings.gradient_precision)
