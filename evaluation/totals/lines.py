"""Vertical lines in a plot of bytes: the images sent once, each named along its line."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.axes import Axes

_COLOUR = "#6b4c9a"
_TEXT = 8.0
_ROOM = 0.06  # of the axis: left of the first line, for its name
_NEAR = 0.034  # of the axis: names of lines that are nearer than this stand on one line of text


def add_picture_lines(axes: Axes, lines: Mapping[str, float]) -> None:
    """Draw a line at each number of bytes, or share of them, on a logarithmic axis that is made to hold all.

    Call it after everything else is drawn: names of lines that lie too close are joined.
    """
    if not lines:
        return
    low, high = axes.get_xlim()
    high = max(high, 1.3 * max(lines.values()))
    first = min(lines.values())
    axes.set_xlim(min(low, first * (first / high) ** _ROOM), high)
    for place in lines.values():
        axes.axvline(place, color=_COLOUR, linewidth=1.1, linestyle=(0, (5, 2)), zorder=1.5)
    for place, text in joined_names(lines, *axes.get_xlim()):
        axes.annotate(
            text, (place, 0), (-2, 5), axes.get_xaxis_transform(), "offset points",
            rotation=90, ha="right", va="bottom", fontsize=_TEXT, color=_COLOUR, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip


def joined_names(lines: Mapping[str, float], low: float, high: float) -> list[tuple[float, str]]:
    """Return place and text of each label from left to right, one for lines that lie too close for two."""
    width = math.log(high / low)
    groups: list[list[tuple[float, str]]] = []
    for place, name in sorted((place, name) for name, place in lines.items()):
        if groups and math.log(place / groups[-1][-1][0]) < _NEAR * width:
            groups[-1].append((place, name))
        else:
            groups.append([(place, name)])
    return [(group[0][0], "images once: " + ", ".join(name for _, name in group)) for group in groups]
