"""Checkpoints of a run: one safetensors file each, written atomically, verified when read, the last two kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from adc_edge.arrays import Arrays
from adc_edge.errors import CheckpointError
from adc_edge.files import write_atomic

KEPT = 2


class Checkpoint(NamedTuple):
    """State of a run before ``step``: ``meta`` is JSON, ``arrays`` are the tensors by name."""

    step: int
    arrays: dict[str, npt.NDArray[Any]]
    meta: dict[str, Any]


def checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint before ``step``."""
    return f"checkpoint-{step:08d}.safetensors"


def save_checkpoint(directory: Path, step: int, arrays: Arrays, meta: Mapping[str, Any]) -> Path:
    """Write ``checkpoint-STEP.safetensors`` and delete all but the newest two."""
    whole = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    text = json.dumps(meta, sort_keys=True)
    header = {"step": str(step), "meta": text, "sha256": _digest(step, whole, text)}
    path = directory / checkpoint_name(step)
    write_atomic(path, save(whole, metadata=header))
    with contextlib.suppress(OSError):  # the new one is there; the next one tries again
        for old in _all(directory)[:-KEPT]:
            old.unlink()
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: the file is incomplete, damaged, or no checkpoint.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        step = int(header["step"])
        intact = header["sha256"] == _digest(step, arrays, header["meta"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not intact:
        raise _damaged(path, "its SHA-256 differs")
    return Checkpoint(step, arrays, json.loads(header["meta"]))


def latest_checkpoint(directory: Path, until: int | None = None) -> Checkpoint | None:
    """Return the newest intact checkpoint, of a step up to ``until``; None if there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints, and none is intact.
    """
    failure: CheckpointError | None = None
    for path in reversed(_all(directory)):
        if until is not None and _step(path) > until:
            continue
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            failure = failure or error
    if failure:
        raise failure
    return None


def checkpoint_steps(directory: Path) -> list[int]:
    """Return the steps of the checkpoints on disk, intact or not, oldest first."""
    return [_step(path) for path in _all(directory)]


def drop_newer(directory: Path, step: int) -> None:
    """Delete checkpoints of steps after ``step``, which a run that was rewound will write again."""
    for path in _all(directory):
        if _step(path) > step:
            path.unlink()


def _all(directory: Path) -> list[Path]:
    found = (path for path in directory.glob("checkpoint-*.safetensors") if path.stem[len("checkpoint-") :].isdecimal())
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _digest(step: int, arrays: Arrays, meta: str) -> str:
    digest = hashlib.sha256(f"{step}\n{meta}\n".encode())
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.asarray(value, order="C").tobytes())
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be used: {why}",
        "a checkpoint as adc-edge wrote it",
        "delete it, or start over in another --run",
    )
