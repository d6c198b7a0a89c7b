"""Files that a plan is made from: the measured link, the profile, the studies, the number of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.data.preprocessing import Preprocessing
from adc_edge.errors import DataError, SettingError
from adc_edge.files import read_json, sha256
from adc_edge.machine.description import describe_machine
from adc_edge.planning.accuracy.frontier import MeasuredStudy, nearest_studies
from adc_edge.planning.accuracy.studies import SHIPPED, read_studies, shipped_studies, study_files
from adc_edge.planning.candidates import Task, unknown_profile
from adc_edge.planning.profile import TrainerShare, check_profile, check_trains, read_profile
from adc_edge.planning.step_model import LinkRates
from adc_edge.storage.bundle import Bundle

_MEASURED = 300  # images that are encoded as pictures


class LinkFile(msgspec.Struct):
    """The part of the JSON of `adc-edge link` that a plan needs."""

    trainer: str
    up_mbit_s: float | None  # None: it was not measured
    down_mbit_s: float | None
    rtt_p50_ms: float
    share: TrainerShare | UnsetType = UNSET  # of a trainer that worked for other devices meanwhile

    def rates(self, most_mbit: float | None) -> LinkRates:
        """Return the link, of whose rates at most ``most_mbit`` is used in each direction."""
        most = math.inf if most_mbit is None else most_mbit
        return LinkRates(self.rtt_p50_ms, min(self.up_mbit_s or 0.0, most), min(self.down_mbit_s or 0.0, most))


class PlanInputs(NamedTuple):
    """All that a plan is made from, read and checked."""

    bundle: Bundle
    trainer: str
    task: Task
    compute_known: bool
    steps_per_epoch: int | None  # None: the number of images is not known
    pictures: Mapping[str, float]  # bytes of a training image by kind of picture; empty: there are no data to measure
    digests: dict[str, str]
    notes: list[str]  # of the studies

    @classmethod
    def read(
        cls, link_file: Path, profile_file: Path | None, studies: Sequence[Path], options: Mapping[str, Any]
    ) -> PlanInputs:
        """Read the files and check that they belong together.

        Args:
            link_file: of `adc-edge link --json`.
            profile_file: of `adc-edge profile`; None: what computing takes is not known.
            studies: of `evaluate` or `privacy`.
            options: bundle, trainer, batch_size, images, data, any_machine and max_mbit, as the command has them.

        Raises:
            BundleError: no bundle.
            SettingError: a file that is no such file, or belongs to something else.
            DataError: the data source cannot be read, and the number of images is not given.
        """
        bundle = Bundle.load(options["bundle"], ())
        link = read_link(link_file, options["trainer"])
        profile = None if profile_file is None else read_profile(profile_file)
        if profile is not None:
            check_profile(profile, bundle, None if options["any_machine"] else describe_machine())
            check_trains(profile)
        accuracy, ssim, notes = studies_of(studies, bundle)
        batch_size = options["batch_size"] or bundle.manifest.batch_size
        known = unknown_profile(bundle.manifest) if profile is None else profile
        known = msgspec.structs.replace(known, share=link.share or known.share)
        task = Task(bundle.manifest, batch_size, link.rates(options["max_mbit"]), known, accuracy, ssim)
        images, pictures = images_of(options["images"], options["data"], bundle.manifest.preprocessing)
        files = [link_file] + ([] if profile_file is None else [profile_file])
        return cls(
            bundle,
            options["trainer"] or link.trainer,
            task,
            profile is not None,
            _steps(images, batch_size),
            pictures,
            digests(bundle, files, studies),
            notes,
        )


def _steps(images: int | None, batch_size: int) -> int | None:
    if images is not None and images < batch_size:
        raise SettingError(f"{images} training images", f"at least one batch of {batch_size}", "lower --batch-size")
    return None if images is None else images // batch_size


def read_link(path: Path, trainer: str | None) -> LinkFile:
    """Return the measured link in a file.

    Args:
        path: the file that `adc-edge link --json` wrote.
        trainer: the address that it must have been measured to; None: any.

    Raises:
        SettingError: the file cannot be read, holds something else, or is of another trainer.
    """
    again = f"adc-edge link --trainer {trainer or 'tcp://HOST:PORT'} --json {path}"
    expected, remedy = "a link that `adc-edge link --json` measured, both ways", f"{again}, with more --max-bytes"
    link = read_json(path, LinkFile, expected, remedy)
    rates = {"up": link.up_mbit_s or 0.0, "down": link.down_mbit_s or 0.0}
    if missing := [way for way, rate in rates.items() if not rate > 0]:
        raise SettingError(f"{path}: the rate {' and '.join(missing)} was not measured", expected, remedy)
    if trainer is not None and link.trainer != trainer:
        raise SettingError(
            f"{path} is the link to {link.trainer}",
            f"the link to --trainer {trainer}",
            f"measure it: {again}",
        )
    return link


def studies_of(paths: Sequence[Path], bundle: Bundle) -> tuple[list[MeasuredStudy], list[MeasuredStudy], list[str]]:
    """Return studies of accuracy, of SSIM, and notes on them: the user's, and ours of what the user's leave open.

    Raises:
        SettingError: no study, or one of another model.
    """
    manifest = bundle.manifest
    mine, notes = read_studies(paths, manifest)
    accuracy, ssim = (
        [study for study in mine if study.quantity == quantity]
        or nearest_studies(
            [study for study in shipped_studies() if study.quantity == quantity], manifest.model, manifest.tokens
        )
        for quantity in ("accuracy", "ssim")
    )
    return accuracy, ssim, notes


def images_of(
    images: int | None, data: str | None, preprocessing: Preprocessing
) -> tuple[int | None, Mapping[str, float]]:
    """Return the number of training images, and the bytes of one by kind of picture, as far as they are known.

    Args:
        images: their number; None: they are counted in the data source.
        data: the source; None: there is none. With ``images`` it may be one of the device alone.
        preprocessing: of the model, to whose size the pictures are scaled.

    Raises:
        DataError, SettingError: the source cannot be read, and ``images`` is None.
    """
    if data is None:
        return images, {}
    from adc_edge.data.pictures import line_bytes, measured_split
    from adc_edge.data.sources import load_dataset

    try:
        train = load_dataset(data).train
    except (DataError, SettingError):
        if images is None:
            raise
        return images, {}
    try:
        found = measured_split(train, preprocessing, _MEASURED)
        pictures = {name: size / found.images for name, size in line_bytes(found).items()}
    except DataError:  # a plan needs their number only
        pictures = {}
    return len(train.labels) if images is None else images, pictures


def digests(bundle: Bundle, files: Sequence[Path], studies: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file that the plan is made from, by name; of the bundle its digest."""
    read = [*files, *(file for path in studies for file in study_files(path)), SHIPPED]
    return {str(bundle.path): bundle.digest} | {
        str(file) if file != SHIPPED else file.name: sha256(file) for file in read
    }
