"""The report as one HTML file that opens offline and asks no server for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from adc_edge import __version__
from adc_edge.terminal import readable
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.report import facts
from adc_edge.watch.report.class_images import class_sheet
from adc_edge.watch.report.curves import FEW_POINTS, POINTS, joined, run_values, session_values
from adc_edge.watch.report.source_files import SourceFiles, source_files
from adc_edge.watch.report.words import moment_text

_ASSETS = files("adc_edge.watch.assets")
_START = 'drawCharts(document.getElementById("charts"), JSON.parse(document.getElementById("runs").textContent));'
_ALL_POINTS, _LEAST_POINTS = 1600, 50  # of one curve of all runs, and of each run
_MOST_SESSIONS = 12  # of a trainer, with curves of their own
# A JSON text within HTML: nothing in it may end its element.
_INSIDE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render(runs: Mapping[str, WatchedRun], title: str = "") -> bytes:
    """Return the page of runs, which have been read, by their labels."""
    found = {label: _files(run) for label, run in runs.items()}
    scripts = [_asset("uPlot.iife.min.js"), f"{_asset('charts.js')}\n{_START}"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adc_edge.watch.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    going = sum(run.state in ("running", "waiting") for run in runs.values())
    page = environment.get_template("page.html").render(
        title=title or _title(runs),
        version=__version__,
        now=moment_text(time.time()),
        going=f"{going} of {len(runs)} runs {'was' if going == 1 else 'were'}" if going else "",
        labels=list(runs),
        policy=_policy(scripts),
        style=Markup(f"{_asset('uPlot.min.css')}\n{_asset('page.css')}"),
        scripts=[Markup(script) for script in scripts],
        data=Markup(script_json(chart_runs(runs, found))),
        **_tables(runs, found),
    )
    return readable(page).encode()


def _files(run: WatchedRun) -> SourceFiles | None:
    return source_files(run.settings, run.about.manifest) if run.role == "device" else None


def chart_runs(runs: Mapping[str, WatchedRun], found: Mapping[str, SourceFiles | None]) -> list[dict[str, Any]]:
    """Return what `charts.js` draws: every run, and the sessions of trainers whose devices' runs are not here."""
    points = max(min(POINTS, _ALL_POINTS // len(runs)), _LEAST_POINTS)
    charts: list[dict[str, Any]] = []
    for label, run in runs.items():
        values = run_values(run, label, points=points, few=min(points, FEW_POINTS))
        if run.role == "device":
            values["files"] = facts.files_text(run, found[label])
        charts.append(values)
    alone = [(label, key) for label, key, other in joined(runs) if not other]
    many = {label for label, run in runs.items() if len(run.sessions) > 1}
    for label, key in [pair for pair in alone if pair[0] in many][:_MOST_SESSIONS]:
        session = runs[label].sessions[key]
        charts.append(session_values(session, f"{label}: {_session_label(runs[label], key)}", points=points))
    return charts


def _session_label(run: WatchedRun, key: str) -> str:
    """Return a device's name, with digits of the session where several are of one device."""
    device = run.sessions[key].device
    twice = sum(session.device == device for session in run.sessions.values()) > 1
    return f"{readable(device)} ({key[-4:]})" if device and twice else readable(device) or key


def script_json(value: Any) -> str:
    """Return JSON that may stand in a script element, whatever its texts hold."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return "".join(_INSIDE.get(character, character) for character in text)


def _tables(runs: Mapping[str, WatchedRun], found: Mapping[str, SourceFiles | None]) -> dict[str, Any]:
    return {
        "overview": facts.overview(runs),
        "trouble": facts.trouble_rows(runs),
        "bytes": [[label, *texts] for label, texts in facts.bytes_rows(runs, found)],
        "bytes_columns": list(facts.BYTES_COLUMNS),
        "marks": facts.mark_rows(runs),
        "mark_columns": facts.MARK_COLUMNS,
        "sessions": facts.session_rows(runs),
        "session_columns": facts.SESSION_COLUMNS,
        "classes": [(label, *sheet) for label, run in runs.items() if (sheet := class_sheet(run))],
        "settings": facts.setting_rows(runs),
    }


def _title(runs: Mapping[str, WatchedRun]) -> str:
    return f"Run {next(iter(runs))}" if len(runs) == 1 else f"{len(runs)} runs"


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """Return a policy under which nothing is fetched and no other script than ours runs."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    ours = f"script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
    return f"default-src 'none'; {ours}; base-uri 'none'; form-action 'none'"
