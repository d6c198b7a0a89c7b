"""The head that `trainer --serve-only` serves: the bundle's, or the newest of a trainer's run, which is only read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from adc_edge.errors import CheckpointError
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.storage.halves import HalfState, check_is_run, check_run_of, head_states, trunk_states
from adc_edge.storage.run_dir import CLASSES, LearnedClasses
from adc_edge.storage.run_settings import SETTINGS, read_settings

_RUN = "the directory of `trainer --run`"


class HeadSource(NamedTuple):
    """A head on disk, and the names of its outputs as far as they are known."""

    state: HalfState
    names: list[str]
    where: str  # in words


def find_head(bundle: Bundle, run: Path | None) -> HeadSource:
    """Return the bundle's head, or the one of a run that has learned the most steps.

    Raises:
        CheckpointError: the directory holds no run of a trainer with this bundle, or no head yet.
    """
    if run is None:
        return HeadSource(HalfState(bundle.path / HEAD, {}, 0), list(bundle.manifest.class_names), "the bundle's")
    check_is_run(run, _RUN)
    states = head_states(run)
    if not states:
        received = f"{run} is a device's run" if trunk_states(run) else f"{run} keeps no head yet"
        raise CheckpointError(received, f"{_RUN} with a head", "let the training come to a checkpoint, or to its end")
    check_run_of(run, bundle)
    state = states[-1]._replace(frozen=_with_frozen_trunks(run))
    return HeadSource(state, _names(run) or list(bundle.manifest.class_names), f"step {state.steps} of {run}")


def _with_frozen_trunks(run: Path) -> bool:
    """Return whether the head of a run has learned with the bundle's trunk alone (``--mode frozen``)."""
    return (run / SETTINGS).is_file() and read_settings(run / SETTINGS).fixed.get("mode") == "frozen"


def _names(run: Path) -> list[str]:
    """Return the class names that a run has learned; none if its labels are positions."""
    try:
        learned = msgspec.json.decode((run / CLASSES).read_bytes(), type=LearnedClasses)
    except FileNotFoundError:
        return []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        received = f"{run / CLASSES}: {error}"
        raise CheckpointError(received, "class names as the trainer wrote them", "restore it") from None
    return [] if learned.positions else learned.head
