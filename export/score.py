"""The accuracy of a merged model on the test split of a data source, and the one that the device last measured."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adc_edge.data.classes import label_for_head
from adc_edge.data.loader import test_batches
from adc_edge.data.sources import Dataset
from adc_edge.storage.bundle import Manifest
from adc_edge.storage.json_lines import read_json_lines
from adc_edge.storage.run_dir import METRICS

if TYPE_CHECKING:  # its import takes seconds, and mistakes are told before
    from torch import nn

_BATCH = 64


class Score(NamedTuple):
    """Number of test images, and of those that the model has right."""

    right: int
    images: int

    @property
    def accuracy(self) -> float:
        """Share of the images that are right."""
        return self.right / self.images


class Measured(NamedTuple):
    """The last evaluation that a device's run recorded up to a step."""

    step: int
    images: int
    accuracy: float


def score_model(
    vit: nn.Module, manifest: Manifest, head: list[str], dataset: Dataset, allow_broken: bool = False
) -> Score:
    """Return the score of a whole model on all test images, prepared and labelled as `serve` does it.

    Args:
        vit: the model.
        manifest: gives the preprocessing, and whether the head was trained before.
        head: class names of the head, in the order of its outputs; none: labels are positions.
        dataset: the data source, whose labels are still its own.
        allow_broken: accept any number of broken images.

    Raises:
        DataError: the head has no such class, or too many images cannot be read.
    """
    import torch

    label_for_head(dataset, head, manifest.classes, manifest.classifier_kept)
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vit.eval().to(place)
    right = images = 0
    with torch.no_grad():
        for batch in test_batches(dataset.test, manifest.preprocessing, 0, _BATCH, allow_broken):
            found = vit(torch.from_numpy(batch.images).to(place)).argmax(1).cpu().numpy()
            right += int((found == batch.labels).sum())
            images += len(batch.labels)
    vit.to("cpu")
    return Score(right, images)


def last_measured(device: Path, step: int) -> Measured | None:
    """Return the last evaluation up to ``step`` in the metrics of a device's run; None if there is none."""
    found = None
    for values in read_json_lines(device / METRICS):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if values["kind"] == "evaluation" and values["step"] <= step:
                found = Measured(int(values["step"]), int(values["images"]), float(values["accuracy"]))
    return found
