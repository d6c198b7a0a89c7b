"""The class names of a head, in the order of its outputs: from the bundle, and learned from devices."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from adc_edge.arrays import Body
from adc_edge.data.classes import append_classes, check_order_known, check_positions, composed_names, short_list
from adc_edge.errors import CheckpointError, DataError, ProtocolError
from adc_edge.storage.bundle import Manifest
from adc_edge.storage.run_dir import CLASSES, LearnedClasses, RunDir
from adc_edge.wire.class_names import pack_names, unpack_class_counts, unpack_names
from adc_edge.wire.messages import ClassNames

logger = logging.getLogger(__name__)


class HeadClasses:
    """The names of a head's classes. The list only grows, so no output ever changes its class.

    It is on disk before a device is told, and in no checkpoint: a trainer that comes back older knows all the same
    what a device was told.

    Args:
        manifest: the bundle's; its names are the first ones.
        run_dir: keeps the list; None: it lasts as long as the process.

    Raises:
        CheckpointError: the run's list is damaged, or begins with other names than the bundle's.
    """

    def __init__(self, manifest: Manifest, run_dir: RunDir | None = None) -> None:
        self._manifest, self._run_dir = manifest, run_dir
        self._learned = self._kept() or LearnedClasses(list(manifest.class_names))

    @property
    def names(self) -> list[str]:
        """The names so far, in the order of the outputs."""
        return self._learned.head

    @property
    def asked_for(self) -> bool:
        """Whether devices are to tell their names: the bundle does not name every class."""
        return len(self._manifest.class_names) < self._manifest.classes

    def check_silent(self, device: str) -> None:
        """Admit a device that tells no names (0.6) while there are none.

        Raises:
            ProtocolError: code ``labels``: its labels are positions, and this run's classes have names.
        """
        if not self.asked_for:
            return
        if self.names and not self._learned.positions:
            raise ProtocolError(
                "a device that tells no class names",
                f"the names of its classes; the head's are {short_list(self.names)}",
                "install the trainer's version of adc-edge on the device",
                "labels",
            )
        logger.warning("device %r tells no class names: its labels are positions in its own list", device)

    def take(self, message: ClassNames, body: Body, device: str) -> tuple[list[str], dict[str, int] | None]:
        """Learn the names that a device tells, if they are asked for.

        Args:
            message: the device's.
            body: the message's.
            device: the device's name, for the log.

        Returns:
            The names to answer with, and the device's number of training images of each class; None: it tells none.

        Raises:
            ProtocolError: the body is malformed; or see ``learn``.
            OSError: see ``learn``.
        """
        images = unpack_class_counts(body) if message.counted is True else None
        if images is not None and not self.asked_for:
            return [], images
        told = unpack_names(body) if images is None else list(images)
        return self.learn(told, message.positions, device), images

    def learn(self, told: Sequence[str], positions: bool, device: str) -> list[str]:
        """Append the names that the head lacks, and return all of them.

        Args:
            told: names of a device's classes, in its order.
            positions: the device's data have no names; these are the labels' numbers.
            device: the device's name, for the log.

        Raises:
            ProtocolError: code ``labels``: the head has no room for them, their order is unknown, or labels without
                names meet a head with names. The list stays as it was.
            OSError: the list cannot be written; it stays as it was.
        """
        try:
            names = composed_names(told, f"device {device!r}")
            self._check(names, positions)
            head = append_classes(self.names, names, self._manifest.classes)
            pack_names(head)  # else nobody could be told
        except DataError as error:
            raise ProtocolError(error.received, error.expected, error.remedy, "labels") from None
        if head != self.names:
            self._grow(LearnedClasses(head, positions and self._only_positions), device)
        return self.names

    @property
    def _only_positions(self) -> bool:
        return self._learned.positions or not self.names

    def _check(self, names: Sequence[str], positions: bool) -> None:
        if positions:
            check_positions(names, self.names)
        elif self._learned.positions and set(names) - set(self.names):
            raise DataError(
                f"the classes {short_list(names)}",
                f"labels without names, from 0 to {len(self.names) - 1}, as this run's first device has",
                "name the classes on every device (in an .npz: an array `classes`), and start over with --fresh",
            )
        elif self._manifest.classifier_kept and not self.names:
            check_order_known(names, self._manifest.classes)

    def _grow(self, learned: LearnedClasses, device: str) -> None:
        new = learned.head[len(self.names) :]
        if self._run_dir is not None:
            self._run_dir.keep(CLASSES, msgspec.json.encode(learned))
        if self._manifest.classifier_kept and not self.names and not learned.positions:
            logger.warning(
                "the trained head's classes have no names: it is taken to have learned them in this order; "
                "if it has not, export it again with --classes FILE"
            )
        self._learned = learned
        count = f"{len(learned.head)} of {self._manifest.classes}"
        logger.info("classes learned from device %r: %s (%s)", device, short_list(new), count)

    def _kept(self) -> LearnedClasses | None:
        data = None if self._run_dir is None else self._run_dir.kept(CLASSES)
        if data is None:
            return None
        first = self._manifest.class_names
        try:
            found = msgspec.json.decode(data, type=LearnedClasses)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _damaged(str(error)) from None
        if found.head[: len(first)] != first or len(set(found.head)) < len(found.head):
            raise _damaged("it does not go with the bundle")
        return found


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(
        f"{CLASSES}: {why}", "the class names as the trainer wrote them", "restore it, or start over with --fresh"
    )
