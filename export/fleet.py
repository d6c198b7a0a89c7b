"""The trunk of a fleet and the head of its trainer, from the trainer's run directory alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adc_edge.errors import BundleError, CheckpointError
from adc_edge.storage.bundle import MANIFEST, TRUNK, Bundle
from adc_edge.storage.checkpoint import checkpoint_name
from adc_edge.storage.fleet_trunk import ROUNDS, newest_fleet_trunk
from adc_edge.storage.halves import HalfState
from adc_edge.storage.json_lines import read_json_lines
from adc_edge.storage.run_settings import SETTINGS, read_settings

_EXPECTED = "a trainer's run in which the devices have a trunk in common"


class FleetHalves(NamedTuple):
    """The newest halves of a fleet; ``round`` is that of the trunk, 0 for the bundle's, which no device trained."""

    round: int
    trunk: HalfState
    head: HalfState


def fleet_halves(trainer: Path, heads: Sequence[HalfState]) -> FleetHalves:
    """Return the fleet's trunk of the newest round, and the newest head, which must have learned as much.

    Args:
        trainer: run directory of the trainer.
        heads: its heads, the newest one last; at least one.

    Raises:
        CheckpointError: the run keeps no trunk that the devices have in common, or the head has learned fewer steps
            of a device than the trunk.
        BundleError: the trunk is the bundle's, and the bundle is not where it was, or changed.
    """
    mode, head = trainer_mode(trainer), heads[-1]
    if mode == "frozen":
        return FleetHalves(0, HalfState(_bundle_trunk(trainer), {}, 0, frozen=True), head)
    found = newest_fleet_trunk(trainer)
    if found is None:
        raise CheckpointError(*_no_trunk(trainer, mode))
    path = trainer / ROUNDS / checkpoint_name(found.round)
    trunk = HalfState(path, found.learned, sum(found.learned.values()))
    _check_level(trunk, head, found.round)
    return FleetHalves(found.round, trunk, head)


def trainer_mode(trainer: Path) -> str:
    """Return the mode of a trainer's run; before 0.11 there was one."""
    path = trainer / SETTINGS
    text = str(read_settings(path).fixed.get("mode", "")) if path.is_file() else ""
    return text.partition(",")[0].strip() or "parallel"


def device_names(trainer: Path) -> dict[int, str]:
    """Return the names of devices by session, as the events of a trainer's run tell them."""
    names = {}
    for line in event_lines(trainer):
        if line.get("kind") == "joined":
            try:
                names[int(line["session"], 16)] = str(line["device"])
            except (KeyError, ValueError, TypeError):
                continue
    return names


def event_lines(run: Path) -> list[dict[str, Any]]:
    """Return the events of a run, the oldest first, without lines that cannot be read."""
    return [line for name in ("events.1.jsonl", "events.jsonl") for line in read_json_lines(run / name)]


def _no_trunk(trainer: Path, mode: str) -> tuple[str, str, str]:
    if mode == "parallel":
        received = f"{trainer} keeps no trunk of a fleet: each device has its own (--mode parallel)"
        return received, _EXPECTED, "name the run of the device whose trunk you want: --run-device DIR"
    received = f"{trainer} keeps no trunk of a fleet: no round has closed yet (--mode {mode})"
    return received, _EXPECTED, "let the devices train on, or name a device's run with --run-device DIR"


def _check_level(trunk: HalfState, head: HalfState, number: int) -> None:
    """Raise CheckpointError if the head lacks steps that the trunk has: the trainer was killed, or is at work."""
    missing = {session: step for session, step in trunk.learned.items() if head.learned.get(session, 0) < step}
    unknown = sum(step for session, step in missing.items() if session not in head.learned)
    forgotten = head.steps - sum(head.learned.values())  # of sessions that gave way to others
    behind = {session: step for session, step in missing.items() if session in head.learned or unknown > forgotten}
    if behind:
        session, step = next(iter(behind.items()))
        more = f" (and less of {len(behind) - 1} others)" if len(behind) > 1 else ""
        raise CheckpointError(
            f"the trunk of round {number} has learned {step} steps of session {session:016x}, and the head on disk "
            f"{head.learned.get(session, 0)}{more}",
            "a head that has learned every step of the trunk",
            "end the trainer with Ctrl-C, or start it again if it was killed, and let its devices catch up",
        )


def _bundle_trunk(trainer: Path) -> Path:
    """Return the trunk of the bundle with which a trainer ran, verified."""
    try:
        free: Mapping[str, Any] = json.loads((trainer / SETTINGS).read_bytes())["free"]
        bundle = Bundle.load(Path(free["bundle"]), (TRUNK,))
        if (bundle.path / MANIFEST).read_bytes() != (trainer / MANIFEST).read_bytes():
            raise BundleError(f"{bundle.path} is another bundle than that of {trainer}", "the run's bundle", "")
    except (OSError, ValueError, KeyError, TypeError, BundleError) as error:
        why = error.received if isinstance(error, BundleError) else str(error)
        raise BundleError(
            f"the trunk is that of the bundle, which no device has trained, and cannot be read: {why}",
            "the bundle where the trainer had it",
            "put it back, or name a device's run with --run-device DIR",
        ) from None
    return bundle.path / TRUNK
