"""One case of `bench`, in a process of its own: ``python -m adc_edge.edge_runtime.bench.case FOLDER``.

Order: the board idle (for its energy), the engine opened, the golden pair, a warm-up, the rounds that count, a refresh.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from adc_edge.arrays import Float32, Int64
from adc_edge.edge_runtime.bench.cases import (
    BenchRequest,
    BenchResult,
    model_file,
    open_engine,
    read_request,
    write_result,
)
from adc_edge.edge_runtime.bench.power import NotMeasured, Tegrastats, Window
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.tally import peak_memory_mb
from adc_edge.errors import AdcEdgeError
from adc_edge.method.ratio import Shape
from adc_edge.onnx.golden import run_golden
from adc_edge.storage.bundle import GOLDEN, TRUNK, Bundle

_WARM_UP = 3
_IDLE_S = 2.0
_WORK_S = 3.0  # at 10 samples a second
_REFRESHES = 10


class _Batch(NamedTuple):
    images: Float32
    init_rows: Int64
    slots: int


class _Rounds(NamedTuple):
    times_ms: list[float]
    window: Window


def measure_case(request: BenchRequest) -> BenchResult:
    """Measure the case; raises AdcEdgeError if its engine cannot be had."""
    case, settings = request.case, request.settings
    bundle = Bundle.load(settings.bundle, ())
    shape = settings.shape(bundle, case.batch_size)
    with Tegrastats() as power:
        idle = power.watch(_IDLE_S if settings.seconds is None else min(_IDLE_S, settings.seconds))
        start = time.perf_counter()
        with open_engine(case, bundle, shape, settings.engine_cache) as engine:
            open_s = time.perf_counter() - start
            verdict = _validate(request, bundle, engine)
            batch = _batch(bundle, shape)
            for _ in range(_WARM_UP):
                engine.compress(*batch)
            seconds = settings.seconds if settings.seconds is not None else _WORK_S if power.available else 0.0
            rounds = _work(lambda: engine.compress(*batch), settings.rounds, seconds)
            refresh = _refresh(request, bundle, engine, batch, rounds.times_ms[-_REFRESHES:])
        p50, p90, p99 = (float(p) for p in np.percentile(rounds.times_ms, [50, 90, 99]))
        found: dict[str, Any] = {
            "clusters": shape.clusters,
            "kept": shape.kept,
            "rounds": len(rounds.times_ms),
            "where": engine.description,
            "open_s": open_s,
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "images_s": 1e3 * case.batch_size / p50,
            "peak_mb": peak_memory_mb(),
            "size_mb": model_file(case, bundle).stat().st_size / 1e6,
        }
        found |= verdict | refresh | _energy(power, idle, rounds, case.batch_size)
    return BenchResult(case=case, **found)


def _validate(request: BenchRequest, bundle: Bundle, engine: Engine) -> dict[str, Any]:
    """Return status, reason and agreement with the golden pair."""
    if GOLDEN not in bundle.manifest.files:
        return {"status": "not validated", "reason": "the bundle has no golden pair"}
    result = run_golden(bundle, engine, request.case.compute)
    difference = result.found.difference
    numbers = result.found._asdict() | {"difference": None if np.isnan(difference) else difference}
    if result.passed:
        return {"status": "passed", **numbers}
    return {"status": "exported but failed validation", "reason": str(result), **numbers}


def _batch(bundle: Bundle, shape: Shape) -> _Batch:
    """Return a batch of noise; the work does not depend on the images."""
    spec = bundle.manifest.trunk
    images = np.random.default_rng(0).standard_normal((shape.images, spec.channels, *spec.image_size), np.float32)
    return _Batch(images, np.arange(shape.clusters), shape.kept - spec.prefix)


def _work(work: Callable[[], object], rounds: int, seconds: float) -> _Rounds:
    """Work at least ``rounds`` times and at least ``seconds``."""
    begin = time.monotonic()
    times: list[float] = []
    while len(times) < rounds or time.monotonic() - begin < seconds:
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return _Rounds(times, Window(begin, time.monotonic()))


def _refresh(
    request: BenchRequest, bundle: Bundle, engine: Engine, batch: _Batch, plain_ms: list[float]
) -> dict[str, Any]:
    """Return the cost of new weights: handing them over, and the additional time of the next batch.

    It is the difference of two medians, of rounds before and after; noise may reduce it to 0.
    """
    if request.case.compute == "int8":
        return {"refresh_note": "–"}  # forward only: its scales would have to follow the weights
    if engine.keeps_graph:
        return {"refresh_ms": 0.0}  # the trainer's weights are its own
    if not (bundle.path / TRUNK).exists():
        return {"refresh_note": f"not measured: no {TRUNK}"}
    from safetensors.numpy import load_file

    weights = load_file(bundle.file(TRUNK))

    def once() -> None:
        engine.refresh(weights)
        engine.compress(*batch)

    try:
        once()
        refreshed_ms = _work(once, len(plain_ms), 0.0).times_ms
        return {"refresh_ms": max(0.0, statistics.median(refreshed_ms) - statistics.median(plain_ms))}
    except AdcEdgeError as error:
        return {"refresh_note": f"not measured: {error.received}"}


def _energy(power: Tegrastats, idle: Window, rounds: _Rounds, batch_size: int) -> dict[str, Any]:
    try:
        found = power.energy(idle, rounds.window)
    except NotMeasured as why:
        return {"energy_note": f"not measured: {why}"}
    return {
        "mj_image": found.mj / (batch_size * len(rounds.times_ms)),
        "busy_mw": found.busy_mw,
        "idle_mw": found.idle_mw,
        "rails": found.rails,
        "board_mb": _grown_mb(power, idle, rounds.window),
    }


def _grown_mb(power: Tegrastats, idle: Window, work: Window) -> float | None:
    """Return the growth of the board's memory in use, which a Jetson's GPU shares; no process's peak holds that."""
    before, during = ([s.reading.ram_mb for s in power.between(w) if s.reading.ram_mb] for w in (idle, work))
    return float(max(during) - max(before)) if before and during else None


def main(folder: Path) -> None:
    """Read the request, write the result; a failure is a result too."""
    request = read_request(folder)
    try:
        result = measure_case(request)
    except AdcEdgeError as error:
        result = BenchResult(request.case, "failed", error.received)
    except Exception as error:  # whatever an engine's library raises; the row says it
        result = BenchResult(request.case, "failed", " ".join(f"{type(error).__name__}: {error}".split()))
    write_result(folder, msgspec.structs.replace(result, reason=result.reason.partition("\n")[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
