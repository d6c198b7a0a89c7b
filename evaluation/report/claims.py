"""Statements that the runs of a study bear out: which of two settings is ahead, whether anything was learned,
and whether all runs are of one version."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from packaging.version import Version
from scipy import stats

AHEAD, BEHIND, NOISE = "ahead", "behind", "within noise"
ONE_SEED, NO_SEED, NOTHING = "one seed: no claim", "no common seed: no claim", "nothing learned: no claim"
LEVEL = 0.05  # of the two-sided paired t-test over seeds
_TEST_IMAGES_MIXED = Version("0.15")
_GUESSING = 0.01  # share of guessing models that are more accurate than the bound


class Comparison(NamedTuple):
    """Accuracy of one setting minus that of another, seed by seed; ``sem`` and ``p_value`` are NaN below two seeds."""

    paired_seeds: int
    paired: float
    paired_sem: float
    p_value: float
    claim: str


def compare(ours: pd.Series, theirs: pd.Series, images: int) -> Comparison:
    """Compare two settings by Student's paired t-test, and say which one is ahead if it is beyond noise.

    Args:
        ours: accuracies in 0..1 by seed.
        theirs: the same of the other setting.
        images: test images, of which one is the least standard deviation that differences are taken to have; 0 if
            their number is not known.
    """
    differences = (ours - theirs).dropna()
    seeds, mean = len(differences), float(differences.mean())
    if seeds < 2:
        return Comparison(seeds, mean, math.nan, math.nan, ONE_SEED if seeds else NO_SEED)
    least = 1 / images if images else 0.0
    sem = max(float(differences.std()), least) / math.sqrt(seeds)
    p_value = float(2 * stats.t.sf(abs(mean) / sem, seeds - 1)) if sem > 0 else math.nan
    claim = (AHEAD if mean > 0 else BEHIND) if p_value < LEVEL else NOISE
    return Comparison(seeds, mean, sem, p_value, claim)


def guessing_bound(images: int, chance: float) -> float:
    """Return the accuracy that 99 % of models that guess do not exceed on ``images`` test images.

    Args:
        images: number of test images.
        chance: probability of a right guess: the share of the commonest class.
    """
    return float(stats.binom.isf(_GUESSING, images, chance)) / images


def learned_note(uncompressed: pd.DataFrame) -> str:
    """Return what to say if uncompressed training has not learned more than guessing gives; else nothing.

    Args:
        uncompressed: one row for each run, with accuracy (0..1), epoch, images and chance (images 0: not known).
    """
    known = uncompressed[uncompressed["images"] > 0]
    if known.empty:
        return ""
    images, chance = int(known["images"].iloc[0]), float(known["chance"].iloc[0])
    accuracy, bound = float(known["accuracy"].mean()), guessing_bound(images, chance)
    if accuracy > bound or np.isclose(accuracy, 1.0):
        return ""
    return (
        f"Nothing was learned yet: uncompressed training has {100 * accuracy:.1f} % of {images:,} test images right "
        f"after {known['epoch'].iloc[0]:.3g} epochs, and guessing has up to {100 * bound:.1f} %. So no difference "
        "between methods counts. Train longer (--epochs), or start from trained weights (--weights, --pretrained)."
    )


def versions_note(machines: Iterable[Mapping[str, Any]]) -> str:
    """Return what to say if runs are of several versions of adc-edge; else nothing.

    Args:
        machines: the description of the machine of each run, as `describe_machine` gives it. Those that tell no version
            are passed over. A run that went on after an upgrade tells the later one.
    """
    known = sorted({Version(about["adc-edge"]) for about in machines if about.get("adc-edge")})
    if len(known) < 2:
        return ""
    mixed = "0.15 mixes the test images before it compresses them" if known[0] < _TEST_IMAGES_MIXED <= known[-1] else ""
    return (
        f"The runs are of versions {', '.join(map(str, known))}. A difference between methods may be one between "
        f"versions{mixed and f': {mixed}'}. To be sure, make all of them with one version, in another -o."
    )
