"""The two halves of a model in run directories, and the steps of which sessions each state of them has learned.

A half belongs to a step of a session: only a trunk and a head of the same session and step have learned together. Final
weights say so in their metadata, and checkpoints in theirs. So do the halves of the best evaluation (``--keep-best``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from adc_edge.errors import CheckpointError
from adc_edge.files import sha256
from adc_edge.storage.bundle import HEAD, MANIFEST, TRUNK, Bundle
from adc_edge.storage.checkpoint import checkpoint_name, checkpoint_steps, load_checkpoint

TRUNK_PREFIX, HEAD_PREFIX = "trunk.", "head."  # of weights in checkpoints
BEST_TRUNK = "best-trunk.safetensors"
FROZEN_FROM = "frozen_from"  # of a device's checkpoint: the step from which on its trunk is frozen, if it is by then
_LEARNED = "learned"  # key of the label in a file's metadata


class HalfState(NamedTuple):
    """One state of a half on disk.

    Attributes:
        path: file of its weights: final weights or a checkpoint.
        learned: steps of each session.
        steps: all steps that the half has learned, also of sessions that are not known any more.
        frozen: the trunk is the same at every step; a head has learned with such trunks alone.
        accuracy: of the evaluation that a best trunk was kept for.
        final: a trunk that has learned, and is the same at every later step (``serve --freeze-after``).
    """

    path: Path
    learned: Mapping[int, int]
    steps: int
    frozen: bool = False
    accuracy: float | None = None
    final: bool = False

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the weights by timm name.

        Raises:
            CheckpointError: the file is damaged or gone.
        """
        if not self.path.name.startswith("checkpoint-"):
            try:
                return load(self.path.read_bytes())
            except (OSError, SafetensorError) as error:
                remedy = "type the commands of the run again: they write it once more"
                raise CheckpointError(f"{self.path}: {error}", "the weights of a run", remedy) from None
        arrays = load_checkpoint(self.path).arrays
        prefixes = (TRUNK_PREFIX, HEAD_PREFIX)
        return {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(prefixes)}


def label_weights(
    data: bytes,
    learned: Mapping[int, int],
    steps: int,
    frozen: bool = False,
    accuracy: float | None = None,
    *,
    final: bool = False,
) -> bytes:
    """Return the content of a safetensors file with the steps that it has learned in its metadata."""
    sessions = {str(session): step for session, step in sorted(learned.items())}
    label: dict[str, Any] = {"sessions": sessions, "steps": steps, "frozen": frozen}
    if accuracy is not None:
        label["accuracy"] = accuracy
    if final:
        label["final"] = True
    return save(load(data), metadata={_LEARNED: json.dumps(label)})


def trunk_states(run: Path) -> list[HalfState]:
    """Return the states of the trunk in a device's run directory, with the most steps last."""
    return _states(run, TRUNK, lambda step, meta: {int(meta["session"]): step})


def head_states(run: Path) -> list[HalfState]:
    """Return the states of the head in a trainer's run directory, with the most steps last."""
    return _states(run, HEAD, lambda step, meta: {int(s): int(r["applied"]) for s, r in meta["sessions"].items()})


def best_head_name(session: int, step: int) -> str:
    """Return the name of the file in which a trainer keeps its head of a session's step."""
    return f"best-head-{session:016x}-{step:08d}.safetensors"


def best_trunk(run: Path) -> HalfState | None:
    """Return the trunk of the best evaluation that a device's run keeps; a frozen one is that of every step."""
    state = _labelled(run / BEST_TRUNK)
    return state._replace(path=run / TRUNK) if state is not None and state.frozen else state


def best_heads(run: Path, session: int) -> dict[int, HalfState]:
    """Return the heads that a trainer's run keeps for a session, by the session's step."""
    found = (_labelled(path) for path in run.glob(f"best-head-{session:016x}-*.safetensors"))
    return {state.learned[session]: state for state in found if state is not None and session in state.learned}


def _states(run: Path, final: str, learned: Callable[[int, dict[str, Any]], dict[int, int]]) -> list[HalfState]:
    found = [_labelled(run / final)]
    for step in checkpoint_steps(run):
        path = run / checkpoint_name(step)
        try:
            with safe_open(path, framework="numpy") as file:
                meta, frozen = json.loads(file.metadata()["meta"]), final == TRUNK and not file.keys()
            ends = min(step, int(meta.get(FROZEN_FROM, step)))
            state = HalfState(run / final if frozen else path, learned(ends, meta), ends, frozen)
            found.append(state._replace(final=FROZEN_FROM in meta))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
            continue  # torn, or deleted by a process that is at work
    return sorted((state for state in found if state is not None), key=lambda state: state.steps)


def _labelled(path: Path) -> HalfState | None:
    """Return the state in final weights; None if there are none, or they say nothing, as those of version 0.6."""
    try:
        with safe_open(path, framework="numpy") as file:
            label = json.loads((file.metadata() or {})[_LEARNED])
        sessions = {int(session): int(step) for session, step in label["sessions"].items()}
        known = int(label["steps"]), bool(label["frozen"]), label.get("accuracy"), label.get("final") is True
        return HalfState(path, sessions, *known)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        return None


def check_is_run(run: Path, expected: str) -> None:
    """Raise CheckpointError unless a directory is that of a run; ``expected``: whose, in words."""
    if not (run / MANIFEST).is_file():
        raise CheckpointError(f"{run} is no run directory: {MANIFEST} is missing", expected, "check the path")


def check_run_of(run: Path, bundle: Bundle) -> None:
    """Raise CheckpointError unless a run is one with this bundle."""
    if sha256(run / MANIFEST) != bundle.digest:
        raise CheckpointError(
            f"{run} is the run of another bundle", f"a run of {bundle.path}", "name the bundle of that run"
        )
