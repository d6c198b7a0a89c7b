"""The trunk of `infer`: an engine with the bundle's weights, or with those of a run of `serve`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import UNSET, UnsetType

from adc_edge.arrays import Weights
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.factory import check_provider, make_engine, make_shim
from adc_edge.edge_runtime.infer.settings import InferSettings
from adc_edge.errors import CheckpointError, SettingError
from adc_edge.method.ratio import Shape
from adc_edge.storage.bundle import TRUNK, Bundle
from adc_edge.storage.halves import HalfState, check_is_run, check_run_of, head_states, trunk_states
from adc_edge.wire.inference_messages import LearnedTrunk

_RUN = "the directory of `serve --run`"


def find_trunk(bundle: Bundle, run: Path | None) -> HalfState | None:
    """Return the newest trunk of a device's run; None without a run: it is the bundle's.

    Raises:
        CheckpointError: the directory holds no run of a device with this bundle, or no trunk yet.
    """
    if run is None:
        return None
    check_is_run(run, _RUN)
    states = trunk_states(run)
    if not states:
        received = f"{run} is a trainer's run" if head_states(run) else f"{run} keeps no trunk yet"
        raise CheckpointError(received, f"{_RUN} with a trunk", "let the run come to a checkpoint, or to its end")
    check_run_of(run, bundle)
    return states[-1]


def learned_of(state: HalfState | None) -> LearnedTrunk | UnsetType:
    """Return what a trainer is told of a trunk; UNSET: it is the bundle's."""
    if state is None:
        return UNSET
    ((session, step),) = state.learned.items()
    return LearnedTrunk(session, step, state.frozen, state.final)


@contextmanager
def open_trunk(settings: InferSettings, bundle: Bundle, shape: Shape, state: HalfState | None) -> Iterator[Engine]:
    """Yield the engine that `serve` would have, with the weights of ``state``.

    Args:
        settings: checked.
        bundle: loaded.
        shape: of the largest batch.
        state: a run's trunk; None or frozen: the bundle's weights.

    Raises:
        SettingError: an int8 graph, whose scales belong to the bundle's weights, with other weights.
        BundleError: the bundle lacks what the engine needs.
    """
    weights = None if state is None or state.frozen else state.weights()
    chosen = settings.engine_settings()
    if weights is not None and chosen.computes == "int8":
        raise SettingError(
            "--compute int8 with --weights",
            "the bundle's trunk: the scales of the int8 graph belong to its weights",
            "merge the run with its head, export the result and calibrate that bundle",
        )
    shim, graph = None, None
    if settings.engine == "torch":
        bundle.file(TRUNK)
        shim = make_shim(bundle, chosen)
        if weights is not None:
            import torch

            shim.trunk.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
    else:
        graph = bundle.client(chosen.computes)
    with make_engine(settings.engine, bundle, chosen, shape, graph, shim) as engine:
        check_provider(engine, bundle, chosen.computes)
        if weights is not None:
            engine.refresh(_float32(weights))
        yield engine


def _float32(weights: Weights) -> Weights:
    return {name: value.astype("float32", copy=False) for name, value in weights.items()}
