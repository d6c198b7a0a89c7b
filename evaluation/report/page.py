"""The results as one HTML page that opens offline: plots, tables, the study and the machines."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import msgspec
from matplotlib.figure import Figure

from adc_edge.evaluation.report.fleet_plot import fleets_figure
from adc_edge.evaluation.report.fleets import main_runs
from adc_edge.evaluation.report.groups import OURS
from adc_edge.evaluation.report.plots import panels, svg
from adc_edge.evaluation.report.sheet import NONE
from adc_edge.evaluation.report.tables import sheets
from adc_edge.evaluation.report.views import Views
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.totals.pictures import pictures_facts
from adc_edge.evaluation.totals.plot import totals_figure


class _Plot(NamedTuple):
    """A picture inside the page."""

    title: str
    data: str  # a data: address, so that nothing is loaded


def page(study: Study, runs: Sequence[Run], seen: Views, budget: float) -> str:
    """Render a self-contained page from the template `page.html`.

    Args:
        study: the task.
        runs: the finished runs.
        seen: views of the runs.
        budget: the second plot shows each group's best setting at this share of the uncompressed bytes.
    """
    facts = [("The study", msgspec.to_builtins(study)), *(("The machine", about) for about in machines(runs))]
    if seen.beside.pictures is not None:
        facts.insert(1, ("The images, sent once", pictures_facts(seen.beside.pictures)))
    pictures = list(panels(study, main_runs(runs)[0], seen, budget))
    if is_drawn(seen):
        pictures.append(totals_figure(study, seen))
    if len(seen.fleets):
        pictures.append(fleets_figure(runs))
    files = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=files, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=f"ADC and its rivals: {study.model} on {study.data}, split after block {study.split}",
        plots=[_plot(picture) for picture in pictures],
        note=seen.note,
        sheets=sheets(seen),
        ours=OURS,
        facts=[(heading, {name: _plain(value) for name, value in about.items()}) for heading, about in facts],
    )


def is_drawn(seen: Views) -> bool:
    """Return whether there is a plot of whole trainings: their bytes are known."""
    return len(seen.totals) > 0 and bool(seen.totals["bytes_total"].notna().all())


def machines(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The machines that made the runs, each once."""
    found: list[dict[str, Any]] = []
    for run in runs:
        if run.machine not in found:
            found.append(run.machine)
    return found


def _plot(picture: Figure) -> _Plot:
    return _Plot(picture.axes[0].get_title(), f"data:image/svg+xml;base64,{base64.b64encode(svg(picture)).decode()}")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items()) or NONE
    return NONE if value is None else str(value)
