"""The fleet of a run: how many devices, how the images are divided, and how their trunks become one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import msgspec

from adc_edge.defaults import COMMON_MODES, FleetMode, FleetPrecision, RobustRule
from adc_edge.errors import SettingError
from adc_edge.evaluation.fleet.partition import parse_partition
from adc_edge.evaluation.study.setting import SERVED, Setting


class StudyFleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fleet of devices with one head; what its mode does not use has the default value."""

    devices: int
    partition: str = "iid"
    mode: FleetMode = "parallel"
    every: int = 10  # steps of a device between two changes of the fleet's trunk, or of its turn
    precision: FleetPrecision = "int8"  # of a change, both ways
    robust: RobustRule = "none"
    guard: bool = True  # leave out changes that do not fit the others

    def __str__(self) -> str:
        """The fleet in words, without what has its default value."""
        first = f"{self.devices} device{'s' if self.devices > 1 else ''}, {self.partition}, {self.mode}"
        return ", ".join([first, *self._details()])

    @property
    def stem(self) -> str:
        """The fleet in the name of a file."""
        parts = [str(self.devices), self.partition, self.mode, *self._details()]
        return "-".join(parts).replace(" ", "").replace(":", "")

    def _details(self) -> list[str]:
        found = [f"every {self.every}"] * (self.every != _DEFAULT.every)
        found += [self.precision] * (self.precision != _DEFAULT.precision)
        found += [self.robust] * (self.robust != _DEFAULT.robust)
        return found + ["no guard"] * (not self.guard)


_DEFAULT = StudyFleet(1)


def fleets_of(
    devices: Sequence[int], partitions: Sequence[str], modes: Sequence[FleetMode], how: StudyFleet
) -> list[StudyFleet | None]:
    """Return every fleet that the lists describe, each once; None is one device with all images.

    One device has nobody to divide images with, and its trunk is the fleet's. So only ``frozen`` makes it a fleet.

    Args:
        devices: numbers of devices, above 0.
        partitions: as `parse_partition` reads them.
        modes: names of modes.
        how: what averaged and sequential fleets take over: every, precision, robust and guard.

    Raises:
        SettingError: a partition is unknown, or a robust rule has no averaged fleet.
    """
    partitions = [str(parse_partition(text)) for text in partitions]
    if how.robust != "none" and not ("averaged" in modes and max(devices) > 1):
        raise SettingError(
            f"--robust {how.robust} with --mode {','.join(modes)} and --devices {','.join(map(str, devices))}",
            "a fleet whose trunks are averaged",
            "add --devices 4 --mode averaged, or leave --robust out",
        )
    return list(dict.fromkeys(_fleet(*case, how) for case in itertools.product(devices, partitions, modes)))


def _fleet(devices: int, partition: str, mode: FleetMode, how: StudyFleet) -> StudyFleet | None:
    if devices == 1:
        return StudyFleet(1, mode="frozen") if mode == "frozen" else None
    if mode not in COMMON_MODES:
        return StudyFleet(devices, partition, mode)
    if mode == "sequential":  # a round has one change: there is nothing to compare it with
        return StudyFleet(devices, partition, mode, how.every, how.precision)
    return msgspec.structs.replace(how, devices=devices, partition=partition, mode=mode)


def check_methods(settings: Sequence[Setting], fleets: Sequence[StudyFleet | None], epochs: float = math.inf) -> None:
    """Raise SettingError if a fleet is to use a method that a device does not have, or a trunk would never freeze.

    Args:
        settings: the methods.
        fleets: the devices; None: one with all images.
        epochs: of the study.
    """
    other = [str(setting) for setting in settings if setting.method not in SERVED]
    fleet = next((fleet for fleet in fleets if fleet is not None), None)
    if other and fleet is not None:
        raise SettingError(
            f"setting {other[0]} with {fleet}",
            f"a method that `serve` has: {', '.join(SERVED)} or a precision",
            "leave it out, or compare it with --devices 1",
        )
    late = next((setting for setting in settings if setting.freeze is not None and setting.freeze >= epochs), None)
    if late is not None:
        raise SettingError(
            f"setting {late} in a study of {epochs:g} epochs", "a trunk that freezes before", "raise --epochs"
        )
    freezing = next((str(setting) for setting in settings if setting.freeze is not None), None)
    if freezing and fleet is not None:
        raise SettingError(f"setting {freezing} with {fleet}", "one device", "leave --devices or +freeze out")
