"""Output of the commands: the table of the parity report, and the lines of `merge`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adc_edge.data.classes import short_list, show_name
from adc_edge.export.classes import CLASS_NAMES
from adc_edge.export.merge import Merged
from adc_edge.export.parity import PARITY_LIMITS, ParityRow
from adc_edge.terminal import fitting_table

_COLUMNS = ("stage", "B", "T", "k", "scores", "hidden", "activations", "clusters", "assigned", "tokens", "ok")
_MOST_DEVICES = 8  # whose steps a line tells
_LEFT_OUT_FIRST = ("hidden", "scores", "B", "T", "k")


def parity_table(rows: Sequence[ParityRow], width: int = 80) -> Table:
    """Return a table with one row per case: its sizes, the differences of values, and the agreement of choices.

    A terminal of fewer columns than the table needs gets it without some: the least telling ones go first.
    """
    forms = (_table(rows, _LEFT_OUT_FIRST[:number]) for number in range(len(_LEFT_OUT_FIRST) + 1))
    return fitting_table(forms, width)


def _table(rows: Sequence[ParityRow], left_out: Sequence[str]) -> Table:
    limits = ", ".join(f"{PARITY_LIMITS[c].difference:.0e} in {c}" for c in dict.fromkeys(row.compute for row in rows))
    table = Table(
        title="ONNX Runtime against PyTorch",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption=f"scores, hidden, activations: differences, at most {limits} of the largest value. "
        "clusters: against PyTorch on the graph's own scores. assigned, tokens: against PyTorch, end to end.",
        caption_justify="left",
    )
    shown = [name for name in _COLUMNS if name not in left_out]
    for name in shown:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for row in rows:
        cells = dict(zip(_COLUMNS, _cells(row), strict=True))
        table.add_row(*(cells[name] for name in shown), style="" if row.passed else "red")
    return table


def _cells(row: ParityRow) -> Iterator[str]:
    yield row.stage if row.compute == "fp32" else f"{row.stage} {row.compute}"
    yield from map(str, (row.images, row.clusters, row.kept))
    yield from (f"{value:.0e}" for value in (row.scores, row.hidden, row.difference))
    yield "exact" if row.clustering else "differ"
    yield from (f"{share:.1%}" for share in (row.assignment, row.tokens))
    yield "yes" if row.passed else "no"


def merge_lines(merged: Merged, output: Path, names: Mapping[int, str]) -> Iterator[str]:
    """Yield the lines that say which model was written, and how accurate it is if it was judged.

    Args:
        merged: the merged model.
        output: its file.
        names: of devices, by session.
    """
    best = "" if merged.accuracy is None else f", its best evaluation: test accuracy {merged.accuracy:.1%}"
    if merged.round is not None:
        yield from _fleet_lines(merged, output, names)
    else:
        yield f"wrote {output}: step {merged.step} of the device{best}"
    if merged.other_steps:
        yield f"the head has also learned {merged.other_steps} steps of other sessions"
    if merged.score is not None:
        right, images = merged.score
        yield f"{right:,} of {images:,} test images, accuracy {100 * merged.score.accuracy:.1f} %"
    if (measured := merged.measured) is not None and not best:
        last = "" if measured.step == merged.step else "last "
        found = f"{100 * measured.accuracy:.1f} % of {measured.images:,} test images at step {measured.step}"
        yield f"the device {last}measured {found}"
    if merged.class_names:
        first = short_list(merged.class_names)
        yield f"its first outputs are {first}; all of them: its metadata `{CLASS_NAMES}`"


def _fleet_lines(merged: Merged, output: Path, names: Mapping[int, str]) -> Iterator[str]:
    trunk = (
        f"the fleet's trunk of round {merged.round}" if merged.round else "the bundle's trunk, which no device trained"
    )
    yield f"wrote {output}: {trunk}, and the head of step {merged.step}"
    for half, learned in (("trunk", merged.trunk), ("head", merged.head)):
        if learned:
            yield f"the {half} has learned {_steps(learned, names)}"


def _steps(learned: Mapping[int, int], names: Mapping[int, str]) -> str:
    parts = [f"{step:,} steps of {show_name(names.get(s, f'session {s:016x}'))}" for s, step in learned.items()]
    more = f" and of {len(parts) - _MOST_DEVICES} more devices" if len(parts) > _MOST_DEVICES else ""
    return ", ".join(parts[:_MOST_DEVICES]) + more
