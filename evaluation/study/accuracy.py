"""The evaluation of a run: every trunk that there is with the head, on the test images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adc_edge.data.loader import Batch
from adc_edge.evaluation.fleet.devices import StudyDevices
from adc_edge.evaluation.study.records import Guess, Point, Study
from adc_edge.evaluation.study.split_model import SplitModel, computing
from adc_edge.evaluation.study.wire import Wire


def point_of(
    devices: StudyDevices,
    study: Study,
    tests: Sequence[Batch],
    epoch: float,
    step: int,
    wire: Wire,
    losses: Sequence[float],
    seconds: float,
) -> Point:
    """Evaluate every trunk that there is with the head."""
    found = [_judge(parts, study, tests) for parts in devices.trunks(step)]
    accuracy, through = (_mean([pair[which] for pair in found]) for which in (0, 1))
    assert accuracy is not None, "every trunk has an accuracy"
    best = [max(plain, other or 0.0) for plain, other in found]
    lowest, highest = (min(best), max(best)) if len(found) > 1 else (None, None)
    return Point(
        step,
        epoch,
        wire.bytes_up,
        wire.bytes_down,
        accuracy,
        through,
        float(np.mean(losses)),
        seconds,
        lowest,
        highest,
        devices.trunk_bytes[0],
        devices.trunk_bytes[1],
        0 if devices.rounds is None else devices.rounds.left_out,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@torch.no_grad()
def _judge(parts: SplitModel, study: Study, batches: Sequence[Batch]) -> tuple[float, float | None]:
    """Test accuracy without compression, and with the method's compression (None: it does not compress at test)."""
    codec = parts.codec
    for module in (parts.trunk, parts.head, codec.device, codec.trainer):
        if module is not None:
            module.eval()
    right, right_through, images = 0, 0, 0
    compresses = False
    for batch in batches:
        labels = torch.from_numpy(batch.labels).to(parts.place)
        with computing(study):
            features = parts.trunk(torch.from_numpy(batch.images).to(parts.place))
            through = codec.through(features)
            right += _correct(parts.head(features), labels)
            if through is not None:
                compresses = True
                right_through += _correct(parts.head(through), labels)
        images += len(labels)
    return right / images, right_through / images if compresses else None


def _correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())


def guess_of(tests: Sequence[Batch]) -> Guess:
    """Return the test split as a model without knowledge sees it."""
    shown = np.concatenate([batch.labels for batch in tests])
    return Guess(len(shown), float(np.bincount(shown).max() / len(shown)))
