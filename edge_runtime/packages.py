"""Which packages are here, which are too old, and whether they import. Standard library only: anything may be missing.

What is wanted stands in adc-edge's own metadata (pyproject.toml). torch is never imported; its CUDA stands in a file.
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
from typing import Any

DEVICE = "device"
PACKAGE_GROUPS = (DEVICE, "train", "data", "host", "export", "tensorrt")
_IMPORT_TIMEOUT_S = 120.0  # a cold SD card is slow
_ALSO = {  # other distributions of the same module
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings"),
    "cuda-python": ("cuda-bindings",),
}
_TENSORRT = ("tensorrt>=10", "cuda-python")  # TensorRT is JetPack's or from NVIDIA's index
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

Versions = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Package:
    """One that a group wants; ``version`` is None where it is missing."""

    name: str
    group: str
    wanted: str  # ">=2.5"; empty: any
    version: str | None
    fault: str | None = None  # why it does not do, though it is there

    @property
    def good(self) -> bool:
        """Whether it is there and does."""
        return self.version is not None and self.fault is None


@dataclass(frozen=True)
class Import:
    """How the import of a module in a process of its own went; ``more`` is what the module told of itself."""

    fault: str | None
    more: Any = None


def installed(name: str) -> str | None:
    """The version of a distribution, whether imported or not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find(versions: Versions = installed) -> list[Package]:
    """All packages of all groups, in the order of PACKAGE_GROUPS."""
    wanted = {(group, name): least for group, name, least in _wanted()}
    for text in _TENSORRT:
        name, least = _split(text)
        wanted.setdefault(("tensorrt", name), least)
    packages = [_package(name, group, least, versions) for (group, name), least in wanted.items()]
    return sorted(packages, key=lambda package: PACKAGE_GROUPS.index(package.group))


def release(version: str) -> tuple[int, ...]:
    """``"2.5.0a0+872d.nv24.08"`` -> (2, 5, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def torch_cuda() -> str | None:
    """The CUDA that the torch here was built for, without importing it; None: none, or no torch."""
    try:
        path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
        found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", path.read_text(), re.MULTILINE)
    except (metadata.PackageNotFoundError, OSError):
        return None
    return found[1] if found else None


def imports(packages: Iterable[Package]) -> dict[str, Import]:
    """Import each package that is there, by name, in another process: one that dies takes nothing with it."""
    names = [package.name for package in packages if package.version is not None]
    modules = {_MODULES.get(name, name.replace("-", "_")): name for name in names}
    found = try_imports(list(modules))
    return {name: found[module] for module, name in modules.items()}


def try_imports(modules: list[str]) -> dict[str, Import]:
    """The same by module. A module that kills the process is named, and the others are tried in a new one."""
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


def _wanted() -> Iterator[tuple[str, str, str]]:
    """(group, name, wanted) of adc-edge's metadata; one extra's use of another is left out."""
    try:
        lines = metadata.requires("adc-edge") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return
    for line in lines:
        text, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        group = extra[1] if extra else DEVICE
        if group in PACKAGE_GROUPS and not text.startswith("adc-edge"):
            yield group, *_split(text)


def _split(text: str) -> tuple[str, str]:
    found = re.match(r"([\w.-]+)(?:\[.*?\])?\s*\(?([^)]*)", text.strip())
    assert found is not None
    return found[1].lower(), found[2].strip()


def _package(name: str, group: str, wanted: str, versions: Versions) -> Package:
    version = next((v for each in (name, *_ALSO.get(name, ())) if (v := versions(each)) is not None), None)
    least = re.search(r">=([\d.]+)", wanted)
    old = version is not None and least is not None and release(version) < release(least[1])
    return Package(name, group, wanted, version, f"older than {least[1]}" if old and least else None)


def _run_probe(modules: list[str]) -> tuple[str, str]:
    """What it printed, and how it ended."""
    command = [sys.executable, "-c", _PROBE, *modules]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return text, f"takes more than {_IMPORT_TIMEOUT_S:.0f} s"
    return done.stdout, ending(done.returncode)


def ending(code: int) -> str:
    """In words, how a process ended that was not meant to."""
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
