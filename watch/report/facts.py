"""The tables of a report: what each run is and has cost, its settings beside the others', sessions, what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.reading.totals import SPENDINGS
from adc_edge.watch.report.curves import joined, placed_marks
from adc_edge.watch.report.source_files import SourceFiles
from adc_edge.watch.report.words import NOT_KNOWN, moment_text, number_text, share_text, size_text, time_text

Runs = Mapping[str, WatchedRun]  # by label
_MARK_ROWS, _LEAST_MARK_ROWS = 100, 5  # of all runs, and of each run
_SESSION_ROWS = 100


class SettingRow(NamedTuple):
    """One setting of all runs."""

    name: str
    values: list[str]
    differs: bool


def overview(runs: Runs) -> list[tuple[str, list[str]]]:
    """Return the rows of the table of runs: a name, and a text for each run."""
    rows: dict[str, Callable[[WatchedRun], str]] = {
        "side": lambda run: run.role or NOT_KNOWN,
        "state": lambda run: run.state,
        "model": lambda run: f"{run.model or NOT_KNOWN}, split {run.split}" if run.model else NOT_KNOWN,
        "ξ, precisions": setting_text,
        "steps": steps_text,
        "test accuracy": _accuracy_text,
        "loss": lambda run: number_text(run.series.last("loss")),
        "bytes, both ways": lambda run: size_text(run.totals.bytes_all),
        "of uncompressed": _share_of_uncompressed,
        "wall time": lambda run: time_text(run.clock.elapsed),
        "outages": _outages_text,
        "repeated steps": _repeated_text,
        "last line": lambda run: moment_text(run.clock.last_time or None),
        "adc-edge": lambda run: run.version or NOT_KNOWN,
        "directory": lambda run: str(run.path),
    }
    return [(name, [tell(run) for run in runs.values()]) for name, tell in rows.items()]


def _accuracy_text(run: WatchedRun) -> str:
    central = run.central
    if not len(central):
        return share_text(run.accuracy)
    images, step, number = (int(central.last(name) or 0) for name in ("images", "step", "round"))
    trunk = f", round {number}" if number else ""
    return f"{share_text(run.accuracy)} of {images:,} images of the trainer's, at step {step}{trunk}"


def setting_text(run: WatchedRun) -> str:
    """Return ξ and the precisions with which a device's run works now."""
    own = next(iter(run.sessions.values()), None)
    if own is None or (run.role == "trainer" and len(run.sessions) > 1):
        return f"{len(run.sessions)} sessions" if run.sessions else ""
    xi = "" if own.xi is None else f"{own.xi:.3g} "
    down = f":{own.gradient_precision}" if own.gradient_precision else ""
    return f"{xi}{own.precision}{down}".strip() or NOT_KNOWN


def steps_text(run: WatchedRun) -> str:
    """Return the steps done and planned."""
    return f"{run.steps_done} of {run.steps_planned}" if run.steps_planned else str(run.steps_done)


def _share_of_uncompressed(run: WatchedRun) -> str:
    whole = run.totals.uncompressed
    return share_text(run.totals.bytes_all / whole) if whole else NOT_KNOWN


def _outages_text(run: WatchedRun) -> str:
    marks = [mark for mark in run.marks if mark.kind == "outage"]
    known = sum(mark.seconds or 0.0 for mark in marks)
    return f"{run.outages}, {time_text(known)}" if known else str(run.outages)


def _repeated_text(run: WatchedRun) -> str:
    if run.role != "device":
        return ""
    return NOT_KNOWN if run.totals.steps_repeated is None else str(run.totals.steps_repeated)


def files_text(run: WatchedRun, files: SourceFiles | None) -> str:
    """Return what sending the training images themselves would take, beside what the run has sent."""
    if run.role != "device":
        return ""
    if files is None or not files.images:
        return "the images as JPEG: not known"
    passes, sent = run.totals.images / files.images, run.totals.bytes_all
    sizes = [(files.size, "as the JPEGs they are" if files.jpeg else "as the files they are")]
    sizes += [(files.q90, f"as JPEG q90 of {files.side}"), (files.q75, f"as JPEG q75 of {files.side}")]
    told = [f"{sent / size:.3g} {kind} ({size_text(size)})" for size, kind in sizes if size]
    if not told:
        return "the images as JPEG: not known"
    return f"times the {files.images} training images, sent once: {', '.join(told)}; so far {passes:.3g} epochs"


def _pictures_text(files: SourceFiles | None) -> str:
    """Return the sizes of the training images as pictures."""
    if files is None:
        return NOT_KNOWN
    sizes = [(files.size, "" if files.jpeg else " (not all JPEG)")]
    sizes += [(files.q90, f" as q90 of {files.side}"), (files.q75, f" as q75 of {files.side}")]
    return ", ".join(f"{size_text(size)}{kind}" for size, kind in sizes if size is not None) or NOT_KNOWN


def bytes_rows(runs: Runs, files: Mapping[str, SourceFiles | None]) -> list[tuple[str, list[str]]]:
    """Return the table of bytes: a label and texts, in the order of BYTES_COLUMNS."""
    rows = []
    for label, run in runs.items():
        up, down = run.totals.spent("up"), run.totals.spent("down")
        parts = [size_text(up[kind] + down[kind]) for kind in SPENDINGS]
        whole = size_text(run.totals.uncompressed) if run.totals.uncompressed else NOT_KNOWN
        sums = [size_text(sum(way.values())) for way in (up, down)]
        rows.append((label, [*sums, *parts, whole, _pictures_text(files.get(label))]))
    return rows


BYTES_COLUMNS = ("up", "down", *SPENDINGS, "uncompressed fp32", "training images as JPEG, once")


def setting_rows(runs: Runs) -> list[SettingRow]:
    """Return every setting of every run, those that differ first. A run without a setting has an empty text."""
    names = sorted({name for run in runs.values() for name in run.settings})
    rows = [_setting(name, runs) for name in names]
    return sorted(rows, key=lambda row: (not row.differs, row.name.startswith("machine."), row.name))


def _setting(name: str, runs: Runs) -> SettingRow:
    values = [_value_text(run.settings[name]) if name in run.settings else "" for run in runs.values()]
    known = {value for value, run in zip(values, runs.values(), strict=True) if name in run.settings}
    return SettingRow(name, values, len(known) > 1)


def _value_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)[:300]


def session_rows(runs: Runs) -> list[list[str]]:
    """Return the table of sessions: trainer's run, device, device's run, state, both sides' steps, loss, accuracy."""
    found = joined(runs)
    newest = sorted(found, key=lambda one: runs[one[0]].sessions[one[1]].last_time)[-_SESSION_ROWS:]
    shown = set(newest)
    rows = []
    for label, key, other in filter(shown.__contains__, found):
        session = runs[label].sessions[key]
        own = runs[other].steps_done if other else None
        steps = f"{session.step} of {session.steps}" if session.steps else str(session.step)
        rows.append(
            [
                label,
                session.device or NOT_KNOWN,
                other or "none given",
                session.state,
                steps,
                "" if own is None else str(own),
                number_text(session.loss),
                share_text(session.accuracy),
                share_text(session.test_accuracy),
                session.last_error,
            ]
        )
    if len(found) > len(shown):
        rows.append([f"and {len(found) - len(shown)} more"] + [""] * (len(SESSION_COLUMNS) - 1))
    return rows


SESSION_COLUMNS = (
    "trainer's run",
    "device",
    "device's run",
    "state",
    "steps here",
    "steps on the device",
    "loss",
    "train accuracy",
    "test accuracy",
    "last error",
)


def mark_rows(runs: Runs) -> list[list[str]]:
    """Return what happened: run, kind, step, time since the run began, how long, and details."""
    words = {"outage": "outage", "plan": "settings changed", "resume": "resumed"}
    most = max(_MARK_ROWS // len(runs), _LEAST_MARK_ROWS)  # of a run: the newest
    rows = []
    for label, run in runs.items():
        placed = placed_marks(run)
        if len(placed) > most:
            rows.append([label, f"{len(placed) - most} earlier ones", "", "", "", ""])
        for place, mark in placed[-most:]:
            at = time_text(place.elapsed)
            long = time_text(mark.seconds) if mark.kind == "outage" and mark.seconds is not None else ""
            long = "goes on" if mark.kind == "outage" and mark.seconds is None else long
            session = run.sessions.get(mark.session)
            text = mark.text or (session.device if session and mark.session else "")
            step = NOT_KNOWN if place.step is None else f"{place.step:.0f}"
            rows.append([label, words[mark.kind], step, at, long, text])
    return rows


MARK_COLUMNS = ("run", "event", "step", "after", "lasted", "details")


def trouble_rows(runs: Runs) -> list[list[str]]:
    """Return warnings of the runs: run, when, text."""
    rows = []
    for label, run in runs.items():
        if run.torn:
            rows.append(
                [label, "", f"{run.torn} lines cannot be read and were left out, as a kill or a full disk leaves"]
            )
        if run.state == "damaged":
            rows.append([label, "", "settings.json or the checkpoints are damaged; what could be read is shown"])
        rows += [[label, moment_text(found.time or None), found.text] for found in run.warnings]
    return rows
