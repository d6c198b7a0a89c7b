"""The images of each device of a fleet, as a pure function of their labels, the partition and a seed.

iid           every image to a device at random, nearly as many to each
dirichlet:X   each class is divided among the devices by shares drawn from a Dirichlet distribution whose parameters are
              all X: the smaller X, the fewer devices have a class. Numbers of images differ too. The shares are drawn
              again while a device has less than one batch (as in NIID-Bench, arXiv 2102.02079)
by-class      every class to one device, nearly as many classes to each
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import numpy as np

from adc_edge.arrays import Int64, Labels
from adc_edge.data.sources import Split
from adc_edge.errors import SettingError
from adc_edge.evaluation.study.samples import SomeImages

PARTITIONS = "iid, dirichlet:X or by-class"
_STREAM = 21  # of random numbers, apart from the loader's
_DRAWS = 200
_LEAST_X, _MOST_X = 1e-3, 1e6


class Partition(NamedTuple):
    """A way to divide images; ``concentration`` is the X of ``dirichlet:X``."""

    kind: Literal["iid", "dirichlet", "by-class"]
    concentration: float = 1.0

    def __str__(self) -> str:
        """The one spelling of the partition: ``dirichlet:0.3`` for ``dirichlet:.30`` too."""
        return f"dirichlet:{self.concentration!r}".removesuffix(".0") if self.kind == "dirichlet" else self.kind


def parse_partition(text: str) -> Partition:
    """Read ``iid``, ``dirichlet:X`` or ``by-class``; raises SettingError for anything else."""
    kind, colon, number = text.partition(":")
    if kind in ("iid", "by-class") and not colon:
        return Partition("iid" if kind == "iid" else "by-class")
    try:
        concentration = float(number) if kind == "dirichlet" else math.nan
    except ValueError:
        concentration = math.nan
    if not _LEAST_X <= concentration <= _MOST_X:  # NaN is not
        raise SettingError(
            f"--partition {text}",
            f"{PARTITIONS}, X a number from {_LEAST_X:g} to {_MOST_X:g}",
            "for example --partition dirichlet:0.3",
        )
    return Partition("dirichlet", concentration)


def divide_images(labels: Labels, devices: int, partition: Partition, batch_size: int, seed: int) -> list[Int64]:
    """Return the sorted indices of each device's images. Every image belongs to exactly one device.

    Args:
        labels: of all images, ``[n]``.
        devices: their number.
        partition: how to divide.
        batch_size: images that each device has at least.
        seed: random seed; equal arguments give equal images.

    Raises:
        SettingError: a device has less than one batch.
    """
    if devices * batch_size > len(labels):
        raise SettingError(
            f"{devices} devices and {len(labels)} training images",
            f"at least one batch of {batch_size} images for each device",
            f"--devices {max(1, len(labels) // batch_size)} or fewer, or a smaller --batch-size",
        )
    draws = _DRAWS if partition.kind == "dirichlet" else 1
    for draw in range(draws):
        rng = np.random.default_rng([seed, _STREAM, draw])
        owners = _owners(labels, devices, partition, rng)
        if np.bincount(owners, minlength=devices).min() >= batch_size:
            return [np.flatnonzero(owners == device) for device in range(devices)]
    raise _too_few(labels, devices, partition, batch_size)


def divided(split: Split, devices: int, partition: str, batch_size: int, seed: int) -> list[Split]:
    """Return the part of a split that each device has; the arguments are those of ``divide_images``.

    Raises:
        SettingError: the partition is unknown, or a device has less than one batch.
    """
    owned = divide_images(split.labels, devices, parse_partition(partition), batch_size, seed)
    return [SomeImages(split, chosen) for chosen in owned]


def _owners(labels: Labels, devices: int, partition: Partition, rng: np.random.Generator) -> Int64:
    """The device of each image, ``[n]``."""
    if partition.kind == "iid":
        return rng.permutation(np.arange(len(labels), dtype=np.int64) % devices)
    classes = np.unique(labels)
    if partition.kind == "by-class":
        place = rng.permutation(np.arange(len(classes), dtype=np.int64) % devices)
        return place[np.searchsorted(classes, labels)]
    owners = np.empty(len(labels), np.int64)
    for number in classes:
        images = rng.permutation(np.flatnonzero(labels == number))
        shares = rng.dirichlet(np.full(devices, partition.concentration))
        ends = np.rint(np.cumsum(shares)[:-1] * len(images)).astype(np.int64)
        for device, (first, last) in enumerate(itertools.pairwise([0, *ends, len(images)])):
            owners[images[first:last]] = device
    return owners


def _too_few(labels: Labels, devices: int, partition: Partition, batch_size: int) -> SettingError:
    found = len(np.unique(labels))
    if partition.kind == "by-class":
        received = f"--partition by-class: {found} classes for {devices} devices"
    else:
        received = f"--partition dirichlet:{partition.concentration:g} in {_DRAWS} draws for {devices} devices"
    return SettingError(
        f"{received}, and one has less than a batch",
        f"at least one batch of {batch_size} images for each device",
        "use fewer --devices, a smaller --batch-size, more --train-images, or a larger X in dirichlet:X",
    )
