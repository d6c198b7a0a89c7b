"""docs/ten-epochs.png: accuracy against the bytes of ten epochs, from the records in docs/results/ten-epochs.json.

    python benchmarks/results_figure.py

A panel for each table of whole trainings in ``PANELS``, with a line for each size of the images sent once as JPEG. A
row of another length (``SETTING, LENGTH``) has the colour of its setting and another marker. Accuracies
are that of the uncompressed runs plus the difference of common seeds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from results_records import RESULTS, Pictures, TotalsTable, read_records

from adc_edge.evaluation.report.plots import ACCURACY, add_legend, clear_frame, logarithmic, png
from adc_edge.evaluation.totals.lines import add_picture_lines
from adc_edge.files import write_atomic

PANELS = {
    "cifar10-64px": "CIFAR-10 at 64 px",
    "cifar10-112px": "CIFAR-10 at 112 px",
    "cifar10-224px": "CIFAR-10 at 224 px",
    "food101-64px": "Food-101 at 64 px",
}
PNG = RESULTS.parent / "ten-epochs.png"
_COLOURS = (  # Okabe-Ito, Tol
    "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933",
    "#8C564B", "#117733",
)  # fmt: skip
_MARKERS = ("o", "*", "s", "^")
_INK = "#222222"
_UNCOMPRESSED = "none"
_PANEL, _LEGEND_LINE = (4.8, 3.8), 0.22  # inches
_QUALITIES = re.compile(r" \((q\d+) / (q\d+)\)")


def figure(directory: Path = RESULTS) -> Figure:
    """The panels of the tables that there are.

    Raises:
        SettingError: no such records.
    """
    tables = read_records("ten-epochs", directory).tables
    shown = {title: table for name, title in PANELS.items() if isinstance(table := tables.get(name), TotalsTable)}
    parts = dict.fromkeys(_parts(row.setting) for table in shown.values() for row in table.rows)
    settings = dict.fromkeys(setting for setting, _ in parts if setting != _UNCOMPRESSED)
    lengths = dict.fromkeys(sorted(length for setting, length in parts if setting != _UNCOMPRESSED))
    colours, markers = dict(zip(settings, itertools.cycle(_COLOURS))), dict(zip(lengths, itertools.cycle(_MARKERS)))
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    result = Figure(
        (columns * _PANEL[0], rows * _PANEL[1] + _LEGEND_LINE * (len(colours) + len(markers) - 1)),
        dpi=110,
        layout="constrained",
    )
    panels = list(result.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, table) in zip(panels, shown.items(), strict=False):
        _draw(axes, table, title, colours, markers)
    for axes in panels[len(shown) :]:
        axes.remove()
    handles = [Line2D([], [], color=colour, marker="o", label=setting) for setting, colour in colours.items()]
    handles += [
        Line2D([], [], color=_INK, marker=marker, linestyle="", label=length)
        for length, marker in markers.items()
        if length
    ]
    add_legend(result, [*handles], loc="outside lower left")
    return result


def _parts(text: str) -> tuple[str, str]:
    """The setting of a row, and its length if it is not the table's."""
    setting, _, length = text.partition(", ")
    return setting, length


def _draw(axes: Axes, table: TotalsTable, title: str, colours: Mapping[str, str], markers: Mapping[str, str]) -> None:
    clear_frame(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set(title=title, ylabel=ACCURACY, xlabel="kB an image: all steps, both ways")
    logarithmic(axes, FuncFormatter(lambda value, _: f"{value:g}"))
    whole = next(row.accuracy for row in table.rows if row.setting == _UNCOMPRESSED)
    for row in table.rows:
        setting, length = _parts(row.setting)
        accuracy = row.accuracy if row.difference is None else whole + row.difference  # of common seeds
        if setting != _UNCOMPRESSED:
            axes.errorbar(
                row.kb_steps,
                accuracy,
                row.difference_sem or 0.0,
                color=colours[setting],
                marker=markers[length],
                markersize=9 if length else 6,
                capsize=2,
                zorder=6,
            )
        else:
            axes.axhline(accuracy, color=_INK, linewidth=1.2, linestyle=":" if length else "--", zorder=1)
            epochs = length.partition(",")[0] or f"{table.epochs:g} epochs"
            text, place = f"uncompressed, {epochs}: {accuracy:.1f}, {row.kb_steps:,.0f} kB", (1, accuracy)
            axes.annotate(text, place, (-2, 3), axes.get_yaxis_transform(), "offset points", ha="right", fontsize=8)
    axes.margins(x=0.1, y=0.15)
    add_picture_lines(axes, picture_lines(table.pictures))


def picture_lines(pictures: list[Pictures]) -> dict[str, float]:
    """Each size in kB of an image sent once, by a short name: ``112 px q90``, ``photos q90``, ``their own files``."""
    found: dict[str, float] = {}
    for line in pictures:
        name = line.name.removeprefix("the images as JPEG, once").strip(" ,:")
        qualities = _QUALITIES.search(f" {name}")
        short = "photos" if name.startswith("photos") else _QUALITIES.sub("", f" {name}").strip(" ,:")
        short = short.removeprefix("at ").rpartition("'s ")[2]
        names = [short] if qualities is None else [f"{short} {quality}" for quality in qualities.groups()]
        found |= {one: size / 1000 for one, size in zip(names, line.bytes_an_image, strict=True)}
    return found


def main() -> None:
    write_atomic(PNG, png(figure()))


if __name__ == "__main__":
    main()
