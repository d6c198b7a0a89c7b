"""Whether torch's CUDA works on this board. `doctor` asks this too, so only what needs torch imports it.

Never run on a GPU: tests/edge_runtime/trunk/test_device.py tries it with a stand-in for ``torch.cuda``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

# Boards whose GPU runs the code of its own architecture only. Others also run that of earlier ones of their generation.
_JETSONS = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)}
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)$")


class TorchCuda(NamedTuple):
    """The CUDA of this board's torch; ``fault`` says why it does not work here, and is empty if it does."""

    torch: str  # version
    built_for: str | None  # CUDA version; None: without CUDA
    gpu: str = ""  # empty: torch finds none
    architecture: str = ""  # of the GPU, such as sm_87
    fault: str = ""


def examine_torch_cuda() -> TorchCuda:
    """Return whether torch's CUDA works on this board: found, built for its GPU, and tried. Imports torch."""
    import torch

    version, built_for = torch.__version__, torch.version.cuda
    if built_for is None and torch.version.hip is None:
        return TorchCuda(version, None, fault=f"torch {version} is built without CUDA")
    name = f"torch {version} (CUDA {built_for})"
    if not torch.cuda.is_available():
        return TorchCuda(version, built_for, fault=f"{name} finds no GPU")
    major, minor = torch.cuda.get_device_capability()
    gpu, architecture, offered = torch.cuda.get_device_name(), f"sm_{major}{minor}", torch.cuda.get_arch_list()
    if is_built_for((major, minor), offered):
        fault = _trial(torch, gpu)
    else:
        fault = f"{name} is built for {', '.join(offered)}, and {gpu} is {architecture}"
    return TorchCuda(version, built_for, gpu, architecture, fault)


def is_built_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Return whether a GPU of this compute capability runs code that was built for these architectures.

    Args:
        capability: such as (8, 7).
        architectures: as torch lists them: ``sm_80`` is machine code, ``compute_80`` is code that the driver compiles.
    """
    found = [match for each in architectures if (match := _ARCHITECTURE.match(each))]
    return not found or any(_runs(capability, match) for match in found)  # none is NVIDIA's: only a trial can tell


def _runs(capability: tuple[int, int], architecture: re.Match[str]) -> bool:
    built = int(architecture[2]), int(architecture[3])
    if capability == built or architecture[4]:  # sm_90a runs on that architecture alone
        return capability == built
    if architecture[1] == "compute":
        return capability > built
    return not _JETSONS & {capability, built} and capability[0] == built[0] and capability > built


def _trial(torch: Any, gpu: str) -> str:
    """Compute something with autograd, and return what went wrong, or nothing."""
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # now: ONNX Runtime may share the libraries that this starts
    try:
        x = torch.ones(8, 8, device="cuda", requires_grad=True)
        (x @ x).sum().backward()
        float(x.grad.sum())
    except Exception as error:  # whatever CUDA or a library below it raises
        return f"torch {torch.__version__} cannot compute on {gpu}: {' '.join(str(error).split())[:200]}"
    return ""
