"""The figure of ten epochs has a panel for each table, and a line for each size of the pictures."""

from __future__ import annotations

import results_figure
from results_records import Pictures, TotalsTable, read_records


def test_every_table_of_a_panel_is_drawn_with_all_its_settings_and_pictures() -> None:
    tables = read_records("ten-epochs").tables
    shown = [table for name in results_figure.PANELS if isinstance(table := tables.get(name), TotalsTable)]
    panels = results_figure.figure().axes
    assert len(panels) == len(shown) > 0
    for axes, table in zip(panels, shown, strict=True):
        points = {float(bars.lines[0].get_xdata()[0]) for bars in axes.containers}  # type: ignore[attr-defined]
        assert points == {row.kb_steps for row in table.rows if row.setting.partition(", ")[0] != "none"}
        places = {float(line.get_xdata()[0]) for line in axes.lines}  # type: ignore[arg-type, index]
        assert {size / 1000 for one in table.pictures for size in one.bytes_an_image} <= places


def test_pictures_have_short_names() -> None:
    pictures = [
        Pictures("the images as JPEG, once (q90 / q75), at 64 px", [3_000.0, 2_000.0], ""),
        Pictures("the images as JPEG, once: their own files", [1_000.0], ""),
        Pictures("the images as JPEG, once (q90 / q75): CIFAR-10's own 32 px", [900.0, 800.0], ""),
        Pictures("photos of ImageNet as JPEG, once (q90 / q75), at 64 px", [5_000.0, 4_000.0], ""),
    ]
    assert results_figure.picture_lines(pictures) == {
        "64 px q90": 3.0, "64 px q75": 2.0, "their own files": 1.0, "own 32 px q90": 0.9, "own 32 px q75": 0.8,
        "photos q90": 5.0, "photos q75": 4.0,
    }  # fmt: skip
