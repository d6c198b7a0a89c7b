"""The front as a table, and the sentences below it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adc_edge.calibration.plan.inputs import PlanInputs
from adc_edge.calibration.plan.make import Made, busy_part, trainer_limit
from adc_edge.logs import AnyConsole
from adc_edge.planning.accuracy.frontier import Estimate, MeasuredStudy
from adc_edge.planning.accuracy.studies import shipped_studies
from adc_edge.planning.choice import ALMOST, Candidate, spread_out
from adc_edge.planning.profile import share_text

_ROWS = 10
_UNITS = {"MB": 1e6, "kB": 1e3}
_HARDLY = 0.2  # points of accuracy
_NARROW = 76  # columns from which the trunk and SSIM are shown
_WIDE = 110  # and the parts of a step
_LEFT = ("", "up:down", "T/B x k/N", "trunk")


def plan_table(made: Made, width: int) -> Table:
    """Return the front for a terminal of ``width`` columns, the chosen row marked."""
    table = Table(
        title=_title(made), caption=_caption(made), caption_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False
    )
    shown = _shown(made, width)
    columns = _columns(made, shown, width)
    for name in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    for one in shown:
        style = "bold" if one == made.choice.candidate else None
        table.add_row(*(text(one) for text in columns.values()), style=style)
    return table


def _columns(made: Made, shown: list[Candidate], width: int) -> dict[str, Callable[[Candidate], str]]:
    """Return the columns that fit, each with the function that makes its cells."""
    unit, chosen = _unit(shown), made.choice.candidate
    parts = {
        "device s": lambda one: _all_of(one, one.prediction.costs[:3]),
        "link s": lambda one: _all_of(one, [max(one.prediction.costs.up, one.prediction.costs.down)]),
        "trainer s": lambda one: _all_of(one, [one.prediction.costs.cloud]),
        "W": lambda one: str(one.plan.window or one.plan.micro_batches),
    }
    columns: dict[str, Callable[[Candidate], str]] = {
        "": lambda one: ">" if one == chosen else "",
        "up:down": lambda one: f"{one.plan.precision}:{one.plan.gradient_precision or '-'}",
        "T/B x k/N": _shares,
        **({"trunk": _trunk} if width >= _NARROW else {}),
        "M": lambda one: str(one.plan.micro_batches),
        "step s": lambda one: digits(one.prediction.seconds),
        unit: lambda one: digits(one.bytes / _UNITS[unit]),
        **(parts if width >= _WIDE and made.compute_known else {}),
        "accuracy": _points,
    }
    if width >= _NARROW and any(one.ssim is not None for one in shown):
        columns["SSIM"] = _similarity
    return columns


def _all_of(one: Candidate, seconds: Sequence[float]) -> str:
    return digits(one.plan.micro_batches * sum(seconds))


def _shown(made: Made, width: int) -> list[Candidate]:
    """Return the rows: the chosen one, the front without what hardly differs, and the chosen one partly frozen."""
    chosen = made.choice.candidate
    measured = sorted((one for one in made.front if one.accuracy is not None), key=_points_of, reverse=True)
    kept = [chosen]
    for one in measured:
        if not any(_as_good(other, one) for other in kept):
            kept.append(one)
    frozen = [one for one in made.frozen if one != chosen] if width >= _NARROW else []
    return spread_out(kept, _ROWS, [chosen]) + frozen


def _points_of(one: Candidate) -> float:
    return -math.inf if one.accuracy is None else one.accuracy.value


def _as_good(one: Candidate, other: Candidate) -> bool:
    faster = one.prediction.seconds <= other.prediction.seconds * (1 + ALMOST)
    return faster and one.bytes <= other.bytes * (1 + ALMOST) and _points_of(one) >= _points_of(other) - _HARDLY


def _title(made: Made) -> str:
    link = made.task.link
    return (
        f"Best settings: {made.task.batch_size} images a step, "
        f"{link.up_mbit_s:.3g} Mbit/s up, {link.down_mbit_s:.3g} down, RTT {link.rtt_ms:.3g} ms"
    )


def _caption(made: Made) -> str:
    known = "" if made.compute_known else " step s: of the link alone, since no profile tells what computing takes."
    return (
        f"up:down: precision of activations and gradients. M: micro-batches. MB, kB: of a step, both ways.{known} "
        "accuracy: points above uncompressed training, ± standard error; ~ between two measured settings; "
        "–: not measured. SSIM: images that an inverter reconstructs, 1: the originals."
    )


def _shares(one: Candidate) -> str:
    ratio = one.ratio
    return f"{ratio.batch:g}x{ratio.token:g}" if ratio.xi is None else "1x1" if ratio.xi == 1.0 else f"ξ={ratio.xi:g}"


def _trunk(one: Candidate) -> str:
    if one.plan.gradient_precision is None:
        return "frozen"
    return f"from {one.plan.freeze_first + 1}" if one.plan.freeze_first else "all"


def _unit(shown: list[Candidate]) -> str:
    return "MB" if max(one.bytes for one in shown) >= 1e5 else "kB"


def digits(number: float) -> str:
    """Return a number with three digits, and at most three behind the point."""
    return f"{number:.3f}" if number < 1 else f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _points(one: Candidate) -> str:
    found = one.accuracy
    if found is None:
        return "–"
    spread = "" if found.spread is None else f" ± {found.spread:.1f}"
    return f"{'' if found.measured else '~'}{found.value + 0.0:+.1f}{spread}"


def _similarity(one: Candidate) -> str:
    found = one.ssim
    return "–" if found is None else f"{'' if found.measured else '~'}{found.value:.2f}"


def say_plan(console: AnyConsole, made: Made, inputs: PlanInputs) -> None:
    """Print why a setting was chosen, and where its numbers come from."""
    lines = [*_plan_lines(made), *(("note", note) for note in inputs.notes)]
    if not made.compute_known:
        command = f"adc-edge profile --bundle {shlex.quote(str(inputs.bundle.path))} --trainer {inputs.trainer}"
        lines.append(("note", f"no --profile: what computing takes is not known. To measure it: {command} --json FILE"))
    for label, text in lines:
        console.say_wrapped(f"{label:<9}{text}", 9)


def _plan_lines(made: Made) -> Iterator[tuple[str, str]]:
    """Yield a label and a sentence for each thing to know about the plan."""
    one, choice = made.choice.candidate, made.choice
    place, part = busy_part(made.task, one)
    yield (
        "chosen" if choice.met else "nearest",
        f"{choice.reason}: {digits(one.prediction.seconds)} s a step ({place} for {100 * part:.0f} % of "
        f"it), {_size(one)}, and {_accuracy_text(one)}.",
    )
    own = made.bundle
    yield (
        "bundle",
        f"its own setting in one message a step takes {digits(own.prediction.seconds)} s and {_size(own)}",
    )
    yield from _trainer_lines(made)
    yield from _study_lines(made)
    if one.few_rows:
        yield (
            "note",
            "a step has few rows for principal components: their error is larger than where accuracy was measured",
        )
    if one.prediction.memory_bytes:
        window = one.plan.window or one.plan.micro_batches
        yield "memory", f"{one.prediction.memory_bytes / 1e6:.0f} MB for the {window} micro-batches in flight"
    yield from _split_lines(made)


def _trainer_lines(made: Made) -> Iterator[tuple[str, str]]:
    share, found = made.task.profile.share, trainer_limit(made.task, made.choice.candidate)
    if share:
        yield "trainer", share_text(share)
    if found is None:
        return
    rates = f"{digits(found.up_mbit_s)} Mbit/s up, {digits(found.down_mbit_s)} down"
    bears = f"bears {max(1, int(found.devices))} such device{'s' * (found.devices >= 2)}"
    limit = "is the limit" if found.limits else bears
    yield "trainer", f"{limit}: at most {digits(found.steps_s)} steps/s of this one ({rates})"


def _size(one: Candidate) -> str:
    return f"{digits(one.bytes / _UNITS[_unit([one])])} {_unit([one])}"


def _accuracy_text(one: Candidate) -> str:
    return "an accuracy that was not measured" if one.accuracy is None else f"{_points(one)} points of accuracy"


def _study_lines(made: Made) -> Iterator[tuple[str, str]]:
    for name, studies, found in (
        ("accuracy", made.task.accuracy, made.choice.candidate.accuracy),
        ("SSIM", made.task.ssim, made.choice.candidate.ssim),
    ):
        study = next((one for one in studies if found and one.source == found.source), studies[0] if studies else None)
        if study is not None:
            yield name, _provenance(study, made, found)


def _provenance(study: MeasuredStudy, made: Made, found: Estimate | None) -> str:
    manifest = made.task.manifest
    how = "measured" if found is None or found.measured else f"between {' and '.join(found.settings)}, measured"
    text = f"{how} on {study.data}: {study.model}, split {study.split}, {study.epochs:g} epochs ({study.source})"
    differs = [
        f"{name} {mine}"
        for name, mine, theirs in (
            ("model", manifest.model, study.model),
            ("N", manifest.tokens, study.tokens),
            ("split", manifest.split, study.split),
        )
        if mine != theirs
    ]
    own = "; --study takes a study of your own" if study in shipped_studies() else ""
    return text + (f". The bundle has {', '.join(differs)}{own}" if differs else "")


def _split_lines(made: Made) -> Iterator[tuple[str, str]]:
    now = made.choice.candidate.prediction.seconds
    for one in made.splits:
        about = "about " if one.prediction.extrapolated else ""
        guess = ", with blocks that the device has not measured" if one.prediction.extrapolated else ""
        yield (
            "split",
            f"export again with --split {one.plan.split}: a step takes {about}{digits(one.prediction.seconds)} s "
            f"({100 * (one.prediction.seconds / now - 1):+.0f} %){guess}; the accuracy was not measured there",
        )
