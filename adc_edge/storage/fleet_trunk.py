"""The trunk of a fleet on disk: a file for each of the newest rounds, in `rounds/` of the trainer's run directory.

A file is a checkpoint whose step is the round: ``checkpoint-RRRRRRRR.safetensors``, written atomically and verified
when it is read; the last two are kept. It holds the whole trunk after that round as fp32, each tensor under its timm
name behind ``trunk.``, and may hold more under other prefixes (what rounding has left, for example). Its ``meta`` has
``sessions``: for each session the step up to which its changes are in this trunk. Rounds never go back, even where the
head returns to an older checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adc_edge.arrays import Arrays, Float32
from adc_edge.errors import CheckpointError
from adc_edge.storage.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from adc_edge.storage.halves import TRUNK_PREFIX

ROUNDS = "rounds"  # directory in a trainer's run directory
_SESSIONS = "sessions"


class FleetTrunk(NamedTuple):
    """The trunk that a fleet has in common.

    Attributes:
        round: number of changes that have made it; 0 is the bundle's trunk.
        weights: each tensor by its timm name.
        learned: for each session, the step up to which its changes are in it.
    """

    round: int
    weights: dict[str, Float32]
    learned: Mapping[int, int]


def keep_fleet_trunk(
    run: Path, trunk: FleetTrunk, more: Arrays | None = None, meta: Mapping[str, Any] | None = None
) -> Path:
    """Write a trunk into a trainer's run directory, and delete all but the newest two; raises OSError.

    Args:
        run: the run directory.
        trunk: the trunk.
        more: arrays to keep beside it, under names that do not begin with ``trunk.``.
        meta: further entries of the file's ``meta``.
    """
    arrays = {TRUNK_PREFIX + name: value for name, value in trunk.weights.items()} | dict(more or {})
    sessions = {str(session): step for session, step in sorted(trunk.learned.items())}
    return save_checkpoint(run / ROUNDS, trunk.round, arrays, {**(meta or {}), _SESSIONS: sessions})


def newest_fleet_trunk(run: Path) -> FleetTrunk | None:
    """Return the fleet's trunk of the newest intact round in a trainer's run directory; None if it keeps none.

    Raises:
        CheckpointError: there are rounds, and none is intact.
    """
    found = latest_checkpoint(run / ROUNDS)
    return None if found is None else fleet_trunk_of(found)


def fleet_trunk_of(checkpoint: Checkpoint) -> FleetTrunk:
    """Return the trunk in a file of a round.

    Raises:
        CheckpointError: it is no such file.
    """
    weights = {
        name[len(TRUNK_PREFIX) :]: np.asarray(value, np.float32)
        for name, value in checkpoint.arrays.items()
        if name.startswith(TRUNK_PREFIX)
    }
    try:
        learned = {int(session): int(step) for session, step in checkpoint.meta[_SESSIONS].items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"round {checkpoint.step}: {error!r}", f"a file of {ROUNDS}/ as the trainer wrote it", "delete it"
        ) from None
    return FleetTrunk(checkpoint.step, weights, learned)
