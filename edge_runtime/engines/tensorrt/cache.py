"""Engines on disk. An engine belongs to one graph, one TensorRT, one GPU and one set of options, and says so.

A file is MAGIC, the header's length (4 bytes, little endian), a JSON header, the engine. It is named after the GPU, the
TensorRT and a digest of all that it was built from, so that several boards may share a directory.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from adc_edge.edge_runtime.engines.tensorrt.cuda import Device
from adc_edge.errors import EngineError, SettingError
from adc_edge.files import write_atomic

GOOD = "good"  # the verdict of an engine that has passed its test; any other tells why it may not be used
_MAGIC = b"adc-edge engine 1\n"
_LENGTH_BYTES = 4
_MAX_HEADER_BYTES = 1 << 16
_ENGINE, _TIMING = ".engine", ".timing"


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The graph, TensorRT, GPU and options that an engine was built for."""

    onnx: str  # SHA-256 of the graph
    tensorrt: str  # version
    gpu: str
    capability: str
    build: str  # options, profile, outputs

    @property
    def stem(self) -> str:
        """Stem of the file's name."""
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()
        return f"{_slug(self.gpu)}-sm{_slug(self.capability)}-trt{self.tensorrt}-{digest[:16]}"


class Kept(NamedTuple):
    """An engine as it was kept; with a verdict other than GOOD it is empty."""

    engine: bytes
    verdict: str


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: EngineKey
    verdict: str
    sha256: str  # of verdict and engine
    nbytes: int


def load_engine(directory: Path, key: EngineKey) -> Kept | None:
    """Return what is kept under a key, or None.

    Raises:
        EngineError: the file is damaged, or holds what its name does not say.
    """
    path = directory / (key.stem + _ENGINE)
    read = _read(path)
    if read is None:
        return None
    header, engine = read
    wrong = [
        f"{what} {getattr(header.key, field)}, not {getattr(key, field)}"
        for field, what in _SAID.items()
        if getattr(header.key, field) != getattr(key, field)
    ]
    if wrong:
        raise EngineError(
            f"{path} is an engine for {', '.join(wrong)}", "the engine that its name says", _rebuild(path)
        )
    return Kept(engine, header.verdict)


def store_engine(directory: Path, key: EngineKey, engine: bytes, verdict: str = GOOD) -> Path:
    """Write an engine, or the reason why there is none, atomically."""
    path = directory / (key.stem + _ENGINE)
    _write(path, key, engine, verdict)
    return path


def load_timing(directory: Path, key: EngineKey) -> bytes:
    """TensorRT's timing cache of this TensorRT and GPU; empty where there is none, or a damaged one."""
    timing = _timing_key(key)
    try:
        read = _read(directory / (timing.stem + _TIMING))
    except EngineError:
        return b""  # it only saves time
    return read[1] if read is not None and read[0].key == timing else b""


def store_timing(directory: Path, key: EngineKey, timing: bytes) -> None:
    """Keep a timing cache, for the next build on this GPU."""
    _write(directory / (_timing_key(key).stem + _TIMING), _timing_key(key), timing, GOOD)


def foreign(directory: Path, device: Device) -> str | None:
    """Return a note if there are only other GPUs' engines, as after copying a directory from board to board."""
    found = {Device(header.key.gpu, header.key.capability) for header in _headers(directory)}
    if not found or device in found:
        return None
    others = ", ".join(f"{other.name} ({other.capability})" for other in sorted(found))
    return f"{directory} holds engines of {others}; building one for this GPU, {device.name} ({device.capability})"


def check_writable(directory: Path) -> None:
    """Raise SettingError unless an engine could be kept there: to be asked before minutes are spent on building it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return
        reason = "read-only"
    except OSError as error:
        reason = error.strerror or str(error)
    raise SettingError(
        f"engines cannot be kept in {directory}: {reason}",
        "a directory that can be written to",
        "--engine-cache DIR, on the board itself",
    )


_SAID = {
    "gpu": "the GPU",
    "capability": "compute capability",
    "tensorrt": "TensorRT",
    "onnx": "the graph with SHA-256",
    "build": "the options",
}


def _rebuild(path: Path) -> str:
    return f"delete {path}; it will be built again"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "gpu"


def _timing_key(key: EngineKey) -> EngineKey:
    return EngineKey("", key.tensorrt, key.gpu, key.capability, "timing")


def _write(path: Path, key: EngineKey, content: bytes, verdict: str) -> None:
    header = msgspec.json.encode(_Header(key, verdict, _seal(verdict, content), len(content)))
    write_atomic(path, _MAGIC + len(header).to_bytes(_LENGTH_BYTES, "little") + header + content)


def _read(path: Path) -> tuple[_Header, bytes] | None:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}", "a file that can be read", _rebuild(path)) from None
    header = _header(content[: _start(content)])
    if header is None:
        raise EngineError(f"{path} is damaged: it has no header", "an engine as it was kept", _rebuild(path))
    engine = content[_start(content) :]
    if len(engine) != header.nbytes or _seal(header.verdict, engine) != header.sha256:
        raise EngineError(
            f"{path} is damaged: {len(engine)} bytes of {header.nbytes}, or others than were written",
            f"SHA-256 {header.sha256}",
            _rebuild(path),
        )
    return header, engine


def _seal(verdict: str, engine: bytes) -> str:
    return hashlib.sha256(verdict.encode() + b"\0" + engine).hexdigest()


def _start(content: bytes) -> int:
    """Return where the engine begins."""
    first = len(_MAGIC) + _LENGTH_BYTES
    return first + min(int.from_bytes(content[len(_MAGIC) : first], "little"), _MAX_HEADER_BYTES)


def _header(content: bytes) -> _Header | None:
    """Return the header in a file's beginning, or None."""
    if not content.startswith(_MAGIC):
        return None
    try:
        return msgspec.json.decode(content[len(_MAGIC) + _LENGTH_BYTES :], type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _headers(directory: Path) -> list[_Header]:
    """Return the headers of all engines in a directory, without reading the engines."""
    found = []
    for path in sorted(directory.glob(f"*{_ENGINE}")):
        try:
            with path.open("rb") as file:
                beginning = file.read(len(_MAGIC) + _LENGTH_BYTES + _MAX_HEADER_BYTES)
        except OSError:
            continue
        header = _header(beginning[: _start(beginning)])
        if header is not None:
            found.append(header)
    return found
