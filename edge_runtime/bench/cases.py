"""Find the engines that `bench` can measure here, and measure each in a process of its own.

Peak memory is then that engine's alone, and a crash costs one row.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from adc_edge.defaults import EngineName
from adc_edge.edge_runtime import board
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.providers import NAMES, Provider, available
from adc_edge.edge_runtime.packages import ending
from adc_edge.errors import SettingError
from adc_edge.files import json_bytes, temporary_directory
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.onnx.golden import GOLDEN_IMAGES
from adc_edge.storage.bundle import CLIENT_FP16, CLIENT_INT8, TRUNK, Bundle, Compute

Status = Literal["passed", "not validated", "exported but failed validation", "failed"]
_CASE_TIMEOUT_S = 3600.0  # a board builds a TensorRT engine for many minutes
_ENV = {"OMP_WAIT_POLICY": "passive"}  # as `serve` has it (cli.py)
_REQUEST, _RESULT = "request.json", "result.json"


class BenchCase(msgspec.Struct, frozen=True):
    """One row: an engine, what it computes in, and how many images at once."""

    engine: EngineName
    compute: Compute
    batch_size: int
    provider: Provider = "cpu"  # of ONNX Runtime

    @property
    def backend(self) -> str:
        """Engine and provider."""
        return f"{self.engine} {self.provider}" if self.engine == "onnxruntime" else self.engine


class BenchSettings(msgspec.Struct, frozen=True):
    """Settings of every case; ``seconds`` is its least working time, None: 3 where power is measured."""

    bundle: Path
    ratio: Ratio | None = None
    rounds: int = 20
    seconds: float | None = None
    engine_cache: Path | None = None

    def shape(self, bundle: Bundle, images: int) -> Shape:
        """Return the shape of a compressed batch; raises SettingError if the ratio does not allow one."""
        ratio = self.ratio or bundle.manifest.ratio
        return ratio.check().shape(images, bundle.manifest.tokens, bundle.manifest.prefix)


class BenchRequest(msgspec.Struct, frozen=True):
    """The request to the process of a case."""

    case: BenchCase
    settings: BenchSettings


class BenchResult(msgspec.Struct, frozen=True):
    """The result of a case; a value that was not measured is None, and the notes say why."""

    case: BenchCase
    status: Status
    reason: str = ""
    clusters: int = 0
    kept: int = 0
    rounds: int = 0
    where: str = ""  # what the engine says of itself
    open_s: float | None = None  # to load the engine, or to build it
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    images_s: float | None = None
    refresh_ms: float | None = None
    refresh_note: str = ""
    peak_mb: float | None = None  # of the process; what a GPU holds apart is not in it
    board_mb: float | None = None  # growth of the whole board's memory in use, by tegrastats
    mj_image: float | None = None
    busy_mw: float | None = None
    idle_mw: float | None = None
    rails: str = ""
    energy_note: str = ""
    size_mb: float | None = None
    assignment: float | None = None  # agreement with the golden pair
    tokens: float | None = None
    difference: float | None = None

    @property
    def good(self) -> bool:
        """Whether its numbers are those of an engine that may be used."""
        return self.status in ("passed", "not validated")


class Bench(NamedTuple):
    """A whole run of `bench`."""

    settings: BenchSettings
    bundle: Bundle
    facts: board.Board
    before: board.BoardState
    after: board.BoardState
    results: Sequence[BenchResult]
    absent: Sequence[str]  # cases that are not possible here, in words


def open_engine(case: BenchCase, bundle: Bundle, shape: Shape, cache: Path | None = None) -> Engine:
    """The engine of a case, to be entered. The one place where `bench` makes engines.

    Args:
        case: which.
        bundle: loaded.
        shape: of the batches that it will be given, for engines that are built for one.
        cache: where such engines are kept; None: in the bundle.

    Raises:
        AdcEdgeError: the bundle or this machine does not have it.
    """
    if case.engine == "onnxruntime":
        from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine

        return OnnxEngine(bundle.client(case.compute), bundle.manifest.trunk, provider=case.provider)
    if case.engine == "torch" and case.compute == "fp32":
        from adc_edge.edge_runtime.engines.torch import TorchEngine
        from adc_edge.edge_runtime.trunk.trainer import Shim

        return TorchEngine(Shim(bundle.manifest.trunk, bundle.file(TRUNK), None))
    if case.engine == "tensorrt":
        from adc_edge.edge_runtime.engines.tensorrt.engine import TensorRtEngine

        largest = max(shape.images, GOLDEN_IMAGES)  # the golden pair must fit too
        opt = shape.clusters, shape.kept - bundle.manifest.prefix
        return TensorRtEngine(bundle, largest, opt, case.compute, trains=case.compute != "int8", directory=cache)
    raise SettingError(
        f"engine {case.engine} in {case.compute}", "an engine that computes so", "choose another --engine or --compute"
    )


def model_file(case: BenchCase, bundle: Bundle) -> Path:
    """Return the file that the engine is made from; the table shows its size."""
    return bundle.file(TRUNK) if case.engine == "torch" else bundle.client(case.compute)


def find_cases(bundle: Bundle, batch_sizes: Sequence[int]) -> tuple[list[BenchCase], list[str]]:
    """Return every case that is possible here, and in words those that are not."""
    found = list(_candidates(bundle))
    here = [(engine, compute, provider) for engine, compute, provider, why_not in found if not why_not]
    cases = [BenchCase(engine, compute, b, provider) for engine, compute, provider in here for b in batch_sizes]
    return cases, [why_not for *_, why_not in found if why_not]


def choose_cases(
    bundle: Bundle,
    engines: Sequence[EngineName],
    providers: Sequence[Provider],
    computes: Sequence[Compute],
    batch_sizes: Sequence[int],
) -> tuple[list[BenchCase], list[str]]:
    """Return the cases that were asked for by name, possible or not, with defaults for what was not named.

    The row of an impossible case says why.
    """
    if not (engines or providers or computes):
        return find_cases(bundle, batch_sizes)
    engines = engines or (("onnxruntime",) if providers else sorted({c.engine for c in find_cases(bundle, [2])[0]}))
    cases = [
        BenchCase(engine, compute, batch_size, provider)
        for engine in engines
        for provider in ((providers or ("cpu",)) if engine == "onnxruntime" else ("cpu",))
        for compute in computes or ("fp32",)
        for batch_size in batch_sizes
    ]
    return list(dict.fromkeys(cases)), []


def _candidates(bundle: Bundle) -> Iterator[tuple[EngineName, Compute, Provider, str]]:
    """(engine, compute, provider, why not; empty: it is possible)."""
    yield "onnxruntime", "fp32", "cpu", ""
    no_int8 = "onnxruntime int8: no client.int8.onnx in the bundle: adc-edge calibrate --bundle DIR --data SRC"
    yield "onnxruntime", "int8", "cpu", "" if (bundle.path / CLIENT_INT8).exists() else no_int8
    fp16 = CLIENT_FP16 in bundle.manifest.files
    has = "cuda" in available()  # other providers are measured by name
    no_cuda = f"onnxruntime cuda: this onnxruntime has no {NAMES['cuda']}: docs/boards.md"
    yield "onnxruntime", "fp32", "cuda", "" if has else no_cuda
    if has:
        no_fp16 = f"onnxruntime cuda fp16: no {CLIENT_FP16} in the bundle: export it again with --fp16"
        yield "onnxruntime", "fp16", "cuda", "" if fp16 else no_fp16
    yield "torch", "fp32", "cpu", _no_torch(bundle)
    no_tensorrt = "" if importlib.util.find_spec("tensorrt") else "tensorrt: not installed: docs/boards.md"
    yield "tensorrt", "fp32", "cpu", no_tensorrt
    if not no_tensorrt:
        yield "tensorrt", "fp16", "cpu", "" if fp16 else "tensorrt fp16: export the bundle again with --tensorrt"


def _no_torch(bundle: Bundle) -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch: not installed: pip install 'adc-edge[train]'"
    return "" if (bundle.path / TRUNK).exists() else f"torch: no {TRUNK} in this copy of the bundle"


def measure_all(
    settings: BenchSettings,
    batch_sizes: Sequence[int] = (),
    engines: Sequence[EngineName] = (),
    providers: Sequence[Provider] = (),
    computes: Sequence[Compute] = (),
    say: Callable[[str], object] = lambda text: None,
    root: Path = board.ROOT,
) -> Bench:
    """Measure what was asked for, one case after another; nothing named: every case that is possible here.

    Raises:
        BundleError: no bundle.
        SettingError: a batch that cannot be cut by the ratio.
    """
    bundle = Bundle.load(settings.bundle, ())
    sizes = batch_sizes or (bundle.manifest.batch_size,)
    for size in sizes:
        settings.shape(bundle, size)
    cases, absent = choose_cases(bundle, engines, providers, computes, sizes)
    before, results = board.board_state(root), []
    for number, case in enumerate(cases, 1):
        say(f"{number} of {len(cases)}: {case.backend} in {case.compute}, {case.batch_size} images")
        results.append(run_case(BenchRequest(case, settings)))
    return Bench(settings, bundle, board.describe_board(root), before, board.board_state(root), results, absent)


def run_case(request: BenchRequest, timeout_s: float = _CASE_TIMEOUT_S) -> BenchResult:
    """Measure one case in a process of its own; whatever happens there becomes a result."""
    with temporary_directory() as place:
        folder = Path(place)
        # Not by msgspec, which refuses names of files that are not UTF-8.
        (folder / _REQUEST).write_bytes(json.dumps(msgspec.to_builtins(request, enc_hook=str)).encode())
        command = [sys.executable, "-m", "adc_edge.edge_runtime.bench.case", place]
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, env=_ENV | os.environ)
        except subprocess.TimeoutExpired:
            return BenchResult(request.case, "failed", f"took more than {timeout_s:.0f} s")
        try:
            return msgspec.json.decode((folder / _RESULT).read_bytes(), type=BenchResult)
        except (OSError, msgspec.DecodeError):
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return BenchResult(request.case, "failed", ": ".join([f"its process {ending(done.returncode)}", *said]))


def read_request(folder: Path) -> BenchRequest:
    """Read the request that ``run_case`` has written."""
    request = json.loads((folder / _REQUEST).read_bytes())
    return msgspec.convert(request, BenchRequest, dec_hook=lambda kind, value: kind(value))


def write_result(folder: Path, result: BenchResult) -> None:
    """Write the result that ``run_case`` waits for."""
    (folder / _RESULT).write_bytes(json_bytes(result))
