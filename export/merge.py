"""Merge of both halves of a run into one ordinary timm checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from safetensors.torch import save

from adc_edge.errors import CheckpointError
from adc_edge.export.classes import CLASS_NAMES
from adc_edge.files import write_atomic
from adc_edge.method.split import create_vit
from adc_edge.storage.bundle import MANIFEST, Manifest, parse_manifest
from adc_edge.storage.halves import HalfState, head_states, trunk_states
from adc_edge.storage.run_dir import CLASSES, LearnedClasses

_TRAINED = "run directories of one training, of `serve --run` and `trainer --run`"


class Merged(NamedTuple):
    """A merged model: step of the device's session, steps of others in the head, and its class names if known."""

    manifest: Manifest
    step: int
    other_steps: int
    class_names: Sequence[str]


class _Pair(NamedTuple):
    step: int
    trunk: HalfState
    head: HalfState


def merge_runs(device: Path, trainer: Path, output: Path, step: int | None = None) -> Merged:
    """Join a trunk and a head that have learned the same steps of one session; timm loads the result strictly.

    Args:
        device: run directory of the device.
        trainer: run directory of its trainer.
        output: file to write.
        step: the device's step to merge; None: the newest, which must be the newest of the head too.

    Raises:
        CheckpointError: the runs are of different bundles or sessions, their newest states are of different steps, or a
            half is missing.
    """
    manifests = [_manifest(run) for run in (device, trainer)]
    if msgspec.json.encode(manifests[0]) != msgspec.json.encode(manifests[1]):
        raise CheckpointError(
            f"{device} and {trainer} are runs of different bundles",
            "runs of one bundle",
            "name the two runs of one training",
        )
    pair = _choose(_kept(device, trunk_states(device)), _kept(trainer, head_states(trainer)), step)
    manifest, state = manifests[0], pair.trunk.weights() | pair.head.weights()
    vit = create_vit(manifest.model, manifest.model_args, manifest.classes)
    try:
        vit.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the halves do not fit: {error}", "halves of one model", "name the right runs") from None
    names = _class_names(manifest, trainer)
    known = {CLASS_NAMES: json.dumps(names)} if names else {}
    write_atomic(output, save(vit.state_dict(), metadata={"model": manifest.model, "format": "pt", **known}))
    return Merged(manifest, pair.step, pair.head.steps - pair.step, names)


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


def _class_names(manifest: Manifest, trainer: Path) -> list[str]:
    """Return the head's class names: those that the trainer's run has learned, or else the bundle's."""
    path = trainer / CLASSES
    if not path.is_file():
        return manifest.class_names
    try:
        found = msgspec.json.decode(path.read_bytes(), type=LearnedClasses)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}", "class names as the trainer wrote them", "restore it") from None
    return [] if found.positions else found.head


def _manifest(run: Path) -> Manifest:
    path = run / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{run} is no run directory: {MANIFEST} is missing", _TRAINED, "check the path")
    return parse_manifest(path.read_bytes(), str(path))
