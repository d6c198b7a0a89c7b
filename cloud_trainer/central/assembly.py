"""Assembly of the central evaluation of a trainer's run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from safetensors.numpy import load

from adc_edge.cloud_trainer.central.evaluator import CentralEvaluator, last_place
from adc_edge.cloud_trainer.central.images import CentralImages
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.settings import TrainerSettings
from adc_edge.data.sources import Dataset
from adc_edge.method.trunk import Trunk
from adc_edge.storage.bundle import TRUNK, Bundle
from adc_edge.storage.fleet_trunk import FleetTrunk
from adc_edge.storage.run_dir import METRICS


def central_evaluator(
    stack: ExitStack,
    settings: TrainerSettings,
    bundle: Bundle,
    dataset: Dataset,
    training: HeadTraining,
    classes: HeadClasses,
    sessions: SessionRegistry,
    record: TrainerRecord,
    trunk: Callable[[], FleetTrunk] | None = None,
) -> CentralEvaluator:
    """Return the evaluator of a run whose head has been restored.

    Args:
        stack: ends the decoding threads.
        settings: of the trainer, with a data source.
        bundle: of the trainer.
        dataset: the data source.
        training: the head.
        classes: names of the head's classes.
        sessions: of the devices.
        record: takes metrics and events.
        trunk: gives the fleet's trunk; None: it is the bundle's, which no device trains.

    Raises:
        DataError: the source's classes are none of the head's.
        BundleError: the bundle's trunk is missing or changed.
    """
    images = CentralImages(dataset, bundle.manifest, classes, settings.evaluate_images, settings.allow_broken)
    stack.callback(images.close)
    return CentralEvaluator(
        training,
        images,
        trunk or partial(FleetTrunk, 0, load(bundle.file(TRUNK).read_bytes()), {}),
        Trunk(bundle.manifest.trunk),
        record,
        settings.evaluate_every,
        moving=trunk is not None,
        idle=lambda: 0 < len(sessions.records()) == sessions.finished(),
        last=last_place(_metrics(settings.run)),
    )


def _metrics(run: Path | None) -> bytes:
    return (run / METRICS).read_bytes() if run is not None and (run / METRICS).is_file() else b""
