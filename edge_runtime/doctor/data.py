"""Examine a data source: whether it can be read, its images and classes, and whether they fit the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adc_edge.data.classes import short_list
from adc_edge.data.sources import Dataset, load_dataset
from adc_edge.data.unreadable import summarise_images
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.edge_runtime.doctor.report import DoctorRow
from adc_edge.errors import AdcEdgeError
from adc_edge.storage.bundle import Bundle


def examine_data(source: str, bundle: Path | None, thorough: bool) -> Iterator[DoctorRow]:
    """Yield rows about a data source, without torch.

    Args:
        source: SRC of ``--data``.
        bundle: a readable bundle, whose head must have room for the classes.
        thorough: open and decode a part of the images too.
    """
    name = source
    try:
        dataset = load_dataset(source)
        yield _images(source, dataset, thorough)
        name = "classes"
        classes = f"{len(dataset.classes)}: {short_list(list(dataset.classes))}"
        if bundle is not None:
            DeviceClasses(dataset, Bundle.load(bundle, ()).manifest)
        yield DoctorRow("data", name, "ok", classes, needed=True)
    except AdcEdgeError as error:
        yield DoctorRow("data", name, "bad", error.received, error.remedy, needed=True)
    except OSError as error:
        text = f"{error.filename or source}: {error.strerror}"
        yield DoctorRow("data", name, "bad", text, "check the path, and who may read it", needed=True)


def _images(source: str, dataset: Dataset, thorough: bool) -> DoctorRow:
    if not thorough:
        train, test = (len(split.labels) for split in dataset[:2])
        return DoctorRow("data", source, "ok", f"{train:,} train, {test:,} test", needed=True)
    text, unreadable = summarise_images(dataset)
    remedy = "mend or remove what cannot be read; `serve` leaves it out" if unreadable else None
    return DoctorRow("data", source, "warning" if unreadable else "ok", text, remedy, needed=True)
