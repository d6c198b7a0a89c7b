"""The precision of a run's evaluations: as it is named, as the run has had it so far, or by that of its training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from adc_edge.codec.precision import PRECISIONS, Precision
from adc_edge.data.loader import Loader
from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.tally import Evaluation
from adc_edge.planning.message_sizes import evaluation_precision

logger = logging.getLogger(__name__)


def precision_of_evaluations(
    settings: ServeSettings, done: Sequence[Evaluation], loop: DeviceLoop, test: Loader, training: Precision
) -> Precision:
    """Return the precision in which the next evaluation is sent.

    A run whose user names none keeps that of its evaluations so far, so that they can be compared: also if an earlier
    version has chosen it.

    Args:
        settings: of the run.
        done: its evaluations so far.
        loop: tells the messages of an evaluation.
        test: the test split.
        training: precision of the activations in training, its last one if it changes by epoch.
    """
    if settings.evaluate_precision is not None:
        return settings.evaluate_precision
    kept = done[-1].precision if done else ""
    for precision in PRECISIONS:
        if precision == kept:
            return precision
    rows = loop.settings.shape.tokens * min(map(len, loop.evaluation_parts(test, settings.evaluate_images)))
    return evaluation_precision(rows, loop.settings.dim, training)


def tell_of_another(done: Sequence[Evaluation], precision: Precision) -> None:
    """Warn that the next evaluation is sent in another precision than the one before."""
    before = done[-1].precision if done else precision
    if before != precision:
        was = before or "another precision, perhaps"
        logger.warning("evaluations were sent in %s so far, now in %s (--eval-precision)", was, precision)
