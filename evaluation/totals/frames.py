"""The bytes of a whole training for each setting, and the epoch at which its messages pass the images sent once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from adc_edge.data.pictures import PICTURE_LINES, line_bytes
from adc_edge.evaluation.report.groups import METHOD_GROUPS
from adc_edge.evaluation.report.judging import full_bytes, judged_by_steps
from adc_edge.evaluation.study.records import Point, Run, Study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.totals.beside import Beside
from adc_edge.evaluation.totals.sending import EvaluationBytes, evaluation_bytes

PASSES = {name: field.replace("bytes_", "passes_") for name, field in PICTURE_LINES.items()}
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


def break_even(curve: Sequence[Point], size: int) -> float:
    """Return the epoch at which a run's messages have cost ``size`` bytes, between two evaluations by proportion.

    NaN if they never do.
    """
    spent = [0, *(point.bytes_up + point.bytes_down for point in curve)]
    if spent[-1] < size:
        return math.nan
    return float(np.interp(size, spent, [0.0, *(point.epoch for point in curve)]))


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
        **{field: break_even(run.curve, sizes[name]) if name in sizes else math.nan for name, field in PASSES.items()},
    }
