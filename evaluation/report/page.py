"""All of it as one HTML page that opens offline: both plots to hover over, the tables, the study and the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import msgspec
import plotly.graph_objects as go
import plotly.io
from matplotlib.ticker import EngFormatter

from adc_edge.evaluation.report.plots import ACCURACY, BYTES, SHARE, STYLES, frontier
from adc_edge.evaluation.report.tables import NONE, Sheet, sheets
from adc_edge.evaluation.report.views import OURS, UNCOMPRESSED, Views, full_bytes, learning_curve, representatives
from adc_edge.evaluation.study.records import Run, Study

_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "<": "triangle-left",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
    ".": "circle",
}
_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; } .plot { min-width: 50rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem .15rem 0; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid #999; font-weight: 600; }
.word { text-align: left; }
tr.section td { padding-top: .7rem; font-weight: 600; text-align: left; }
tr.ours { color: #a64900; }
p.note { color: #666; max-width: 60rem; }
"""


def page(study: Study, runs: Sequence[Run], seen: Views, budget: float) -> str:
    """The page. It asks no other machine for anything.

    Args:
        study: the task.
        runs: all of them.
        seen: their views.
        budget: at which the second plot's settings are their group's best.
    """
    plots = (steps_plot(study, seen), curves_plot(study, runs, seen, budget))
    parts = [_embedded(plot, f"plot{number}", library=number == 0) for number, plot in enumerate(plots)]
    parts += [_table(sheet) for sheet in sheets(seen)]
    parts += ["<h2>The study</h2>", _facts(msgspec.to_builtins(study))]
    for about in machines(runs):
        parts += ["<h2>The machine</h2>", _facts(about)]
    title = f"ADC and its rivals: {study.model} on {study.data}, split after block {study.split}"
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def machines(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Where the runs were made, each once."""
    found: list[dict[str, Any]] = []
    for run in runs:
        if run.machine not in found:
            found.append(run.machine)
    return found


def steps_plot(study: Study, seen: Views) -> go.Figure:
    """Accuracy against a step's share, after equal steps; a line through the best of each group."""
    result = go.Figure()
    for group, style in STYLES.items():
        settings = seen.steps[seen.steps["group"] == group].sort_values("share")
        if settings.empty:
            continue
        if group == UNCOMPRESSED:
            level = 100 * float(settings["accuracy"].iloc[0])
            label = f"uncompressed {level:.1f} %"
            result.add_hline(
                level,
                line={"dash": "dash", "color": style.colour, "width": 1},
                annotation_text=label,
                annotation_position="top left",
            )
            continue
        best = frontier(settings)
        for shown, mode, opacity in ((best, "lines+markers", 1.0), (settings.drop(best.index), "markers", 0.4)):
            if shown.empty:
                continue
            result.add_scatter(
                x=list(100 * shown["share"]),
                y=list(100 * shown["accuracy"]),
                error_y={"array": list(100 * shown["std"].fillna(0.0)), "thickness": 1, "width": 3},
                text=[
                    f"{setting}, {seeds} seeds" for setting, seeds in zip(shown["setting"], shown["seeds"], strict=True)
                ],
                hovertemplate="%{text}<br>%{x:.3g} % of the bytes<br>%{y:.2f} % ± %{error_y.array:.2f}",
                mode=mode,
                opacity=opacity,
                showlegend=mode != "markers",
                **_look(group),
            )
    _lay_out(result, f"After {study.epochs:g} epochs of every method", SHARE, "{:g}".format)
    return result


def curves_plot(study: Study, runs: Sequence[Run], seen: Views, budget: float) -> go.Figure:
    """Accuracy against all bytes sent so far: for each group its best setting at a budget, a band of one std."""
    result = go.Figure()
    for group, setting in representatives(seen, budget).items():
        curve = learning_curve([run for run in runs if run.setting == setting])
        std, x = curve["std"].fillna(0.0), list(curve["bytes"])
        low, high = list(100 * (curve["accuracy"] - std)), list(100 * (curve["accuracy"] + std))
        result.add_scatter(
            x=[*x, *reversed(x)],
            y=[*high, *reversed(low)],
            fill="toself",
            opacity=0.2,
            fillcolor=STYLES[group].colour,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            legendgroup=group,
        )
        result.add_scatter(
            x=x,
            y=list(100 * curve["accuracy"]),
            text=[f"{setting}, epoch {epoch:g}" for epoch in curve["epoch"]],
            hovertemplate="%{text}<br>%{x:.3s}B<br>%{y:.2f} %",
            mode="lines+markers",
            **_look(group) | {"name": f"{group}: {setting}"},
        )
    result.add_vline(budget * full_bytes(study, runs[0]), line={"dash": "dot", "color": "#888", "width": 1})
    _lay_out(
        result,
        f"Along a run: each group's best at {100 * budget:.3g} % of the bytes (dotted)",
        BYTES,
        EngFormatter(unit="B"),
    )
    return result


def _look(group: str) -> dict[str, Any]:
    style = STYLES[group]
    return {
        "name": group,
        "legendgroup": group,
        "marker": {"symbol": _SYMBOLS[style.marker], "size": 8, "color": style.colour},
        "line": {
            "color": style.colour,
            "width": 3.5 if group == OURS else 1.8,
            "dash": "dash" if style.dashed else None,
        },
    }


def _lay_out(plot: go.Figure, title: str, x: str, told: Callable[[float], str]) -> None:
    plot.update_layout(
        title={"text": title, "font": {"size": 16}},
        template="simple_white",
        height=520,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
        hoverlabel={"align": "left"},
    )
    ticks = [digit * 10.0**power for power in range(-4, 15) for digit in (1, 2, 5)]
    plot.update_xaxes(title=x, type="log", tickvals=ticks, ticktext=[told(tick) for tick in ticks])
    plot.update_yaxes(title=ACCURACY, showgrid=True, gridcolor="#e6e6e6")


def _embedded(plot: go.Figure, name: str, library: bool) -> str:
    """The plot as a division; the first one brings the library along."""
    division = plotly.io.to_html(
        plot,
        include_plotlyjs=library,
        include_mathjax=False,
        full_html=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True, "showSendToCloud": False},
    )
    return f'<div class="wide"><div class="plot">{division}</div></div>'


def _table(sheet: Sheet) -> str:
    rows = "\n".join(_rows(sheet))
    heads = "".join(_cell("th", name, number < sheet.words) for number, name in enumerate(sheet.columns))
    return (
        f'<h2>{escape(sheet.title)}</h2>\n<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f'<tbody>\n{rows}\n</tbody></table></div>\n<p class="note">{escape(sheet.caption)}</p>'
    )


def _rows(sheet: Sheet) -> Iterator[str]:
    for section in sheet.sections:
        yield f'<tr class="section"><td colspan="{len(sheet.columns)}">{escape(section.title)}</td></tr>'
        for row in section.rows:
            cells = "".join(_cell("td", cell, number < sheet.words) for number, cell in enumerate(row))
            yield f'<tr class="ours">{cells}</tr>' if OURS in (row[0], section.title) else f"<tr>{cells}</tr>"


def _facts(facts: dict[str, Any]) -> str:
    rows = (f"<tr>{_cell('td', name, True)}{_cell('td', _plain(value), True)}</tr>" for name, value in facts.items())
    return f'<div class="wide"><table>\n{"".join(rows)}\n</table></div>'


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items()) or NONE
    return NONE if value is None else str(value)


def _cell(tag: str, text: str, word: bool) -> str:
    return f'<{tag} class="word">{escape(text)}</{tag}>' if word else f"<{tag}>{escape(text)}</{tag}>"
