"""The progress of `serve`: a live line on a terminal, a log line every few seconds elsewhere, a table at the end.

Step and time left come first; the rest is left out from its end where there are too few columns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from adc_edge.edge_runtime.tally import Evaluation, Tally
from adc_edge.logs import plain_room
from adc_edge.planning.passive import LinkEstimate
from adc_edge.wire.tcp import KERNEL_COUNTS

_LOG_EVERY_S = 5.0
_FIRST_STEPS = 5  # after which the time of a step is told; the very first one is not counted
_NARROW, _WIDE = 60, 100  # columns of a terminal: below the first a shorter warning, from the second on a bar
_BAR = 20
_PHASES = (  # link and trainer overlap with the phases of the device
    ("data", "data"),
    ("forward", "forward"),
    ("encode", "encode"),
    ("send", "send, journal"),
    ("recompute", "recompute"),
    ("wait", "wait"),
    ("decode", "decode"),
    ("backward", "backward"),
    ("link", "(link)"),
    ("cloud", "(trainer)"),
    ("cloud_codec", "(trainer's codec)"),
)

logger = logging.getLogger(__name__)


class Display:
    """Progress of a run of ``total`` steps; a live line warns all the time if the run is ``insecure``."""

    def __init__(self, console: Console, total: int, done: int, insecure: bool = False) -> None:
        self._console = console
        self._trouble = ""
        warning = ("insecure: in the clear" if console.width >= _NARROW else "insecure") if insecure else ""
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            *([BarColumn(bar_width=_BAR)] if console.width >= _WIDE else []),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            *([TextColumn(f"[bold red]{warning}")] if insecure else []),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total, completed=done)
        self._total, self._logged_at, self._pace = total, 0.0, _Pace()
        fixed = len(f"step {total}/{total} 0:00:00 ") + (len(warning) + 1 if insecure else 0)
        self._room = console.width - fixed - (_BAR + 1 if console.width >= _WIDE else 0)
        if insecure:
            logger.warning("--insecure: whoever is on the way to the trainer can read and change what is sent")

    def __enter__(self) -> Display:
        """Start the live line."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live line, and leave it on the screen."""
        self._progress.stop()

    def outage(self, lost: bool) -> None:
        """Show on the live line, until the next step, that the link is lost or that the trainer is back."""
        text = "link lost, waiting for the trainer" if lost else "the trainer is back"
        self._progress.update(self._task, description=text)

    def trouble(self, error: OSError | None) -> None:
        """Log that a file cannot be written while the run goes on, once for each change."""
        text = "" if error is None else f"{error.filename or 'writing'}: {error.strerror}"
        if text and text != self._trouble:
            logger.warning(
                "%s; the run goes on, but this process, if it dies, resumes from the last good checkpoint only", text
            )
        elif self._trouble and not text:
            logger.info("the files of the run can be written again")
        self._trouble = text

    def step(self, step: int, tally: Tally, link: LinkEstimate | None = None) -> None:
        """Show that ``step`` is done, and the rates of the link if they are known."""
        parts = [
            f"loss {tally.loss:.3f}",
            f"train {tally.accuracy_train:.1%}",
            f"up {decimal(tally.bytes_up)}",
            f"down {decimal(tally.bytes_down)}",
            f"{1e3 * tally.seconds / tally.steps:.0f} ms/step",
        ]
        if link is not None and link.up.mbit_s is not None and not (link.up.at_least and link.down.at_least):
            parts.append(f"link {_rate(link.up.mbit_s)}/{_rate(link.down.mbit_s)} Mbit/s")
        self._progress.update(self._task, completed=step + 1, description=fitted(parts, self._room))
        if not self._console.is_terminal:
            self._log(step + 1, tally, parts)

    def _log(self, done: int, tally: Tally, parts: list[str]) -> None:
        """Log progress every few seconds, and once what the first steps say about the time of all."""
        pace_s = self._pace.seconds(tally)
        left = "" if pace_s is None else roughly((self._total - done) * pace_s)
        if pace_s is not None and self._pace.steps == _FIRST_STEPS and done < self._total:
            logger.info("about %s to go at %s a step, evaluations apart", left, roughly(pace_s))
        if time.monotonic() - self._logged_at > _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            begun = [f"step {done}/{self._total}", *([f"{left} left"] if left else [])]
            logger.info(fitted([*begun, *parts], plain_room(self._console), keep=len(begun)))

    def evaluated(self, evaluation: Evaluation) -> None:
        """Log the result of an evaluation."""
        logger.info(
            f"step {evaluation.step}/{self._total}  test accuracy {evaluation.accuracy:.1%}, "
            f"loss {evaluation.loss:.3f} on {evaluation.images} images"
        )


class _Pace:
    """Time of a step of this process, without the first, which also warms up."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self.steps = 0  # that were timed

    def seconds(self, tally: Tally) -> float | None:
        """Note a step that was added to ``tally``; return the mean time of those so far, None after the first."""
        if self._first is None:
            self._first = tally.steps, tally.seconds
            return None
        steps, seconds = self._first
        self.steps = tally.steps - steps
        return (tally.seconds - seconds) / self.steps if self.steps > 0 else None


def fitted(parts: list[str], room: int | None, keep: int = 0) -> str:
    """Join ``parts``, without the last ones if they need more than ``room`` columns; the first ``keep`` stay."""
    shown = list(parts)
    while room is not None and len(shown) > keep and len("  ".join(shown)) > room:
        shown.pop()
    return "  ".join(shown)


def roughly(seconds: float) -> str:
    """Return a time with two digits: ``85 ms``, ``1.3 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    units = (("ms", 1e-3, 0.9995), ("s", 1.0, 99.5), ("min", 60.0, 5970.0), ("h", 3600.0, 172800.0))
    unit, length = next(((unit, length) for unit, length, most in units if seconds < most), ("days", 86400.0))
    value = seconds / length
    return f"{value:.1f} {unit}" if value < 9.95 and unit != "ms" else f"{value:.0f} {unit}"


def report_table(report: Mapping[str, Any]) -> Table:
    """The report of a run as a table."""
    steps = max(1, report["steps"])
    sent = report["bytes_up"] + report["bytes_down"]
    table = Table(title="What the run did and what it cost", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("test accuracy", _percent(report["accuracy"]))
    if best := report["best"]:
        table.add_row("best, kept", f"{_percent(best['accuracy'])}, step {best['step']}")
    if stopped := report.get("stopped"):
        table.add_row("ended early", f"at step {stopped['step']}")
    table.add_row("steps, images", f"{report['steps']}, {report['images']}")
    both = dict.fromkeys((report["precision"], report["gradient_precision"]))
    table.add_row("ξ sent, precision", f"{report['xi']:.3f}, {' / '.join(both)}")
    if changes := report.get("changes"):
        table.add_row("changes of settings", f"{changes}; these are the last ones")
    table.add_row("bytes up", decimal(report["bytes_up"]))
    table.add_row("bytes down", decimal(report["bytes_down"]))
    table.add_row("uncompressed fp32 would be", decimal(report["bytes_uncompressed_fp32"]))
    table.add_row("sent of that", f"1/{report['bytes_uncompressed_fp32'] / sent:.1f}" if sent else "-")
    table.add_row("evaluation, apart", decimal(report["bytes_evaluation_up"] + report["bytes_evaluation_down"]))
    if probes := report["bytes_probe_up"] + report["bytes_probe_down"]:
        table.add_row("probes of the link, apart", decimal(probes))
    table.add_section()
    table.add_row("time per step", f"{1e3 * report['seconds'] / steps:.1f} ms")
    for name, what in _PHASES:
        seconds = report[f"seconds_{name}"]
        share = f"{seconds / report['seconds']:5.0%}" if report["seconds"] else ""
        table.add_row(f"  {what}", f"{1e3 * seconds / steps:.1f} ms {share}")
    if found := report["busiest"]:
        table.add_row("busiest", f"{found['place']}, {found['share']:.0%} of a step")
        table.caption, table.caption_justify = found["relief"], "left"
    table.add_section()
    if report["rtt_ms"] is None:
        table.add_row("link", f"not measured ({_why_not_measured(report['steps'])})")
    else:
        for name, share in (("link up, down", ""), ("  in all but a tenth of steps", "_p10")):
            rates = " / ".join(_rate(report[f"{way}{share}_mbit_s"]) for way in ("up", "down"))
            table.add_row(name, f"{rates} Mbit/s")
        times = " / ".join(f"{report[k]:.2f}" for k in ("rtt_ms", "rtt_p95_ms", "rtt_p99_ms"))
        table.add_row("RTT p50, p95, p99", f"{times} ms")
        if report["rtt_min_ms"] is not None:
            table.add_row("RTT min", f"{report['rtt_min_ms']:.2f} ms")
    table.add_row("outages", str(report["outages"]))
    if again := report["bytes_repeated_up"] + report["bytes_repeated_down"]:
        table.add_row("sent again after outages", f"{decimal(again)}, {report['steps_repeated']} steps redone")
    if report["drift"] is not None:
        table.add_row("engine v PyTorch, at most", f"{report['drift']:.2g}")
    if report["peak_memory_mb"] is not None:
        table.add_row("peak memory of this process", f"{report['peak_memory_mb']:.0f} MB")
    return table


def _why_not_measured(steps: int) -> str:
    if not KERNEL_COUNTS:
        return "needs Linux"
    return "the link was lost" if steps else "no step was finished"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


def _rate(value: float | None) -> str:
    """Mbit/s as text; above 10 Gbit/s, as on loopback, the kernel's figure only means that the link is no limit."""
    if value is None:
        return "?"
    return "> 10000" if value > 10_000 else f"{value:.1f}"
