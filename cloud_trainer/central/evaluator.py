"""Evaluation of a fixed copy of trunk and head on the trainer's own test images, in slices between messages."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from adc_edge.arrays import Int64
from adc_edge.cloud_trainer.central.images import CentralImages
from adc_edge.cloud_trainer.central.words import central_words
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.errors import DataError
from adc_edge.method.trunk import Trunk
from adc_edge.storage.events import CentralEvaluation
from adc_edge.storage.fleet_trunk import FleetTrunk
from adc_edge.storage.json_lines import json_objects

SLICE_S = 0.05  # of computation between two messages
_BUSY_SHARE = 5  # while devices wait, one part in so many of the time
_MOST_IMAGES = 64

logger = logging.getLogger(__name__)


class CentralPlace(NamedTuple):
    """Where the last evaluation stood: steps of the head, and round of the fleet's trunk. Nothing is to be had at 0."""

    head_step: int = 0
    round: int = 0


class _Evaluation:
    """One evaluation under way: copies of trunk and head, and the images that are left."""

    def __init__(self, trunk: Trunk, head: HeadTraining, place: CentralPlace, indices: Int64, outputs: Int64) -> None:
        self.trunk, self.head, self.place, self.indices, self.outputs = trunk, head, place, indices, outputs
        self.done = self.images = self.correct = 0
        self.loss_sum = self.seconds = 0.0


class CentralEvaluator:
    """Evaluates trunk and head when it is time to. ``work`` does a slice of it.

    Args:
        training: the head.
        images: the test images.
        trunk: gives the trunk that all devices have in common.
        new_trunk: an empty trunk of the bundle's architecture.
        record: takes metrics and events.
        every: steps of the head between evaluations; 0: only once no device is left to train.
        moving: the trunk learns: evaluate right after the first round that follows, so that trunk and head go together.
        idle: whether no device is left to train.
        last: the place of the run's last evaluation.
    """

    def __init__(
        self,
        training: HeadTraining,
        images: CentralImages,
        trunk: Callable[[], FleetTrunk],
        new_trunk: Trunk,
        record: TrainerRecord,
        every: int = 0,
        *,
        moving: bool = False,
        idle: Callable[[], bool] = lambda: False,
        last: CentralPlace = CentralPlace(),  # noqa: B008 - immutable
    ) -> None:
        self._training, self._images, self._trunk, self._record = training, images, trunk, record
        self._module = new_trunk.to(training.device).eval()
        self._every, self._moving, self._idle, self._last = every, moving, idle, last
        self._open: _Evaluation | None = None
        self._passed_in: int | None = None  # the trunk's round when ``every`` steps were over; None: they are not
        self._size, self._not_before = 8, 0.0  # images of the next slice, and the time before which devices go first
        self._off = False

    def work(self, busy: bool) -> bool:
        """Do a slice of what is due, about 50 ms; return whether there is more to do at once.

        Args:
            busy: messages of devices wait: the evaluation then takes a fifth of the time.
        """
        if self._off:
            return False
        self._look()
        if busy and time.monotonic() < self._not_before:
            return False
        try:
            if self._open is None and self._is_due(busy):
                self._begin()
            if self._open is not None:
                self._slice(self._open)
        except DataError as error:  # the devices' training goes on
            logger.warning("no central evaluation any more: %s; %s", error.received, error.remedy)
            self._off, self._open = True, None
            return False
        return self._open is not None or self._is_due(busy)

    def finish(self, stop: Callable[[], bool]) -> None:
        """Do all that is due, as long as ``stop`` returns False."""
        while not stop() and self.work(False):
            pass

    def _look(self) -> None:
        """Note the round in which the head has passed its ``every`` steps: a later one has a trunk to go with it."""
        steps, last = self._training.steps, self._last
        if steps < last.head_step:  # the head has gone back
            self._last = last = CentralPlace(steps, last.round)
        if not self._every or steps // self._every == last.head_step // self._every:
            self._passed_in = None
        elif self._passed_in is None:
            self._passed_in = self._trunk().round

    def _is_due(self, busy: bool) -> bool:
        if self._passed_in is not None and (not self._moving or self._trunk().round > self._passed_in):
            return True
        moved = self._moving and self._trunk().round > self._last.round
        return not busy and (moved or self._training.steps > self._last.head_step) and self._idle()

    def _begin(self) -> None:
        """Copy trunk and head, unless the head has no class of the test images yet."""
        trunk, (indices, outputs) = self._trunk(), self._images.begin()
        self._passed_in = None
        self._last = place = CentralPlace(self._training.steps, trunk.round)
        if not len(indices):
            return
        weights = {name: torch.from_numpy(np.array(value)) for name, value in trunk.weights.items()}
        self._module.load_state_dict(weights, strict=True)
        self._open = _Evaluation(self._module, self._training.fixed_copy(), place, indices, outputs)

    @torch.no_grad()
    def _slice(self, now: _Evaluation) -> None:
        start = time.monotonic()
        part = slice(now.done, now.done + self._size)
        batch, places = self._images.load(now.indices[part])
        if len(places):
            activations = now.trunk(torch.from_numpy(batch.images).to(now.head.device))
            judged = now.head.judge(activations, now.outputs[part][places].astype(np.int32))
            now.correct, now.loss_sum = now.correct + judged.correct, now.loss_sum + judged.loss_sum
        now.images, now.done = now.images + len(places), now.done + self._size
        seconds = time.monotonic() - start
        now.seconds += seconds
        self._record.use.head += seconds
        self._pace(seconds)
        if now.done >= len(now.indices):
            self._open = None
            self._tell(now)

    def _pace(self, seconds: float) -> None:
        """Choose the images of the next slice from the time that this one took, and let devices go first."""
        self._size = max(1, min(2 * self._size, int(self._size * SLICE_S / max(seconds, 1e-6)), _MOST_IMAGES))
        self._not_before = time.monotonic() + (_BUSY_SHARE - 1) * seconds

    def _tell(self, done: _Evaluation) -> None:
        if not done.images:
            raise DataError("test images that are all broken", "at least one that Pillow can read", "check the files")
        event = CentralEvaluation(
            head_step=done.place.head_step,
            round=done.place.round,
            images=done.images,
            accuracy=done.correct / done.images,
            loss=done.loss_sum / done.images,
            seconds=round(done.seconds, 3),
        )
        self._record.evaluated_centrally(event)
        logger.info("central  %s", central_words(event))


def last_place(metrics: bytes) -> CentralPlace:
    """Return the place of the last central evaluation in a run's metrics."""
    found = CentralPlace()
    for values in json_objects(line for line in metrics.splitlines() if b'"central"' in line):
        if values.get("kind") == "evaluation" and values.get("source") == "central":
            with contextlib.suppress(KeyError, msgspec.ValidationError):
                found = msgspec.convert((values["head_step"], values["round"]), CentralPlace)
    return found
