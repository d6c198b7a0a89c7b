"""Facts of a training for a model card, read from the run directories of a trainer and perhaps of a device."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adc_edge.export.fleet import device_names, event_lines, trainer_mode
from adc_edge.storage.json_lines import read_json_lines
from adc_edge.storage.run_dir import METRICS
from adc_edge.storage.run_settings import SETTINGS

if TYPE_CHECKING:
    from adc_edge.export.merge import Merged

_WAYS = ("up", "down")


class MeasuredAccuracy(NamedTuple):
    """An accuracy, as a share, with the number of images, the step of the session or head, and the UTC date."""

    accuracy: float
    images: int
    step: int
    date: str
    round: int = 0


class DeviceFacts(NamedTuple):
    """A device's session as its trainer knows it; bytes are those of message bodies."""

    name: str
    session: str
    trunk_steps: int | None  # steps of it that the trunk has learned; None: the trunk is another device's
    head_steps: int
    images: int
    bytes_up: int
    bytes_down: int
    last: MeasuredAccuracy | None
    classes: str  # such as "8 of 10"; empty: not told


class AverageFacts(NamedTuple):
    """Rounds of the fleet's trunk: their number, and the bytes of devices' changes and of the answers to them."""

    rounds: int
    bytes_up: int
    bytes_down: int


class RunFacts(NamedTuple):
    """One run directory: its side, the number of the run, version, and settings that reach a weight."""

    side: str
    number: str
    version: str
    settings: dict[str, str]
    sent: tuple[int, int] | None = None  # bytes at a device's socket up to the merged step, up and down


class TrainingFacts(NamedTuple):
    """All facts of a training."""

    mode: str
    runs: list[RunFacts]
    devices: list[DeviceFacts]
    averages: AverageFacts | None
    central: MeasuredAccuracy | None


def training_facts(device: Path | None, trainer: Path, merged: Merged) -> TrainingFacts:
    """Return the facts of the runs whose halves were merged.

    Args:
        device: the device's run, if one was named.
        trainer: the trainer's run.
        merged: the model.
    """
    trunk, own = merged.trunk, merged.round is None and not merged.frozen
    lines, names = list(read_json_lines(trainer / METRICS)), device_names(trainer)
    told = {line.get("session"): line for line in event_lines(trainer) if line.get("kind") == "toldclasses"}
    devices = []
    for session, steps in sorted(merged.head.items(), key=lambda pair: names.get(pair[0], "")):
        key = f"{session:016x}"
        mine = [line for line in lines if line.get("session") == key]
        done = [line for line in mine if line.get("kind") == "step" and _whole(line, "step") < steps]
        up, down = (_sum(done, f"body_bytes_{way}") for way in _WAYS)
        learned = None if own and session not in trunk else trunk.get(session, 0)
        devices.append(
            DeviceFacts(
                names.get(session, ""),
                key,
                learned,
                steps,
                _sum(done, "images"),
                up,
                down,
                _last(mine, steps),
                _classes(told.get(key, {})),
            )
        )
    runs = [_run("trainer", trainer, None)]
    if device is not None:
        runs.append(_run("device", device, merged.step))
    central = [line for line in lines if line.get("source") == "central"]
    averages = _averages(lines, merged.round)
    return TrainingFacts(trainer_mode(trainer), runs, devices, averages, _last(central, merged.head_steps))


def source_name(source: str) -> str:
    """Return a data source without the path to it, as ``folder:photos``: a card may be published."""
    kind, colon, where = source.partition(":")
    return f"{kind}{colon}{Path(where).name}" if where else kind


def _run(side: str, run: Path, until: int | None) -> RunFacts:
    try:
        settings = json.loads((run / SETTINGS).read_bytes())
    except (OSError, ValueError):
        settings = {}
    settings = settings if isinstance(settings, dict) else {}
    fixed, machine = ({} if not isinstance(one := settings.get(name), dict) else one for name in ("fixed", "machine"))
    flat = {name: value for name, value in _flat(fixed).items() if name not in ("role", "bundle")}
    if isinstance(data := flat.get("data"), str):
        flat["data"] = source_name(data)
    sent = None
    if until is not None:
        lines = [line for line in read_json_lines(run / METRICS) if _is_before(line, until)]
        sent = _sum(lines, "bytes_up"), _sum(lines, "bytes_down")
    number, version = str(settings.get("run", "")), str(machine.get("adc-edge", ""))
    return RunFacts(side, number, version, {name: str(value) for name, value in flat.items()}, sent)


def _is_before(line: Mapping[str, Any], until: int) -> bool:
    """Whether a line of a device is of its first ``until`` steps, or of an evaluation or an average after them."""
    step = _whole(line, "step")
    return step < until or (step == until and line.get("kind") in ("evaluation", "average"))


def _averages(lines: Iterable[Mapping[str, Any]], newest: int | None) -> AverageFacts | None:
    """Return the rounds up to ``newest``, or all; an exchange that took a device further is none of theirs."""
    until = math.inf if newest is None else newest
    found = [line for line in lines if line.get("kind") in ("average", "trunk") and _whole(line, "round") <= until]
    rounds = sum(line["kind"] == "average" for line in found)
    exchanges = [line for line in found if line["kind"] == "trunk"]
    if not rounds:
        return None
    return AverageFacts(rounds, _sum(exchanges, "body_bytes_up"), _sum(exchanges, "body_bytes_down"))


def _last(lines: Iterable[Mapping[str, Any]], until: int) -> MeasuredAccuracy | None:
    """Return the last evaluation up to step ``until``, with its day."""
    found = None
    for line in lines:
        if line.get("kind") != "evaluation" or _whole(line, "step") > until:
            continue
        accuracy = line.get("accuracy")
        if isinstance(accuracy, int | float):
            place = _whole(line, "images"), _whole(line, "step"), _day(line.get("time")), _whole(line, "round")
            found = MeasuredAccuracy(float(accuracy), *place)
    return found


def _classes(event: Mapping[str, Any]) -> str:
    if not event:
        return ""
    of = _whole(event, "of")
    return f"{_whole(event, 'classes')} of {of}" if of else str(_whole(event, "classes"))


def _whole(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _sum(lines: Iterable[Mapping[str, Any]], name: str) -> int:
    return sum(_whole(line, name) for line in lines)


def _flat(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{within}{name}.") if isinstance(value, dict) else {f"{within}{name}": value}
    return found


def _day(time: Any) -> str:
    try:
        return datetime.fromtimestamp(float(time), timezone.utc).strftime("%Y-%m-%d")
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
