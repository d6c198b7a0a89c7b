"""Two views of finished runs, at equal steps and at equal bytes, and the most accurate setting of each group.

Accuracies and shares are in 0..1; bytes are those on the wire. ``share`` is the bytes of a step, both ways, relative to
an uncompressed step. A budget is a share of the bytes of an uncompressed run of the study's epochs. Over seeds, ``std``
is the standard deviation (ddof 1) and ``sem`` the standard error of the mean: NaN for one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from adc_edge.errors import SettingError
from adc_edge.evaluation.report.claims import NOTHING, Comparison, compare, learned_note
from adc_edge.evaluation.study.records import Point, Run, Study
from adc_edge.evaluation.study.setting import METHODS, Setting

OURS, PAPER, UNCOMPRESSED = "adc-edge", "ADC, the paper's", "uncompressed"
RIVALS = {"topk": "Top-K", "randtopk": "RandTopK", "c3sl": "C3-SL", "bottlenetpp": "BottleNet++"}
LOW_BITS = " x low bits"
METHOD_GROUPS = (
    OURS,
    PAPER,
    "ADC" + LOW_BITS,
    "ADC, ablations",
    "plain quantization",
    *RIVALS.values(),
    *(name + LOW_BITS for name in RIVALS.values()),
    UNCOMPRESSED,
)
FITS = 1.02  # largest share of a budget that counts as within: its last step may overshoot it
SHORT = 0.95  # a run that ended below this share of a budget ended early
_JUDGED = (
    "setting group method ratio precision seed epoch share spent bytes_up bytes_down accuracy best ended images chance"
).split()
_SUMMARY = (
    "setting group method precision seeds share spent epoch bytes_up bytes_down accuracy std sem best ended".split()
)


class SettingParts(NamedTuple):
    """The parts of a setting's text. Unlike ``parse_setting``, ``parts_of`` refuses nothing: every run is shown."""

    method: str
    ratio: str  # "" if there is none
    up: str  # precision of activations
    down: str  # precision of gradients

    @property
    def precision(self) -> str:
        """Both precisions as ``up:down``, or one if they are equal."""
        return self.up if self.up == self.down else f"{self.up}:{self.down}"


class Views(NamedTuple):
    """The results of a study, as the functions ``by_steps``, ``by_bytes`` and ``standings`` describe.

    ``note`` says that nothing was learned yet, if that is so.
    """

    budgets: tuple[float, ...]
    steps: pd.DataFrame
    bytes: pd.DataFrame
    standings: pd.DataFrame
    note: str = ""


def parts_of(setting: Setting | str) -> SettingParts:
    """Method, ratio and precisions of ``METHOD[@RATIO][/UP[:DOWN]]``."""
    body, _, travels = str(setting).partition("/")
    method, _, ratio = body.partition("@")
    if method not in METHODS:  # a precision alone
        method, travels = "none", method
    up, _, down = (travels or "fp32").partition(":")
    return SettingParts(method, ratio, up, down or up)


def group_of(setting: Setting | str) -> str:
    """The group of METHOD_GROUPS that a setting belongs to."""
    method, _, up, down = parts_of(setting)
    if up.startswith("pca") or down.startswith("pca"):
        return OURS
    whole = up == down == "fp32"
    if method == "none":
        return UNCOMPRESSED if whole else "plain quantization"
    if method in RIVALS:
        return RIVALS[method] if whole else RIVALS[method] + LOW_BITS
    if not whole:
        return "ADC" + LOW_BITS
    return PAPER if method == "adc" else "ADC, ablations"


def views(study: Study, runs: Sequence[Run], budgets: Sequence[float]) -> Views:
    """Compute all views of the runs.

    Raises:
        SettingError: a budget is not above 0.
    """
    for budget in budgets:
        if not budget > 0:
            raise SettingError(f"a budget of {budget:g}", "a share of the uncompressed bytes", "for example 0.05")
    steps, spent, best = by_steps(study, runs), by_bytes(study, runs, budgets), standings(study, runs, budgets)
    judged = _judged_by_steps(study, runs)
    note = learned_note(judged[judged["group"] == UNCOMPRESSED])
    if note:
        best["claim"] = best["claim"].where(best["claim"].isna(), NOTHING)
    return Views(tuple(budgets), steps, spent, best, note)


def by_steps(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each setting, with every run judged after the study's epochs.

    Columns: setting, group, method, precision, seeds (their number), share, epoch, bytes_up and bytes_down (of the run
    until then), accuracy, std, sem, best (highest accuracy until then), ended (a run ended with over 5 % of the steps
    left). Numbers are means over seeds.
    """
    return _summary(_judged_by_steps(study, runs)).drop(columns="spent")


def by_bytes(study: Study, runs: Sequence[Run], budgets: Sequence[float]) -> pd.DataFrame:
    """One row for each budget and setting, with every run judged at its last evaluation within the budget, if any.

    Columns: budget, those of ``by_steps``, and spent (share of the budget). ``ended``: a run ended with over 5 % of the
    budget left.
    """
    frames = [_summary(_judged_by_bytes(study, runs, budget)).assign(budget=budget) for budget in budgets]
    columns = ["budget", *_SUMMARY]
    some = [frame for frame in frames if len(frame)]
    return pd.concat(some, ignore_index=True)[columns] if some else pd.DataFrame(columns=columns)


def standings(study: Study, runs: Sequence[Run], budgets: Sequence[float]) -> pd.DataFrame:
    """The setting of highest mean accuracy of each group, for each view (steps, bytes) and budget.

    A setting takes part if its step's share is within the budget (steps), or an evaluation is (bytes). Columns, beside
    those of the views: tried (settings of the group that take part); difference: accuracy of adc-edge's best minus this
    one's; and the fields of ``Comparison``, of the differences seed by seed.
    """
    rows: list[dict[str, Any]] = []
    after_steps = _judged_by_steps(study, runs)
    for budget in budgets:
        summary = _summary(after_steps)
        rows += _best("steps", budget, after_steps, summary[summary["share"] <= budget * FITS])
        after_bytes = _judged_by_bytes(study, runs, budget)
        rows += _best("bytes", budget, after_bytes, _summary(after_bytes))
    frame = pd.DataFrame(rows, columns=["view", "budget", *_SUMMARY, "tried", "difference", *Comparison._fields])
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


def full_bytes(study: Study, run: Run) -> int:
    """Bytes of an uncompressed run of the study's epochs, both ways: a budget of 1."""
    return run.uncompressed_step_bytes * _planned_steps(study, run)


def _planned_steps(study: Study, run: Run) -> int:
    return max(1, round(study.epochs * run.steps_per_epoch))


def _judged_by_steps(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    return _judged(runs, lambda run, point: point.step / _planned_steps(study, run), 1.0)


def _judged_by_bytes(study: Study, runs: Sequence[Run], budget: float) -> pd.DataFrame:
    def spent(run: Run, point: Point) -> float:
        return (point.bytes_up + point.bytes_down) / (full_bytes(study, run) * budget)

    return _judged(runs, spent, FITS)


def _judged(runs: Sequence[Run], spent: Callable[[Run, Point], float], most: float) -> pd.DataFrame:
    """One row for each run that has a point of at most ``most``, with the values of its last such point."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        within = [point for point in run.curve if spent(run, point) <= most]
        if not within:
            continue
        last, parts = within[-1], parts_of(run.setting)
        total = last.bytes_up + last.bytes_down
        rows.append(
            {
                "setting": run.setting,
                "group": group_of(run.setting),
                "method": parts.method,
                "ratio": run.ratio,
                "precision": parts.precision,
                "seed": run.seed,
                "epoch": last.epoch,
                "share": total / (last.step * run.uncompressed_step_bytes),
                "spent": spent(run, last),
                "bytes_up": last.bytes_up,
                "bytes_down": last.bytes_down,
                "accuracy": last.best,
                "best": max(point.best for point in within),
                "ended": last is run.curve[-1] and spent(run, last) < SHORT,
                "images": run.guess.images if run.guess else 0,
                "chance": run.guess.chance if run.guess else 0.0,
            }
        )
    return pd.DataFrame(rows, columns=_JUDGED)


def _summary(judged: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting: groups in their order, largest share first within a group."""
    if judged.empty:
        return pd.DataFrame(columns=_SUMMARY)
    means = ("share", "spent", "epoch", "bytes_up", "bytes_down", "accuracy", "best")
    settings = judged.groupby("setting", sort=False)
    frame = settings[["group", "method", "precision"]].first()
    frame["seeds"] = settings["seed"].count()
    for name in means:
        frame[name] = settings[name].mean()
    frame["std"] = settings["accuracy"].std()
    frame["sem"] = settings["accuracy"].sem()
    frame["ended"] = settings["ended"].any()
    frame["order"] = frame["group"].map(METHOD_GROUPS.index)
    frame = frame.sort_values(["order", "share"], ascending=[True, False], kind="stable").reset_index()
    return frame[_SUMMARY]


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
