"""Installed packages: their versions, the requirements that they do not meet, and whether they import.

Any package may be missing, `packaging` too, which is asked where it is here. adc-edge's own metadata (pyproject.toml)
holds the requirements. torch is never imported; its CUDA version stands in a file.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adc_edge.edge_runtime.trunk.torch_cuda import TorchCuda
from adc_edge.machine.description import installed_version

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

DEVICE = "device"
PACKAGE_GROUPS = (DEVICE, "train", "data", "host", "export", "tensorrt")
_IMPORT_TIMEOUT_S = 120.0  # a cold SD card is slow
_ALSO = {  # other distributions of the same module
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings"),
    "cuda-python": ("cuda-bindings",),
}
_TENSORRT = ("cuda-python", "tensorrt>=10")  # TensorRT is JetPack's or from NVIDIA's index
_MODULES = {"pillow": "PIL", "pyzmq": "zmq"}
_PROBE = """
import importlib, json, sys
sys.path[:] = [path for path in sys.path if path]
for name in sys.argv[1:]:
    print(json.dumps([name]), flush=True)
    fault, more = None, None
    try:
        module = importlib.import_module(name)
        more = {"zmq": lambda: module.has("curve"), "onnxruntime": lambda: module.get_available_providers()}
        more = more.get(name, lambda: None)()
    except BaseException as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())
    print(json.dumps([name, fault, more]), flush=True)
"""
_ASK_TORCH = """
import json
from adc_edge.edge_runtime.trunk.torch_cuda import examine_torch_cuda
print(json.dumps(examine_torch_cuda()._asdict()))
"""

Versions = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Package:
    """A package that a group requires; ``version`` is None where it is missing."""

    name: str
    group: str
    wanted: str  # ">=2.5"; empty: any
    version: str | None
    fault: str | None = None  # why an installed version does not serve

    @property
    def good(self) -> bool:
        """Whether it is installed and meets the requirement."""
        return self.version is not None and self.fault is None


@dataclass(frozen=True)
class Import:
    """The result of an import in a process of its own; ``more`` holds facts that the module told."""

    fault: str | None
    more: Any = None


def find(versions: Versions = installed_version) -> list[Package]:
    """Return the packages of all groups, in the order of PACKAGE_GROUPS; without `packaging` that one alone."""
    try:
        wanted = {(group, each.name): each.specifier for group, each in _requirements()}
    except ImportError:
        return [Package("packaging", DEVICE, "", None)]
    packages = [_package(name, group, specifier, versions) for (group, name), specifier in wanted.items()]
    return sorted(packages, key=lambda package: PACKAGE_GROUPS.index(package.group))


def release(version: str) -> tuple[int, ...]:
    """Return ``(2, 5, 0)`` for ``"2.5.0a0+872d.nv24.08"``, and nothing for what is no version."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version).release
    except InvalidVersion:
        return ()


def torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for, without importing it; None: no CUDA or no torch."""
    try:
        path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
        found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", path.read_text(), re.MULTILINE)
    except (metadata.PackageNotFoundError, OSError):
        return None
    return found[1] if found else None


def imports(packages: Iterable[Package]) -> dict[str, Import]:
    """Import each installed package, by name, in another process, so that a crash ends only that one."""
    names = [package.name for package in packages if package.version is not None]
    modules = {_MODULES.get(name, name.replace("-", "_")): name for name in names}
    found = try_imports(list(modules))
    return {name: found[module] for module, name in modules.items()}


def try_imports(modules: list[str]) -> dict[str, Import]:
    """Import each module in another process; after a module that kills it the others are tried in a new one."""
    found: dict[str, Import] = {}
    while left := [module for module in modules if module not in found]:
        try:
            output, end = _run_probe(left)
        except OSError:  # no other process can be started (an emulator): nothing speaks against them
            return found | dict.fromkeys(left, Import(None))
        started = left[0]
        for line in output.splitlines():
            answer = _answer(line)
            started = str(answer[0]) if answer else started
            if len(answer) == 3:
                found[started] = Import(answer[1], answer[2])
        if started not in found:
            found[started] = Import(f"its import {end}")
    return found


def ask_torch_cuda() -> TorchCuda | None:
    """Return what torch's CUDA can do on this board, asked in another process; None: it did not answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False
        )
        return TorchCuda(**json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError, TypeError):
        return None


def _requirements() -> Iterator[tuple[str, Requirement]]:
    """Yield (group, requirement) of adc-edge's metadata; one extra's use of another is left out."""
    from packaging.requirements import Requirement

    yield from (("tensorrt", Requirement(text)) for text in _TENSORRT)
    try:
        lines = metadata.requires("adc-edge") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return
    for requirement in map(Requirement, lines):
        extra = re.search(r'extra == "(\w+)"', str(requirement.marker))
        group = extra[1] if extra else DEVICE
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": group})  # of this Python too
        if wanted and group in PACKAGE_GROUPS and requirement.name != "adc-edge":
            yield group, requirement


def _package(name: str, group: str, specifier: SpecifierSet, versions: Versions) -> Package:
    version = next((v for each in (name, *_ALSO.get(name, ())) if (v := versions(each)) is not None), None)
    least = next((each.version for each in specifier if each.operator == ">="), None)
    # Releases are compared, since a board maker's 2.5.0a0 serves as 2.5.
    old = version is not None and least is not None and release(version) < release(least)
    return Package(name, group, str(specifier), version, f"older than {least}" if old else None)


def _run_probe(modules: list[str]) -> tuple[str, str]:
    """Return what the probe printed, and how it ended."""
    command = [sys.executable, "-c", _PROBE, *modules]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return text, f"takes more than {_IMPORT_TIMEOUT_S:.0f} s"
    return done.stdout, ending(done.returncode)


def ending(code: int) -> str:
    """Return in words how a process ended that was not meant to end."""
    if code >= 0:
        return f"ends the process (exit code {code})"
    try:
        return f"ends in {signal.Signals(-code).name}"
    except ValueError:
        return f"ends in signal {-code}"


def _answer(line: str) -> list[Any]:
    try:
        answer = json.loads(line)
    except ValueError:  # a library's own print
        return []
    return answer if isinstance(answer, list) else []
