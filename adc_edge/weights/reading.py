"""A weights file -> its contents. Its first bytes decide how it is read, not its name.

A pickled file is read by ``torch.load(weights_only=True)`` and in no other way, so nothing in it can run.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from adc_edge.errors import ModelError

_FILES = "a file of weights: safetensors, or PyTorch's .pth, .pt, .bin or .ckpt"
_AGAIN = "download or save it again"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # files of torch before 1.6


class Contents(NamedTuple):
    """Contents of a weights file: tensors by name, or mappings that hold them; metadata of a safetensors file."""

    value: Any
    metadata: dict[str, str]


def read_contents(path: Path) -> Contents:
    """Read a weights file.

    Raises:
        ModelError: there is no such file, it is damaged, of another kind, or holds more than data.
    """
    start = _start(path)
    if start.startswith(_ZIP):
        return Contents(_read_archive(path), {})
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and not start.startswith(_PICKLE)):
        return _read_safetensors(path)
    if start.startswith(_PICKLE):
        return Contents(_read_pickle(path), {})
    raise ModelError(f"--weights {path} begins with {start[:16]!r}", _FILES, "check what this file is")


def _start(path: Path) -> bytes:
    """Return the first bytes of a file that may hold weights."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in _SUFFIXES)
        remedy = f"name the file: {', '.join(inside[:4])}" if inside else "no file of weights is in it: check the path"
        raise ModelError(f"--weights {path} is a directory", _FILES, remedy)
    if not path.is_file():
        raise ModelError(f"--weights {path} is no file", _FILES, "check the path")
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError as error:
        raise ModelError(
            f"--weights {path} cannot be read: {error.strerror}", _FILES, "check who may read it"
        ) from None
    _refuse_other_kinds(path, start)
    return start


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Refuse what often lies in the place of weights."""
    if not start:
        raise ModelError(f"--weights {path} is empty", _FILES, _AGAIN)
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"--weights {path} is a Git LFS pointer, not the file", _FILES, "run git lfs pull")
    text = start.lstrip().lower()
    if text.startswith(b"<"):
        raise ModelError(f"--weights {path} is a web page or XML", _FILES, f"{_AGAIN}: perhaps a page of errors came")
    if text.startswith((b"{", b"[")):
        if b'"weight_map"' in path.read_bytes():
            raise ModelError(
                f"--weights {path} is the index of weights in several files",
                "one file with all weights",
                "join them: safetensors.torch.save_file of the tensors of all files that the index lists",
            )
        raise ModelError(f"--weights {path} is JSON text", _FILES, "name the file of the weights themselves")


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            return Contents({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # safetensors' own error, and whatever torch raises for a type that it lacks
        raise ModelError(f"--weights {path} is damaged: {error}", "a whole safetensors file", _AGAIN) from None


def _read_archive(path: Path) -> Any:
    """Read a zip archive of torch; another archive is refused."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"--weights {path} is damaged: {error}", "a whole PyTorch file", _AGAIN) from None
    inside = {name.rpartition("/")[2] for name in names}
    if "data.pkl" not in inside or "constants.pkl" in inside:
        kinds = {
            "a TorchScript program": "constants.pkl" in inside,
            "a NumPy archive": names and names[0].endswith(".npy"),
        }
        kind = next((kind for kind, found in kinds.items() if found), "an archive of another kind")
        raise ModelError(f"--weights {path} is {kind}", _FILES, "save the state_dict of the model")
    return _read_pickle(path)


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # a path would be read by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own errors
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            text = str(error).partition("\n")[0] or type(error).__name__
            raise ModelError(f"--weights {path} is damaged: {text}", "a whole PyTorch file", _AGAIN) from None
        found = re.findall(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {found[0]}" if found else "Python code"
        raise ModelError(
            f"--weights {path} holds {what} besides tensors",
            "tensors, numbers and text: a file is read by torch.load(weights_only=True) alone, which runs no code",
            "save the weights alone, in a program that trusts the file: "
            "c = torch.load(FILE, weights_only=False); torch.save(c['model'], 'weights.pth')",
        ) from None
