"""The device on which PyTorch trains the trunk: the CPU, or a GPU on which this board's torch works."""

from __future__ import annotations

import logging
from typing import Literal

from adc_edge.defaults import ShimDevice
from adc_edge.edge_runtime.trunk.torch_cuda import examine_torch_cuda
from adc_edge.errors import SettingError
from adc_edge.storage.run_dir import RunDir

SHIM_DEVICE = "shim-device"  # file in the run directory: where PyTorch has computed
_log = logging.getLogger(__name__)


def check_shim_device(wish: ShimDevice | Literal["auto"], unused: bool) -> None:
    """Raise SettingError if ``wish`` is cuda and cannot be met.

    Args:
        wish: as given with --shim-device.
        unused: PyTorch computes nothing in this run.
    """
    if wish != "cuda":
        return
    if unused:
        raise SettingError(
            "--shim-device cuda with a frozen trunk, which PyTorch does not compute",
            "a trunk that trains, or --engine torch",
            "leave --shim-device out; --provider and --engine say where a frozen trunk is computed",
        )
    found = examine_torch_cuda()
    if found.fault:
        raise SettingError(
            f"--shim-device cuda: {found.fault}",
            "a torch whose CUDA works on this board",
            "install one that does (docs/boards.md), or leave --shim-device out to train on the CPU",
        )


def choose_shim_device(wish: ShimDevice | Literal["auto"], run_dir: RunDir) -> ShimDevice:
    """Return where PyTorch computes in this process, and record it in the run.

    ``auto`` stays where the run began, for the sake of its last bits; a new run takes CUDA if it works. A run that goes
    on elsewhere warns.
    """
    kept = run_dir.kept(SHIM_DEVICE)
    before = kept.decode() if kept is not None else "cpu" if run_dir.has_begun else None  # as up to version 0.7
    now = _auto(before) if wish == "auto" else wish
    if before is not None and before != now:
        _log.warning("PyTorch has computed on %s so far in this run, now on %s: the last bits may differ", before, now)
    run_dir.keep(SHIM_DEVICE, now.encode())
    return now


def _auto(before: str | None) -> ShimDevice:
    if before == "cpu":
        return "cpu"
    found = examine_torch_cuda()
    if found.gpu and found.fault:
        _log.warning("the trunk is trained on the CPU: %s; docs/boards.md names the torch of each board", found.fault)
    return "cpu" if found.fault else "cuda"
