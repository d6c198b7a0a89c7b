"""Merge of both halves of a run, or of a fleet's, into one ordinary timm checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from adc_edge.data.sources import Dataset
from adc_edge.errors import CheckpointError, SettingError
from adc_edge.export.card.writing import delete_card
from adc_edge.export.classes import CLASS_NAMES
from adc_edge.export.fleet import fleet_halves
from adc_edge.export.score import Measured, Score, last_measured, score_model
from adc_edge.files import write_atomic
from adc_edge.storage.bundle import MANIFEST, Manifest, parse_manifest
from adc_edge.storage.halves import HalfState, best_heads, best_trunk, check_is_run, head_states, trunk_states
from adc_edge.storage.run_dir import CLASSES, LearnedClasses

if TYPE_CHECKING:  # its import takes seconds, and mistakes are told before
    from torch import nn

_TRAINED = "run directories of one training, of `serve --run` and `trainer --run`"


class Merged(NamedTuple):
    """A merged model.

    Attributes:
        manifest: the manifest of both runs.
        step: step of the device's session; of a fleet, all steps of the head.
        other_steps: steps of other sessions that the head has learned.
        class_names: names of the head's outputs, if they are known.
        score: right answers on a data source's test split, if one was given.
        measured: the device's own last evaluation up to ``step``, if its run has one.
        accuracy: that of the best evaluation, if its halves were merged.
        round: of the fleet's trunk, 0 if no device trained it; None: it is a device's.
        frozen: no device trained the trunk: it is the bundle's.
        trunk: steps of each session that the trunk has learned.
        head: steps of each session that the head has learned.
    """

    manifest: Manifest
    step: int
    other_steps: int
    class_names: Sequence[str]
    score: Score | None
    measured: Measured | None
    accuracy: float | None = None
    round: int | None = None
    frozen: bool = False
    trunk: Mapping[int, int] = {}
    head: Mapping[int, int] = {}

    @property
    def head_steps(self) -> int:
        """All steps that the head has learned."""
        return self.step + self.other_steps


class _Pair(NamedTuple):
    step: int
    trunk: HalfState
    head: HalfState
    round: int | None = None


def merge_runs(
    device: Path | None,
    trainer: Path,
    output: Path,
    step: int | None = None,
    dataset: Dataset | None = None,
    allow_broken: bool = False,
    *,
    best: bool = False,
) -> Merged:
    """Join a trunk and a head that have learned the same steps of one session; timm loads the result strictly.

    Without a device it is the fleet's trunk of the newest round, and a head that has learned at least its steps.

    Args:
        device: run directory of the device; None: the trunk is the fleet's.
        trainer: run directory of its trainer.
        output: file to write.
        step: the device's step to merge; None: the newest, which must be the newest of the head too.
        dataset: data source on whose test split the merged model is judged before it is written.
        allow_broken: accept any number of broken test images.
        best: merge the halves of the best evaluation, which `serve --keep-best` had both sides keep.

    Raises:
        SettingError: both ``step`` and ``best`` are given, or one of them without a device.
        CheckpointError: the runs are of different bundles or sessions, their newest states are of different steps, a
            half is missing, or a directory is not of the kind that its place asks for.
        BundleError: no device trained the trunk, and the trainer's bundle has gone.
        DataError: the model cannot be judged on the data. Nothing is written.
    """
    if best and step is not None:
        raise SettingError(f"--best and --step {step}", "one of them", "leave one out")
    if device is None and (best or step is not None):
        option = "--best" if best else f"--step {step}"
        raise SettingError(f"{option} without --run-device", "a device, whose step it is", "add --run-device DIR")
    manifest, pair = _read_fleet(trainer) if device is None else _read(device, trainer, step, best)
    vit = _joined(manifest, pair)
    learned = _classes(manifest, trainer)
    score = None if dataset is None else score_model(vit, manifest, learned.head, dataset, allow_broken)
    names = [] if learned.positions else learned.head
    known = {CLASS_NAMES: json.dumps(names)} if names else {}
    from safetensors.torch import save

    delete_card(output)  # it is that of the weights that were there before
    write_atomic(output, save(vit.state_dict(), metadata={"model": manifest.model, "format": "pt", **known}))
    measured = None if device is None else last_measured(device, pair.step)
    others, accuracy = pair.head.steps - pair.step, pair.trunk.accuracy if best else None
    frozen = pair.trunk.frozen
    trunk_steps = {} if frozen else pair.trunk.learned
    about = accuracy, pair.round, frozen, trunk_steps, pair.head.learned
    return Merged(manifest, pair.step, others, names, score, measured, *about)


def _read_fleet(trainer: Path) -> tuple[Manifest, _Pair]:
    """Return the bundle's manifest, the fleet's trunk, and the head."""
    manifest, heads = _manifest(trainer), head_states(trainer)
    if not heads and trunk_states(trainer):
        raise CheckpointError(
            f"--run-trainer {trainer} is a device's run",
            "the run of a trainer",
            "name the directory of `trainer --run`, or add it: merge --run-device DIR --run-trainer DIR",
        )
    found = fleet_halves(trainer, _kept(trainer, heads))
    return manifest, _Pair(found.head.steps, found.trunk, found.head, found.round)


def _read(device: Path, trainer: Path, step: int | None, best: bool) -> tuple[Manifest, _Pair]:
    """Return the bundle's manifest and the two halves that are to be joined."""
    manifests = [_manifest(run) for run in (device, trainer)]
    trunks, heads = trunk_states(device), head_states(trainer)
    _check_roles(device, trainer, bool(trunks), bool(heads))
    if msgspec.json.encode(manifests[0]) != msgspec.json.encode(manifests[1]):
        raise CheckpointError(
            f"{device} and {trainer} are runs of different bundles",
            "runs of one bundle",
            "name the two runs of one training",
        )
    if best:
        return manifests[0], _best(device, trainer)
    return manifests[0], _choose(_kept(device, trunks), _kept(trainer, heads), step)


def _check_roles(device: Path, trainer: Path, is_device: bool, is_trainer: bool) -> None:
    """Raise CheckpointError if a trainer's run stands where a device's is expected, or the other way round."""
    device_in_second, trainer_in_first = (
        not is_trainer and bool(trunk_states(trainer)),
        not is_device and bool(head_states(device)),
    )
    if trainer_in_first and device_in_second:
        raise CheckpointError(
            f"--run-device {device} is a trainer's run, and --run-trainer {trainer} is a device's",
            _TRAINED,
            "swap the two directories",
        )
    if trainer_in_first:
        received, remedy = f"--run-device {device} is a trainer's run", "name the directory of `serve --run`"
        raise CheckpointError(received, "the run of a device", remedy)
    if device_in_second:
        received, remedy = f"--run-trainer {trainer} is a device's run", "name the directory of `trainer --run`"
        raise CheckpointError(received, "the run of a trainer", remedy)


def _joined(manifest: Manifest, pair: _Pair) -> nn.Module:
    import torch  # after the checks: its import takes seconds

    from adc_edge.method.split import create_vit

    state = pair.trunk.weights() | pair.head.weights()
    vit: nn.Module = create_vit(manifest.model, manifest.model_args, manifest.classes)
    try:
        vit.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the halves do not fit: {error}", "halves of one model", "name the right runs") from None
    return vit


def _best(device: Path, trainer: Path) -> _Pair:
    """Return the trunk of the device's best evaluation, and the head that the trainer kept to it."""
    trunk = best_trunk(device)
    if trunk is None:
        raise CheckpointError(
            f"{device} keeps no halves of a best evaluation",
            "a run of `serve --keep-best` that has come to an evaluation",
            "leave --best out, which merges the newest halves",
        )
    ((session, step),) = trunk.learned.items()
    heads = best_heads(trainer, session)
    if step not in heads:
        others = (
            f"that session's best heads of {_listed(heads)}" if heads else f"no best head of session {session:016x}"
        )
        raise CheckpointError(
            f"the device keeps the trunk of step {step}, its best evaluation; {trainer} keeps {others}",
            "a trunk and a head of the same session and step",
            "name the run of the trainer that the device trained with",
        )
    return _Pair(step, trunk, heads[step])


def _choose(trunks: Sequence[HalfState], heads: Sequence[HalfState], step: int | None) -> _Pair:
    """Return a trunk and a head of one step: of ``step``, or of the newest if that is the same on both sides."""
    (session,) = trunks[-1].learned
    head = {state.learned[session]: state for state in heads if session in state.learned}
    if not head:
        raise CheckpointError(
            "this head has never trained with this trunk",
            _TRAINED,
            "name the run of the trainer that the device trained with",
        )
    trunk = {state.learned[session]: state for state in trunks if session in state.learned}
    if trunks[-1].frozen:
        trunk = dict.fromkeys(head, trunks[-1])
    elif trunks[-1].final:
        since = trunks[-1].learned[session]
        trunk |= dict.fromkeys((step for step in head if step >= since), trunks[-1])
    newest_trunk, newest_head, common = max(trunk), max(head), sorted(trunk.keys() & head.keys())
    wanted = newest_trunk if step is None else step
    if wanted in common and (step is not None or newest_trunk == newest_head):
        return _Pair(wanted, trunk[wanted], head[wanted])
    received = (
        f"the device's trunk stands at step {newest_trunk}, the trainer's head at step {newest_head} of that session"
        if step is None
        else f"--step {step}: the trunk is kept at {_listed(trunk)}, the head at {_listed(head)}"
    )
    raise CheckpointError(
        received,
        "a trunk and a head of the same step",
        "start both sides again, and let the run come to its end"
        + (f"; or type --step {common[-1]}, the newest step that both have kept" if common else ""),
    )


def _listed(states: Iterable[int]) -> str:
    return "step " + ", ".join(str(step) for step in sorted(states))


def _kept(run: Path, states: list[HalfState]) -> list[HalfState]:
    if not states:
        raise CheckpointError(
            f"{run} keeps no trained weights", _TRAINED, "let the run come to its end, or end it with Ctrl-C"
        )
    return states


def _classes(manifest: Manifest, trainer: Path) -> LearnedClasses:
    """Return the head's classes: those that the trainer's run has learned, or else the bundle's."""
    path = trainer / CLASSES
    if not path.is_file():
        return LearnedClasses(manifest.class_names)
    try:
        return msgspec.json.decode(path.read_bytes(), type=LearnedClasses)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}", "class names as the trainer wrote them", "restore it") from None


def _manifest(run: Path) -> Manifest:
    check_is_run(run, _TRAINED)
    path = run / MANIFEST
    return parse_manifest(path.read_bytes(), str(path))
