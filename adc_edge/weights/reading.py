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
from adc_edge.weights.opening import AGAIN, FILES, first_bytes

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
    start = first_bytes(path)
    if start.startswith(_ZIP):
        return Contents(_read_archive(path), {})
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and not start.startswith(_PICKLE)):
        return _read_safetensors(path)
    if start.startswith(_PICKLE):
        return Contents(_read_pickle(path), {})
    raise ModelError(f"--weights {path} begins with {start[:16]!r}", FILES, "check what this file is")


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            return Contents({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # safetensors' own error, and whatever torch raises for a type that it lacks
        raise ModelError(f"--weights {path} is damaged: {error}", "a whole safetensors file", AGAIN) from None


def _read_archive(path: Path) -> Any:
    """Read a zip archive of torch; another archive is refused."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"--weights {path} is damaged: {error}", "a whole PyTorch file", AGAIN) from None
    inside = {name.rpartition("/")[2] for name in names}
    if "data.pkl" not in inside or "constants.pkl" in inside:
        kinds = {
            "a TorchScript program": "constants.pkl" in inside,
            "a NumPy archive": names and names[0].endswith(".npy"),
        }
        kind = next((kind for kind, found in kinds.items() if found), "an archive of another kind")
        raise ModelError(f"--weights {path} is {kind}", FILES, "save the state_dict of the model")
    return _read_pickle(path)


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # a path would be read by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own errors
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            text = str(error).partition("\n")[0] or type(error).__name__
            raise ModelError(f"--weights {path} is damaged: {text}", "a whole PyTorch file", AGAIN) from None
        found = re.findall(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {found[0]}" if found else "Python code"
        raise ModelError(
            f"--weights {path} holds {what} besides tensors",
            "tensors, numbers and text: a file is read by torch.load(weights_only=True) alone, which runs no code",
            "save the weights alone, in a program that trusts the file: "
            "c = torch.load(FILE, weights_only=False); torch.save(c['model'], 'weights.pth')",
        ) from None
