"""Examine a device: what it has, what it lacks, and the command to get it. Runs where most packages are missing."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from adc_edge.edge_runtime import board, packages
from adc_edge.edge_runtime.doctor.report import START_TRAINER, DoctorReport, DoctorRow
from adc_edge.edge_runtime.packages import DEVICE, Package, Versions
from adc_edge.edge_runtime.trunk.torch_cuda import TorchCuda
from adc_edge.machine.description import installed_version
from adc_edge.wire.addresses import (
    Address,
    Finding,
    NameUnknown,
    check_protection,
    examine_address,
    parse_address,
    resolve,
)

_BOARDS = "docs/boards.md"
_TRUNK = "trunk.safetensors"  # bundle.TRUNK, whose module may not import here
_SCARCE_MB = 500.0  # of memory or disk
_MISSING = "packages are missing, see above"


def examine(
    bundle: Path | None = None,
    trainer: str | None = None,
    root: Path = board.ROOT,
    versions: Versions = installed_version,
    golden: bool = True,
    *,
    keys: Path | None = None,
    insecure: bool = False,
    data: str | None = None,
) -> DoctorReport:
    """Examine packages, board, bundle, data and trainer.

    Args:
        bundle: checked if given.
        trainer: ``tcp://HOST:PORT`` to connect to, as `serve` does but without a session.
        root: where /proc, /sys and /etc are.
        versions: of installed distributions.
        golden: whether to compute the bundle's golden pair, open a part of the images and try torch on the GPU.
        keys: key directory for the trainer.
        insecure: an address that is not loopback is allowed without keys.
        data: data source to read.

    Raises:
        SettingError: the trainer's address is malformed, or both keys and ``insecure`` are given.
    """
    check_protection(insecure, keys is not None)
    address = None if trainer is None else parse_address(trainer)
    facts, state = board.describe_board(root), board.board_state(root)
    found = packages.find(versions)
    imports = packages.imports(package for package in found if package.group == DEVICE)
    rows = [*_machine(facts, bundle or Path()), *_board(facts, state), *_packages(found, imports, facts)]
    cuda = _ask_torch_cuda(found, facts) if golden else None
    rows += [] if cuda is None else [_torch_cuda(cuda)]
    trains = any(package.name == "torch" and package.good for package in found)
    imports_well = not any(row.fault for row in rows)
    bundle_here = None
    if bundle is not None:
        more = _bundle(bundle, found, golden) if imports_well else [_unchecked("bundle", str(bundle))]
        bundle_here = None if any(row.fault for row in more) else bundle
        rows += more
        trains = trains and (bundle / _TRUNK).exists()
    if data is not None:
        rows += _data(data, bundle_here, golden) if imports_well else [_unchecked("data", data)]
    if trainer is not None and address is not None:
        rows += _trainer(trainer, keys, insecure, bundle) if imports_well else [_bare_trainer(trainer, address)]
    details = {
        "python": platform.python_version(),
        "board": asdict(facts),
        "state": asdict(state),
        "packages": [asdict(package) for package in found],
        "imports": {name: asdict(how) for name, how in imports.items()},
        "torch_cuda": packages.torch_cuda(),
        "torch_gpu": None if cuda is None else cuda._asdict(),
    }
    return DoctorReport(tuple(rows), trains, details)


def _machine(facts: board.Board, place: Path) -> Iterator[DoctorRow]:
    yield DoctorRow("machine", "Python", "ok", platform.python_version())
    yield DoctorRow("machine", "system", "info", f"{facts.system}, {facts.architecture}")
    online = "" if facts.cores == facts.cores_online else f" ({facts.cores_online} switched on)"
    yield DoctorRow("machine", "processor", "info", f"{facts.processor}, {facts.cores} cores{online}")
    if facts.gpus:
        yield DoctorRow("machine", "GPU", "info", ", ".join(facts.gpus))
    if facts.memory_mb is not None and facts.memory_free_mb is not None:
        text = f"{facts.memory_mb / 1e3:.1f} GB, {facts.memory_free_mb / 1e3:.1f} GB free"
        yield DoctorRow("machine", "memory", "warning" if facts.memory_free_mb < _SCARCE_MB else "info", text)
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    free_mb = shutil.disk_usage(existing).free / 1e6
    text = f"{free_mb / 1e3:.1f} GB free in {place}"
    yield DoctorRow("machine", "disk", "warning" if free_mb < _SCARCE_MB else "info", text)


def _board(facts: board.Board, state: board.BoardState) -> Iterator[DoctorRow]:
    if facts.model is not None:
        yield DoctorRow("board", "model", "info", facts.model)
    if facts.l4t is not None:
        yield DoctorRow("board", "JetPack", "info", f"{facts.jetpack or 'not known'} (L4T {facts.l4t})")
    if facts.jetson:
        choose = "sudo nvpmodel -m NUMBER; /etc/nvpmodel.conf lists the modes"
        mode = state.power_mode
        yield DoctorRow("board", "power mode", "info", mode or "not told (no nvpmodel here)", choose if mode else None)
    if state.clocks:
        moves = facts.jetson and not all(clock.pinned for clock in state.clocks)
        text = "; ".join(map(str, state.clocks))
        pin = "sudo jetson_clocks, for numbers that repeat" if moves else None
        yield DoctorRow("board", "clocks", "info", text, pin)
    if state.temperatures_c:
        text = ", ".join(f"{name} {value:.1f}" for name, value in state.temperatures_c.items())
        yield DoctorRow("board", "temperature", "info", f"{text} °C")
    if state.throttling_told:
        events = [f"{name} {count} times since it is on" for name, count in state.throttle_events.items() if count]
        text = ", ".join([*(f"{name} now" for name in state.throttling), *events]) or "none"
        yield DoctorRow("board", "throttling", "warning" if state.throttling else "info", text)
    if facts.congestion is not None:
        bbr = "bbr" in facts.congestion_offered
        text = f"{facts.congestion}; the kernel offers {', '.join(facts.congestion_offered)}"
        remedy = None if bbr else "sudo modprobe tcp_bbr: a link that loses packets is several times as fast with BBR"
        yield DoctorRow("board", "TCP", "ok" if bbr else "missing", text, remedy)


def _packages(found: list[Package], imports: dict[str, packages.Import], facts: board.Board) -> Iterator[DoctorRow]:
    for group in packages.PACKAGE_GROUPS:
        members = [package for package in found if package.group == group]
        if members:
            yield _group(group, members, imports if group == DEVICE else {}, facts.jetson)
    # Without an answer (no process could be started to ask) nothing is said.
    if (runtime := imports.get("onnxruntime")) is not None and runtime.more is not None:
        names = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.more)
        yield DoctorRow("packages", "ONNX Runtime", "ok", f"providers: {names}")
    if (zmq := imports.get("pyzmq")) is not None and zmq.more is not None:
        remedy = None if zmq.more else "pip install --force-reinstall pyzmq: --keys needs it"
        text = "here" if zmq.more else "this ZeroMQ was built without it"
        yield DoctorRow("packages", "CURVE", "ok" if zmq.more else "warning", text, remedy)
    if (facts.l4t or "").startswith("36."):
        yield from _clashes({package.name: package.version for package in found})


def _ask_torch_cuda(found: list[Package], facts: board.Board) -> TorchCuda | None:
    """Ask torch where it is installed and there is a GPU of NVIDIA."""
    torch = any(package.name == "torch" and package.version for package in found)
    return packages.ask_torch_cuda() if torch and (facts.jetson or facts.gpus) else None


def _torch_cuda(cuda: TorchCuda) -> DoctorRow:
    """Tell whether torch's CUDA fits this board; the trunk is trained there."""
    if not cuda.fault:
        text = f"works on {cuda.gpu} ({cuda.architecture}): serve --shim-device cuda"
        return DoctorRow("packages", "torch on the GPU", "ok", text)
    remedy = f"PyTorch for this board: {_BOARDS}; until then the trunk is trained on the CPU"
    return DoctorRow("packages", "torch on the GPU", "warning", cuda.fault, remedy)


def _clashes(versions: dict[str, str | None]) -> Iterator[DoctorRow]:
    """Yield the packages that pip installs by itself and JetPack 6 cannot use."""
    numpy, torch, cuda = (versions.get(name) for name in ("numpy", "torch", "cuda-python"))
    if numpy and torch and packages.release(numpy) >= (2,):
        text = f"{numpy}, beside JetPack 6's torch {torch}, which is built for numpy 1"
        yield DoctorRow("packages", "numpy", "warning", text, "pip install 'numpy<2'")
    if cuda and packages.release(cuda) >= (13,):
        text = f"{cuda} is for CUDA 13, and JetPack 6 has CUDA 12"
        yield DoctorRow("packages", "cuda-python", "warning", text, "pip install 'cuda-python<13'")


def _group(group: str, members: list[Package], imports: dict[str, packages.Import], jetson: bool) -> DoctorRow:
    faults = {}
    for package in members:
        how = imports.get(package.name)
        if package.version is None:
            faults[package.name] = "missing"
        elif package.fault or (how and how.fault):
            faults[package.name] = f"{package.version}: {package.fault or (how and how.fault)}"
    here = [_with_version(package) for package in members if package.name not in faults]
    text = "; ".join([*([", ".join(here)] if here else []), *(f"{name} {fault}" for name, fault in faults.items())])
    if not faults:
        return DoctorRow("packages", group, "ok", text, needed=group == DEVICE)
    return DoctorRow(
        "packages", group, "bad" if group == DEVICE else "missing", text, _get(group, jetson), group == DEVICE
    )


def _with_version(package: Package) -> str:
    cuda = packages.torch_cuda() if package.name == "torch" else None
    return f"{package.name} {package.version}" + (f" (CUDA {cuda})" if cuda else "")


def _get(group: str, jetson: bool) -> str:
    if group == "tensorrt":
        apt = "sudo apt install python3-libnvinfer; " if jetson else ""
        return f"{apt}pip install 'adc-edge[tensorrt]' (NVIDIA GPUs only: {_BOARDS})"
    if group == "train" and jetson:
        return f"PyTorch for this JetPack: {_BOARDS}"
    return "pip install --upgrade adc-edge" if group == DEVICE else f"pip install 'adc-edge[{group}]'"


def _bundle(path: Path, found: list[Package], golden: bool) -> list[DoctorRow]:
    from adc_edge.edge_runtime.doctor.bundle import examine_bundle

    tensorrt = next((package.version for package in found if package.name == "tensorrt"), None)
    return list(examine_bundle(path, tensorrt, golden))


def _data(source: str, bundle: Path | None, thorough: bool) -> list[DoctorRow]:
    from adc_edge.edge_runtime.doctor.data import examine_data

    return list(examine_data(source, bundle, thorough))


def _unchecked(section: str, name: str) -> DoctorRow:
    """An import that kills its process would take this one with it."""
    return DoctorRow(section, name, "bad", f"not checked: {_MISSING}", needed=True)


def _trainer(trainer: str, keys: Path | None, insecure: bool, bundle: Path | None) -> list[DoctorRow]:
    from adc_edge.edge_runtime.doctor.trainer import examine_trainer

    return list(examine_trainer(trainer, keys, insecure, bundle))


def _bare_trainer(trainer: str, address: Address) -> DoctorRow:
    """Examine the address with a plain socket, where the packages for a handshake are missing."""
    found: list[Finding] = []
    try:
        for numeric in resolve(address):
            found.append(examine_address(numeric))
            if found[-1].mechanism:
                text = f"{found[-1].text}; its keys and its bundle are not checked: {_MISSING}"
                return DoctorRow("trainer", "connection", "info", text)
        text = "; ".join(dict.fromkeys(finding.text for finding in found))
    except NameUnknown as unknown:
        text = str(unknown)
    remedy = START_TRAINER
    if any(finding.foreign for finding in found):
        remedy = "check host and port: `adc-edge trainer` logs the address on which it listens"
    return DoctorRow("trainer", "connection", "bad", f"{trainer}: {text}", remedy, needed=True)
