"""Checks of a weights file that need no torch: it is there, and its first bytes are not those of something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adc_edge.errors import ModelError, SettingError

FILES = "a file of weights: safetensors, or PyTorch's .pth, .pt, .bin or .ckpt"
AGAIN = "download or save it again"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def check_origin(weights: Path | None, pretrained: bool, allow_missing: Sequence[str]) -> None:
    """Check where weights are to come from, before torch is imported.

    Raises:
        ModelError: the file is not there or holds no weights.
        SettingError: ``allow_missing`` without weights.
    """
    if weights is not None:
        first_bytes(weights)
    elif allow_missing and not pretrained:
        raise SettingError("--allow-missing without weights", "weights that may lack tensors", "add --weights FILE")


def first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file that may hold weights; raises ModelError for one that holds none."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in _SUFFIXES)
        remedy = f"name the file: {', '.join(inside[:4])}" if inside else "no file of weights is in it: check the path"
        raise ModelError(f"--weights {path} is a directory", FILES, remedy)
    if not path.is_file():
        raise ModelError(f"--weights {path} is no file", FILES, "check the path")
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError as error:
        raise ModelError(f"--weights {path} cannot be read: {error.strerror}", FILES, "check who may read it") from None
    _refuse_other_kinds(path, start)
    return start


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Refuse what often lies in the place of weights."""
    if not start:
        raise ModelError(f"--weights {path} is empty", FILES, AGAIN)
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"--weights {path} is a Git LFS pointer, not the file", FILES, "run git lfs pull")
    text = start.lstrip().lower()
    if text.startswith(b"<"):
        raise ModelError(f"--weights {path} is a web page or XML", FILES, f"{AGAIN}: perhaps a page of errors came")
    if text.startswith((b"{", b"[")):
        if b'"weight_map"' in path.read_bytes():
            raise ModelError(
                f"--weights {path} is the index of weights in several files",
                "one file with all weights",
                "join them: safetensors.torch.save_file of the tensors of all files that the index lists",
            )
        raise ModelError(f"--weights {path} is JSON text", FILES, "name the file of the weights themselves")
