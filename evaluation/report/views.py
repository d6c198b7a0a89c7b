"""Two views of finished runs, at equal steps and at equal bytes, and the most accurate setting of each group.

Accuracies and shares are in 0..1; bytes are those on the wire. ``share`` is the bytes of a step, both ways, relative to
an uncompressed step. A budget is a share of the bytes of an uncompressed run of the study's epochs. Over seeds, ``std``
is the standard deviation (ddof 1) and ``sem`` the standard error of the mean: NaN for one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from adc_edge.errors import SettingError
from adc_edge.evaluation.report.claims import NOTHING, Comparison, compare, learned_note, versions_note
from adc_edge.evaluation.report.fleets import by_fleet, main_runs
from adc_edge.evaluation.report.groups import METHOD_GROUPS, OURS, UNCOMPRESSED
from adc_edge.evaluation.report.judging import FITS, SUMMARY, judged_by_bytes, judged_by_steps, summary_of
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.totals.beside import Beside
from adc_edge.evaluation.totals.frames import by_total, evaluations_of, picture_shares
from adc_edge.evaluation.totals.sending import EvaluationBytes

_NOTHING_BESIDE = Beside()


class Views(NamedTuple):
    """The results of a study, as the functions ``by_steps``, ``by_bytes`` and ``standings`` describe.

    They are of the runs with one device, or if there are none, of the first fleet, which ``fleet`` names. ``fleets``
    compares all fleets, as ``by_fleet`` describes. ``note`` says that nothing was learned yet, or that the runs are of
    several versions, if that is so. ``totals`` has the bytes of whole trainings, as ``by_total`` describes, with one
    evaluation of each setting in ``evaluations``; ``pictures`` those of the training images sent once, as shares of an
    uncompressed run's.
    """

    budgets: tuple[float, ...]
    steps: pd.DataFrame
    bytes: pd.DataFrame
    standings: pd.DataFrame
    note: str = ""
    fleet: str = ""
    fleets: pd.DataFrame = pd.DataFrame()
    totals: pd.DataFrame = pd.DataFrame()
    pictures: Mapping[str, float] = {}
    evaluations: Mapping[str, EvaluationBytes] = {}
    beside: Beside = _NOTHING_BESIDE


def views(study: Study, runs: Sequence[Run], budgets: Sequence[float], beside: Beside = _NOTHING_BESIDE) -> Views:
    """Compute all views of the runs.

    Args:
        study: the task.
        runs: the finished runs.
        budgets: shares of an uncompressed run's bytes.
        beside: what is known of the study's images as pictures, its trunk and its evaluations.

    Raises:
        SettingError: a budget is not above 0.
    """
    for budget in budgets:
        if not budget > 0:
            raise SettingError(f"a budget of {budget:g}", "a share of the uncompressed bytes", "for example 0.05")
    fleets, versions = by_fleet(study, runs), versions_note(run.machine for run in runs)
    runs, fleet = main_runs(runs)
    steps, spent, best = by_steps(study, runs), by_bytes(study, runs, budgets), standings(study, runs, budgets)
    judged = judged_by_steps(study, runs)
    nothing_learned = learned_note(judged[judged["group"] == UNCOMPRESSED])
    if nothing_learned:
        for claims in (best, fleets):
            claims["claim"] = claims["claim"].where(claims["claim"].isna(), NOTHING)
    note = " ".join(filter(None, (nothing_learned, versions)))
    totals, pictures = by_total(study, runs, beside), picture_shares(study, runs, beside)
    evaluations = evaluations_of(runs, study, beside)
    return Views(tuple(budgets), steps, spent, best, note, fleet, fleets, totals, pictures, evaluations, beside)


def by_steps(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each setting, with every run judged after the study's epochs.

    Columns: setting, group, method, precision, seeds (their number), share, epoch, bytes_up and bytes_down (of the run
    until then), accuracy, std, sem, best (highest accuracy until then), ended (a run ended with over 5 % of the steps
    left). Numbers are means over seeds.
    """
    return summary_of(judged_by_steps(study, runs)).drop(columns="spent")


def by_bytes(study: Study, runs: Sequence[Run], budgets: Sequence[float]) -> pd.DataFrame:
    """One row for each budget and setting, with every run judged at its last evaluation within the budget, if any.

    Columns: budget, those of ``by_steps``, and spent (share of the budget). ``ended``: a run ended with over 5 % of the
    budget left.
    """
    frames = [summary_of(judged_by_bytes(study, runs, budget)).assign(budget=budget) for budget in budgets]
    columns = ["budget", *SUMMARY]
    some = [frame for frame in frames if len(frame)]
    return pd.concat(some, ignore_index=True)[columns] if some else pd.DataFrame(columns=columns)


def standings(study: Study, runs: Sequence[Run], budgets: Sequence[float]) -> pd.DataFrame:
    """The setting of highest mean accuracy of each group, for each view (steps, bytes) and budget.

    A setting takes part if its step's share is within the budget (steps), or an evaluation is (bytes). Columns, beside
    those of the views: tried (settings of the group that take part); difference: accuracy of adc-edge's best minus this
    one's; and the fields of ``Comparison``, of the differences seed by seed.
    """
    rows: list[dict[str, Any]] = []
    after_steps = judged_by_steps(study, runs)
    for budget in budgets:
        summary = summary_of(after_steps)
        rows += _best("steps", budget, after_steps, summary[summary["share"] <= budget * FITS])
        after_bytes = judged_by_bytes(study, runs, budget)
        rows += _best("bytes", budget, after_bytes, summary_of(after_bytes))
    frame = pd.DataFrame(rows, columns=["view", "budget", *SUMMARY, "tried", "difference", *Comparison._fields])
    return frame.sort_values("view", ascending=False, kind="stable", ignore_index=True)


def learning_curve(runs: Sequence[Run]) -> pd.DataFrame:
    """Means over runs of one setting at each step where all were evaluated: step, epoch, bytes, accuracy, std."""
    points = pd.DataFrame(
        [(p.step, p.epoch, p.bytes_up + p.bytes_down, p.best) for run in runs for p in run.curve],
        columns=["step", "epoch", "bytes", "accuracy"],
    )
    steps = points.groupby("step", sort=True)
    curve = steps.agg(
        epoch=("epoch", "mean"),
        bytes=("bytes", "mean"),
        accuracy=("accuracy", "mean"),
        std=("accuracy", "std"),
        runs=("accuracy", "count"),
    ).reset_index()
    return curve[curve["runs"] == len(runs)].drop(columns="runs").reset_index(drop=True)


def representatives(seen: Views, budget: float) -> dict[str, str]:
    """One setting for each group: its best within ``budget`` bytes, or if none fits, that of the smallest step."""
    smallest = seen.steps.sort_values("share").drop_duplicates("group")
    best = seen.standings[(seen.standings["view"] == "bytes") & (seen.standings["budget"] == budget)]
    found = dict(zip(smallest["group"], smallest["setting"], strict=True))
    found |= dict(zip(best["group"], best["setting"], strict=True))
    return {group: found[group] for group in METHOD_GROUPS if group in found}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _best(view: str, budget: float, judged: pd.DataFrame, fitting: pd.DataFrame) -> list[dict[str, Any]]:
    """The most accurate setting of each group, compared with adc-edge's."""
    if fitting.empty:
        return []
    tried = fitting["group"].value_counts()
    ranked = fitting.sort_values(["accuracy", "share"], ascending=[False, True]).drop_duplicates("group")
    best = {row["group"]: row for row in records(ranked)}
    ours = best.get(OURS)
    return [
        {"view": view, "budget": budget, "tried": int(tried[group]), "paired_seeds": 0}
        | best[group]
        | ({} if ours is None or group == OURS else _compared(ours, best[group], judged))
        for group in METHOD_GROUPS
        if group in best
    ]


def _compared(ours: dict[str, Any], theirs: dict[str, Any], judged: pd.DataFrame) -> dict[str, Any]:
    seeds = [judged[judged["setting"] == row["setting"]].set_index("seed")["accuracy"] for row in (ours, theirs)]
    found = compare(seeds[0], seeds[1], int(judged["images"].min()))
    return {"difference": ours["accuracy"] - theirs["accuracy"], **found._asdict()}
