"""Images -> batches, in an order that is a pure function of (seed, step), so that any step can be repeated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from adc_edge.arrays import Float32, Labels
from adc_edge.data.augment import Augmentation
from adc_edge.data.preprocessing import Preprocessing, normalise, prepare
from adc_edge.data.sources import Split
from adc_edge.data.unreadable import UnreadableImages
from adc_edge.errors import DataError
from adc_edge.machine.threads import give_way

_ORDER, _AUGMENT, _SEEDS = range(3)  # independent streams of random numbers


class Batch(NamedTuple):
    """``images`` float32 [B, C, H, W] normalised; ``labels`` int64 [B]."""

    images: Float32
    labels: Labels


class Loader:
    """Batches of a split.

    Every training batch is full: an epoch leaves out the images that do not fill one. Training images are reshuffled
    each epoch. Evaluation images come in the split's order, or as a fixed random sample. A broken training image is
    replaced by the next one in the order, and counted; more than a tenth of those tried raise DataError.

    Args:
        split: the images.
        preprocessing: the model's preprocessing.
        batch_size: B.
        seed: random seed for data order, augmentation and k-means initialisation.
        augment: functions applied in order to training images.
        workers: decoding threads.
        allow_broken: accept any number of broken images.

    Raises:
        DataError: the split has fewer images than one batch.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        batch_size: int,
        seed: int = 0,
        augment: Sequence[Augmentation] = (),
        workers: int = 2,
        allow_broken: bool = False,
    ) -> None:
        if len(split.labels) < batch_size:
            raise DataError(
                f"{len(split.labels)} training images", f"at least one batch of {batch_size}", "lower --batch-size"
            )
        self._split, self._preprocessing, self._augment = split, preprocessing, augment
        self.batch_size, self.seed = batch_size, seed
        self.broken = UnreadableImages(len(split.labels), allow_broken)
        self._pool = ThreadPoolExecutor(max(1, workers), "decode", initializer=give_way)
        self._ahead: tuple[int, list[Future[tuple[int, Float32]]]] | None = None
        self._epoch_order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._anew = 0  # step with which epochs begin anew
        self._plain_from = math.inf  # epoch from which on images are not augmented

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one epoch."""
        return len(self._split.labels) // self.batch_size

    def begin_anew(self, step: int, augmented: bool) -> None:
        """Let an epoch begin with ``step``, within an epoch too, so that whole epochs follow.

        Args:
            step: of a run that was not asked for this step yet.
            augmented: whether images are augmented from there on.
        """
        self._anew = step
        self._plain_from = math.inf if augmented else -(-step // self.steps_per_epoch)

    def batch(self, step: int) -> Batch:
        """Return the batch of ``step``, and start to decode the next one."""
        ready = self._decoded(step)
        self._ahead = (step + 1, self._start(step + 1))
        return self._collected(ready)

    def look_ahead(self, step: int) -> Batch:
        """Return the batch of ``step``, which stays ready for ``batch``."""
        ready = self._decoded(step)
        self._ahead = (step, ready)
        return self._collected(ready)

    def sample(self, limit: int, batch_size: int = 0) -> list[npt.NDArray[np.int64]]:
        """Return batches of indices of up to ``limit`` images (0: all), the same each time, in a fixed random order.

        Many splits have one class after another. A message in principal components has the mean and the components of
        its own images, so one of a single class would help the head to name it.

        Args:
            limit: most images.
            batch_size: most images of a batch, all of nearly one size; 0: the loader's own, the last one the rest.
        """
        total = len(self._split.labels)
        chosen = np.random.default_rng(0).permutation(total)[: limit if limit > 0 else total]
        if batch_size:
            return np.array_split(chosen, max(1, -(-len(chosen) // batch_size)))
        return [chosen[start : start + self.batch_size] for start in range(0, len(chosen), self.batch_size)]

    def plain(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Return these images without augmentation; broken ones are left out and counted."""
        futures = {int(i): self._pool.submit(self._plain, int(i)) for i in indices}
        found = {i: image for i, future in futures.items() if (image := future.result()) is not None}
        self.broken.check()
        if not found:
            return Batch(
                np.empty((0, len(self._preprocessing.mean), *self._preprocessing.size), np.float32),
                np.empty(0, np.int64),
            )
        return Batch(np.stack(list(found.values())), self._split.labels[list(found)])

    def init_rows(self, step: int, clusters: int, images: int, micro_batch: int = 0) -> npt.NDArray[np.int64]:
        """Return T distinct rows of a micro-batch of ``images`` images, which start its k-means."""
        rng = np.random.default_rng([self.seed, _SEEDS, step, micro_batch])
        return rng.permutation(images)[:clusters].astype(np.int64)

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._epoch_order[0] != epoch:
            rng = np.random.default_rng([self.seed, _ORDER, epoch])
            self._epoch_order = (epoch, rng.permutation(len(self._split.labels)).astype(np.int64))
        return self._epoch_order[1]

    def _decoded(self, step: int) -> list[Future[tuple[int, Float32]]]:
        return self._ahead[1] if self._ahead and self._ahead[0] == step else self._start(step)

    def _collected(self, ready: list[Future[tuple[int, Float32]]]) -> Batch:
        found = [future.result() for future in ready]
        self.broken.check()
        return Batch(np.stack([image for _, image in found]), self._split.labels[[index for index, _ in found]])

    def _start(self, step: int) -> list[Future[tuple[int, Float32]]]:
        anew = self._anew if step >= self._anew else 0
        epoch, within = divmod(step - anew, self.steps_per_epoch)
        epoch += -(-anew // self.steps_per_epoch)  # after those that have begun
        order = self._order(epoch)
        start = within * self.batch_size
        positions = range(start, start + self.batch_size)
        return [self._pool.submit(self._augmented, order, position, epoch) for position in positions]

    def _augmented(self, order: npt.NDArray[np.int64], position: int, epoch: int) -> tuple[int, Float32]:
        for offset in range(len(order)):
            index = int(order[(position + offset) % len(order)])
            image = self._decode(index)
            if image is not None:
                rng = np.random.default_rng([self.seed, _AUGMENT, epoch, index])
                for change in self._augment if epoch < self._plain_from else ():
                    image = change(image, rng)
                return index, normalise(image, self._preprocessing)
        raise DataError(
            f"all {len(order)} images are broken (first: {self.broken.first})",
            "at least one that Pillow can read",
            "check the files and their format",
        )

    def _plain(self, index: int) -> Float32 | None:
        image = self._decode(index)
        return None if image is None else normalise(image, self._preprocessing)

    def _decode(self, index: int) -> Image.Image | None:
        if index in self.broken:
            return None
        try:
            image = prepare(self._split.image(index), self._preprocessing)
        except Exception as error:  # any that a source raises
            self.broken.tried(index, error)
            return None
        self.broken.tried(index)
        return image


def test_batches(
    split: Split, preprocessing: Preprocessing, limit: int, batch_size: int, allow_broken: bool
) -> Iterator[Batch]:
    """Yield up to ``limit`` images (0: all) of a test split in batches, the same ones each time, without broken ones.

    Raises:
        DataError: none of them can be read, or too few and not ``allow_broken``.
    """
    loader = Loader(split, preprocessing, min(batch_size, len(split.labels)), allow_broken=allow_broken)
    seen = 0
    try:
        for indices in loader.sample(limit):
            batch = loader.plain(indices)
            seen += len(batch.labels)
            if len(batch.labels):
                yield batch
    finally:
        loader.close()
    if not seen:
        raise DataError(
            f"all {len(loader.broken)} test images are broken",
            "at least one that Pillow can read",
            "check the files and their format",
        )
