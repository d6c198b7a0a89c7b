"""The bytes of a whole training for each setting, and the epoch at which its messages pass the images sent once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adc_edge.arrays import Float64
from adc_edge.codec.precision import encoded_bytes
from adc_edge.data.pictures import PICTURE_LINES, line_bytes
from adc_edge.evaluation.report.groups import METHOD_GROUPS
from adc_edge.evaluation.report.judging import full_bytes, judged_by_steps
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.totals.beside import Beside
from adc_edge.evaluation.totals.sending import EvaluationBytes, StudyTrunk, evaluation_bytes

PASSES = {name: field.replace("bytes_", "passes_") for name, field in PICTURE_LINES.items()}
_ROUNDING = 1e-12
_SUMS = "bytes_training bytes_evaluations bytes_weights bytes_total".split()
TOTALS = ["setting", "group", "seeds", "epoch", "accuracy", "std", "evaluations", *_SUMS, *PASSES.values()]


class Besides(NamedTuple):
    """Bytes of a run besides its steps, of all its devices."""

    evaluation: int  # one evaluation, both ways
    weights: int  # of the trunks, to the devices


def by_total(study: Study, runs: Sequence[Run], beside: Beside) -> pd.DataFrame:
    """One row for each setting, with every run judged after the study's epochs; none if the trunk is not known.

    Columns: setting, group, seeds (their number); means over seeds of epoch, accuracy, evaluations (their number),
    bytes_training (messages of all steps, both ways), bytes_evaluations, bytes_weights and bytes_total (their sum);
    std of accuracy; and for each line of pictures the epoch at which the messages of a run have cost as much as the
    training images sent once: NaN if a run ended below it, or the line is not known.
    """
    judged = judged_by_steps(study, runs)
    if beside.trunk is None or judged.empty:
        return pd.DataFrame(columns=TOTALS)
    by_case = {(run.setting, run.seed): run for run in runs}
    rows = [_row(row, by_case[row["setting"], row["seed"]], study, beside) for row in judged.to_dict("records")]
    frame = pd.DataFrame(rows)
    settings = frame.groupby("setting", sort=False)
    result = settings[["group"]].first()
    result["seeds"] = settings["seed"].count()
    for name in ("epoch", "accuracy", "evaluations", *_SUMS):
        result[name] = settings[name].mean()
    result["std"] = settings["accuracy"].std()
    for name in PASSES.values():
        result[name] = settings[name].agg(lambda epochs: epochs.mean(skipna=False))
    result["order"] = result["group"].map(METHOD_GROUPS.index)
    ordered = result.sort_values(["order", "bytes_total"], ascending=[True, False], kind="stable").reset_index()
    return ordered[TOTALS]


def picture_shares(study: Study, runs: Sequence[Run], beside: Beside) -> dict[str, float]:
    """Return the bytes of the training images, sent once, as shares of an uncompressed run's, by name of the line."""
    if beside.pictures is None or not runs:
        return {}
    return {name: size / full_bytes(study, runs[0]) for name, size in line_bytes(beside.pictures.train).items()}


def whole_pictures(beside: Beside) -> Mapping[str, int]:
    """Return the bytes of all images sent once, by name of the line: those for training, and those evaluated, if sent.

    With central evaluation the trainer has the test images in either case.
    """
    if beside.pictures is None:
        return {}
    train, test = line_bytes(beside.pictures.train), line_bytes(beside.pictures.test)
    sent = beside.evaluation != "central"
    return {name: size + sent * test[name] for name, size in train.items() if name in test}


def evaluation_of(run: Run, study: Study, beside: Beside) -> EvaluationBytes | None:
    """Return what one evaluation of a run costs each device; None if the trunk or the number of images is not known."""
    images = run.guess.images if run.guess else beside.pictures.test.images if beside.pictures else 0
    if beside.trunk is None or not images:
        return None
    training = parse_setting(run.setting).by_epoch.up[-1]  # as `serve` chooses for a run's evaluations
    return evaluation_bytes(beside.trunk, images, study.batch_size, beside.evaluation, training)


def evaluations_of(runs: Sequence[Run], study: Study, beside: Beside) -> dict[str, EvaluationBytes]:
    """Return what one evaluation of each setting costs each device, without those for which it is not known."""
    found = {run.setting: evaluation_of(run, study, beside) for run in runs}
    return {setting: one for setting, one in found.items() if one is not None}


def besides_of(run: Run, study: Study, beside: Beside) -> Besides | None:
    """Return the bytes of a run besides its steps, None if they are not known."""
    one, devices = evaluation_of(run, study, beside), 1 if run.fleet is None else run.fleet.devices
    if one is None or beside.trunk is None:
        return None
    return Besides(devices * (one.up + one.down), devices * beside.trunk.bytes_weights)


def evaluations_sent(run: Run, step: int) -> int:
    """Return how many of a run's evaluations until ``step`` the device has sent.

    Once a frozen trunk has sent all, the trainer judges with the test images that came last.
    """
    alone_from = parse_setting(run.setting).alone_from(run.steps_per_epoch)
    sent = [point.step for point in run.curve if point.step <= min(step, alone_from)]
    return len(sent) + (step > alone_from and alone_from not in sent)


def break_even(run: Run, size: int, study: Study, trunk: StudyTrunk) -> float:
    """Return the epoch at which a run's messages have cost ``size`` bytes; NaN if they never do.

    Between two evaluations bytes are divided among the steps by the expected sizes of their messages: the precision
    may change by epoch, a frozen trunk gets no gradients, and nothing is sent once the trainer is alone.
    """
    points = [(0, 0, 0), *((point.step, point.bytes_up, point.bytes_down) for point in run.curve)]
    if sum(points[-1][1:]) < size:
        return math.nan
    sizes = _expected_sizes(run, study, trunk)
    spent = [np.zeros(1)]
    for (first, up, down), (last, more_up, more_down) in itertools.pairwise(points):
        between = sizes[:, first:last]
        sums = between.sum(axis=1, keepdims=True)
        shares = np.divide(between, sums, out=np.full_like(between, 1 / (last - first)), where=sums > 0)
        spent.append(up + down + np.array([more_up - up, more_down - down]) @ shares.cumsum(axis=1))
    whole = np.concatenate(spent)
    after = int(np.searchsorted(whole, size * (1 - _ROUNDING)))  # the first step with which it is reached
    if not after:
        return 0.0
    part = min(1.0, (size - whole[after - 1]) / (whole[after] - whole[after - 1]))
    return float(after - 1 + part) / run.steps_per_epoch


def _expected_sizes(run: Run, study: Study, trunk: StudyTrunk) -> Float64:
    """Relative sizes of the messages up and down of each step, ``[2, steps]``."""
    setting, steps = parse_setting(run.setting), np.arange(run.curve[-1].step)
    whole = study.batch_size, trunk.tokens, trunk.dim
    sizes = np.ones((2, len(steps)))
    if run.fleet is not None:  # its devices count their own steps
        return sizes
    if setting.by_epoch.changes:
        pairs = setting.by_epoch.pairs()
        epochs = np.minimum(steps // run.steps_per_epoch, len(pairs) - 1)
        sizes = np.array([[encoded_bytes(whole, one) for one in pair] for pair in pairs], float)[epochs].T
    sizes[0] *= steps < setting.alone_from(run.steps_per_epoch)
    sizes[1] *= steps < setting.frozen_from(run.steps_per_epoch)
    return sizes


def _row(judged: dict[Any, Any], run: Run, study: Study, beside: Beside) -> dict[str, Any]:
    besides = besides_of(run, study, beside)
    training = judged["bytes_up"] + judged["bytes_down"]
    sent = evaluations_sent(run, run.curve[judged["evaluations"] - 1].step)
    evaluations = math.nan if besides is None else sent * besides.evaluation
    weights = math.nan if besides is None else besides.weights
    sizes = {} if beside.pictures is None else line_bytes(beside.pictures.train)
    return {
        **{name: judged[name] for name in ("setting", "group", "seed", "epoch", "accuracy", "evaluations")},
        "bytes_training": training,
        "bytes_evaluations": evaluations,
        "bytes_weights": weights,
        "bytes_total": training + evaluations + weights,
        **{field: _passes(run, sizes.get(name), study, beside) for name, field in PASSES.items()},
    }


def _passes(run: Run, size: int | None, study: Study, beside: Beside) -> float:
    if size is None or beside.trunk is None:
        return math.nan
    return break_even(run, size, study, beside.trunk)
