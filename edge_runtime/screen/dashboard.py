"""The live area of `serve`: its rows, drawn from the figures that the run has left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from statistics import mean, median
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal

from adc_edge.edge_runtime.screen.figures import RunFigures, step_parts
from adc_edge.edge_runtime.tally import StepRecord, Tally, best_of, peak_memory_mb
from adc_edge.method.ratio import Shape
from adc_edge.planning.passive import LinkEstimate
from adc_edge.screen.bars import Part, progress_bar, split_bar, split_legend
from adc_edge.screen.curve import TALL, Curve, add_curve
from adc_edge.screen.sheet import Piece, RowSheet
from adc_edge.screen.warned import LastWarnings
from adc_edge.screen.words import rate_in_words, roughly

_RECENT = 50  # steps for the pace and the time of each phase
_SHORT_S = 0.5  # a wait that is not worth a row
_SILENT_S, _SILENT_STEPS = 5.0, 4.0  # without a step for so long, and for so many usual ones, a row says so
_HIGH_ROWS = 4  # of a curve on a tall terminal
_INSECURE = "insecure: in the clear, whoever is on the way can read and change what is sent"
_PHASES = (  # name, phases of a step in it, letter, colour
    ("data", ("data",), "d", "blue"),
    ("forward", ("forward",), "f", "cyan"),
    ("backward", ("recompute", "backward"), "b", "magenta"),
    ("codec", ("encode", "decode"), "c", "yellow"),
    ("send", ("send",), "s", "green"),
    ("wait", ("wait",), "w", "bright_black"),
)


class Dashboard:
    """Draws the rows; what it needs of the past it keeps itself, in bounded memory."""

    def __init__(self, figures: RunFigures, console: Console) -> None:
        self._figures = figures
        self._colours = console.color_system is not None and not console.no_color
        self._loss, self._accuracy = Curve(), Curve()
        self._recent: deque[StepRecord] = deque(maxlen=_RECENT)
        self._warnings = LastWarnings()
        self._started = time.monotonic()

    def __enter__(self) -> Dashboard:
        """Begin to keep warnings."""
        self._warnings.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop keeping warnings."""
        self._warnings.__exit__()

    def draw_line(self, sheet: RowSheet) -> None:
        """Add the single row of a small terminal, or of a run that has ended."""
        self._take()
        figures, state = self._figures, self._state()
        begun: list[Piece | str] = [f"step {figures.done}/{figures.total}"]
        begun += [f"{left} left"] if (left := self._left()) and figures.done < figures.total else []
        begun += [("insecure", "bold red")] if figures.insecure else []
        figures_of_steps = [] if figures.tally is None else step_parts(figures.tally, figures.link)
        sheet.add(0, "", *begun, *([(state, "yellow")] if state else figures_of_steps))

    def draw(self, sheet: RowSheet, height: int) -> None:
        """Add all rows for a terminal of ``height`` lines."""
        self._take()
        figures, tally = self._figures, self._figures.tally
        rows = _HIGH_ROWS if height >= TALL else 1
        sheet.rule(3, f"serve  {figures.title}")
        self._warnings.draw(sheet, 6, 40)
        if figures.insecure:
            sheet.add(2, "", (_INSECURE, "bold red"))
        if state := self._state():
            sheet.add(1, "", (state, "bold yellow"))
        self._progress(sheet)
        if tally is None:
            return
        self._curves(sheet, tally, rows)
        self._costs(sheet, tally)
        self._phases(sheet)

    def _take(self) -> None:
        """Take the steps that were done since the last drawing."""
        steps = self._figures.steps
        while steps:
            record = steps.popleft()
            self._recent.append(record)
            self._loss.add(record.loss)
            self._accuracy.add(record.accuracy)

    def _pace(self) -> float | None:
        """Seconds of a usual step; None before the first one."""
        return median(record.seconds for record in self._recent) if self._recent else None

    def _left(self) -> str:
        """Time left with the share of evaluations and averages; nothing before the first step."""
        figures, tally, pace = self._figures, self._figures.tally, self._pace()
        if pace is None or tally is None:
            return ""
        between = (tally.seconds_evaluation + tally.seconds_trunk) / max(1, tally.steps)
        return roughly((figures.total - figures.done) * (pace + between))

    def _state(self) -> str:
        """Return what the run waits for, in words; nothing while steps go on."""
        figures, now = self._figures, time.monotonic()
        attempt = None if figures.channel is None else figures.channel.attempt
        lost = "link lost, " if figures.link_state == "lost" else ""
        if attempt is not None and (lost or now - attempt.since > _SHORT_S):
            why = f" ({attempt.why})" if attempt.why else ""
            return f"{lost}waiting for the trainer, {now - attempt.since:.0f} s, try {attempt.number}{why}"
        if lost:
            return f"{lost}waiting for the trainer"
        if figures.fleet_wait is not None and now - figures.fleet_wait[1] > _SHORT_S:
            return f"waiting for {figures.fleet_wait[0]}, {now - figures.fleet_wait[1]:.0f} s"
        if figures.link_state == "back":
            return "the trainer is back"
        if figures.evaluating_since is not None:
            return f"evaluating, {now - figures.evaluating_since:.0f} s"
        silent, pace = now - max(figures.last_step_at, self._started), self._pace()
        if figures.done < figures.total and silent > max(_SILENT_S, _SILENT_STEPS * (pace or 0.0)):
            return f"no step for {silent:.0f} s" if pace else f"getting ready, {silent:.0f} s"
        return ""

    def _progress(self, sheet: RowSheet) -> None:
        figures, pace = self._figures, self._pace()
        done = figures.done / figures.total if figures.total else 1.0
        ends = [f"{done:.0%}", *([f"{left} left"] if (left := self._left()) else [])]
        ends += [f"{1 / pace:.3g} steps/s"] if pace else []
        begin = f"{figures.done}/{figures.total}"
        room = sheet.room(len(begin) + 2 + sum(len(end) + 2 for end in ends))
        (full, style), (rest, dim) = progress_bar(done, max(room, 0))
        sheet.add(0, "step", begin, (f"  {full}", style), (rest, dim), *(f"  {end}" for end in ends), between="")

    def _curves(self, sheet: RowSheet, tally: Tally, rows: int) -> None:
        add_curve(sheet, 10, "loss", f"{tally.loss or 0.0:.3f}", self._loss.values(), rows, ".3f")
        add_curve(sheet, 13, "train", f"{tally.accuracy_train or 0.0:.1%}", self._accuracy.values(), rows, ".0%")
        judged = [evaluation for evaluation in list(tally.evaluations) if evaluation.images]
        if judged:
            best, _ = best_of(judged)
            last = f"{judged[-1].accuracy:.1%}"
            ends = [f"best {best.accuracy:.1%} at step {best.step}"] if best else []
            add_curve(sheet, 12, "test", last, [evaluation.accuracy for evaluation in judged], rows, ".0%", ends)

    def _costs(self, sheet: RowSheet, tally: Tally) -> None:
        figures, settings, link = self._figures, self._figures.settings, self._figures.link
        if settings is not None:
            frozen = figures.frozen or settings.is_frozen_at(tally.steps)
            precisions = f"{settings.precision} up" + ("" if frozen else f", {settings.gradient_precision} down")
            messages = [f"{settings.micro_batches} messages a step"] if settings.micro_batches > 1 else []
            sheet.add(30, "sends", precisions, f"ξ {settings.shape.xi:.3g}", _kept(settings.shape), *messages)
            image_bytes = 4 * settings.shape.tokens * settings.dim
            whole = tally.uncompressed_bytes(image_bytes, figures.frozen, settings.frozen_from)
            sheet.add(20, "bytes", *_bytes(tally, whole))
        if link is not None:
            lost: list[Piece | str] = [("lost", "bold red")] if figures.link_state == "lost" else []
            sheet.add(15, "link", *lost, *_link(tally, link))

    def _phases(self, sheet: RowSheet) -> None:
        whole = sum(record.seconds for record in self._recent)
        if whole <= 0.0:
            return
        parts = [
            Part(name, sum(_seconds(record, phases) for record in self._recent) / whole, letter, colour)
            for name, phases, letter, colour in _PHASES
        ]
        pace = roughly(whole / len(self._recent))
        sheet.add(16, "a step", f"{pace:<8}", *split_bar(parts, sheet.room(8), self._colours), between="")
        away = (("link", "seconds_link"), ("trainer", "seconds_cloud"))
        others = [f"{name} {roughly(mean(getattr(record, field) for record in self._recent))}" for name, field in away]
        memory = peak_memory_mb()
        ends = [] if memory is None else [f"memory {memory:.0f} MB"]
        sheet.add(17, " ", *split_legend(parts, self._colours, sheet.room()), *others, *ends)


def _kept(shape: Shape) -> str:
    return f"T {shape.clusters} of {shape.images} images, k {shape.kept} of {shape.tokens} tokens"


def _bytes(tally: Tally, uncompressed: int) -> Iterator[str]:
    sent = tally.bytes_up + tally.bytes_down
    yield f"{decimal(tally.bytes_up)} up, {decimal(tally.bytes_down)} down"
    if sent:
        yield f"1/{uncompressed / sent:.1f} of uncompressed"
    if averaging := tally.bytes_trunk_up + tally.bytes_trunk_down:
        yield f"trunk {decimal(averaging)}"
    if judging := tally.bytes_evaluation_up + tally.bytes_evaluation_down:
        yield f"evaluations {decimal(judging)}"
    if again := tally.bytes_repeated_up + tally.bytes_repeated_down:
        yield f"sent again {decimal(again)}"


def _link(tally: Tally, link: LinkEstimate) -> Iterator[str]:
    up, down = (rate_in_words(way.mbit_s, way.at_least) for way in (link.up, link.down))
    yield f"{up} up, {down} down Mbit/s" if link.up.mbit_s else "not measured yet"
    if rtts := tally.rtt_samples_ms[-_RECENT:]:
        yield f"RTT {median(rtts):.1f} ms"
    if tally.outages:
        yield f"outages {tally.outages}"


def _seconds(record: StepRecord, phases: Sequence[str]) -> float:
    return sum(float(getattr(record, f"seconds_{phase}")) for phase in phases)
