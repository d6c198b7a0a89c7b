"""Where PyTorch trains the trunk: the choice, and that everything then lies there. No GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file
from torch import Tensor
from torch._subclasses import FakeTensorMode

from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.trunk import trainer
from adc_edge.edge_runtime.trunk.device import SHIM_DEVICE, choose_shim_device
from adc_edge.edge_runtime.trunk.torch_cuda import examine_torch_cuda, is_built_for
from adc_edge.edge_runtime.trunk.trainer import Shim
from adc_edge.errors import LinkError, SettingError
from adc_edge.method.compressed import CompressedBatch
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.run_dir import RunDir

ORIN, GENERIC_13 = (8, 7), ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "architectures", "fits"),
    [
        (ORIN, ["sm_87"], True),
        (ORIN, GENERIC_13, False),  # a Jetson does not run the code of desktop GPUs
        (ORIN, [*GENERIC_13, "compute_80"], True),  # the driver compiles it
        ((8, 9), GENERIC_13, True),  # an RTX 40: as sm_86
        ((8, 9), ["sm_87"], False),
        ((8, 0), ["sm_86"], False),
        ((7, 0), GENERIC_13, False),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((12, 1), ["sm_120"], True),
        ((9, 0), ["gfx90a"], True),  # AMD's: only a trial can tell
    ],
)
def test_torch_fits_a_gpu_if_it_has_code_for_it(
    capability: tuple[int, int], architectures: list[str], fits: bool
) -> None:
    assert is_built_for(capability, architectures) == fits


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch for CUDA, and a GPU on which it computes (on the CPU)."""
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch, "__version__", "2.5.0")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # which the trial sets
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device, **more: ones(*size, **more))
    facts: dict[str, Any] = {
        "is_available": True,
        "get_device_capability": ORIN,
        "get_device_name": "Orin",
        "get_arch_list": ["sm_87"],
    }
    for name, value in facts.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    return monkeypatch


def test_torch_says_why_its_cuda_does_not_work(orin: pytest.MonkeyPatch) -> None:
    assert examine_torch_cuda() == ("2.5.0", "12.6", "Orin", "sm_87", "")

    def no_kernel(*size: int, **more: Any) -> Tensor:
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")

    orin.setattr(torch, "ones", no_kernel)
    trial = "torch 2.5.0 cannot compute on Orin: CUDA error: no kernel image is available for execution on the device"
    assert examine_torch_cuda().fault == trial
    orin.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    assert examine_torch_cuda().fault == "torch 2.5.0 (CUDA 12.6) is built for sm_80, sm_90, and Orin is sm_87"
    orin.setattr(torch.cuda, "is_available", lambda: False)
    assert examine_torch_cuda().fault == "torch 2.5.0 (CUDA 12.6) finds no GPU"
    orin.setattr(torch.version, "cuda", None)
    assert examine_torch_cuda().fault == "torch 2.5.0 is built without CUDA"


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    found = RunDir(tmp_path / "run", {"role": "device"}, {})
    yield found
    found.close()


def test_a_new_run_takes_cuda_where_it_works_and_stays_there(
    orin: pytest.MonkeyPatch, run_dir: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_shim_device("auto", run_dir) == "cuda"
    assert choose_shim_device("auto", run_dir) == "cuda"
    assert not caplog.messages
    orin.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])  # another torch was installed
    assert choose_shim_device("auto", run_dir) == "cpu"
    assert "is built for sm_80, and Orin is sm_87" in caplog.messages[0]
    moved = "PyTorch has computed on cuda so far in this run, now on cpu: the last bits may differ"
    assert caplog.messages[1:] == [moved]


def test_a_run_that_began_on_the_cpu_stays_there_unless_it_is_told_otherwise(
    orin: pytest.MonkeyPatch, run_dir: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir.metric(kind="step", step=0)  # of version 0.7, which recorded no device
    assert choose_shim_device("auto", run_dir) == "cpu"
    assert choose_shim_device("cpu", run_dir) == "cpu"
    assert not caplog.messages
    assert choose_shim_device("cuda", run_dir) == "cuda"
    assert "computed on cpu so far in this run, now on cuda" in caplog.text
    assert run_dir.kept(SHIM_DEVICE) == b"cuda"


def test_cuda_that_is_absent_is_one_error_and_the_run_is_as_it_was(bundle: Bundle, tmp_path: Path) -> None:
    settings = ServeSettings(bundle.path, "tcp://127.0.0.1:9", run=tmp_path / "run", fresh=True, shim_device="cuda")
    with pytest.raises(SettingError, match=r"--shim-device cuda: torch (?s:.*)docs/boards.md"):
        Serve(settings, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_run_on_the_cpu_says_so_and_one_from_cuda_goes_on_with_a_warning(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServeSettings(bundle.path, "tcp://127.0.0.1:9", run=tmp_path / "run", wait_s=0.1, shim_device="cpu")
    for before, fresh in ((None, False), (b"cuda", False), (b"cuda", True)):
        if before:
            (tmp_path / "run" / SHIM_DEVICE).write_bytes(before)
        caplog.clear()
        serve = Serve(msgspec.structs.replace(settings, fresh=fresh), Console(quiet=True), stop=lambda: False)
        with pytest.raises(LinkError):
            serve.run()
        warned = "computed on cuda so far in this run, now on cpu" in caplog.text
        assert warned == (before is not None and not fresh)
    assert (tmp_path / "run" / SHIM_DEVICE).read_bytes() == b"cpu"


def batch() -> CompressedBatch:
    """Return a batch of four images as an engine sends it: two clusters, CLS and two patches of each."""
    return CompressedBatch(
        np.zeros((2, 3, 48), np.float32), np.array([0, 1, 1, 0]), np.array([[0, 1, 2], [0, 2, 5]]), None
    )


@pytest.mark.parametrize("name", ["adamw", "adam"])
@pytest.mark.parametrize("freeze_first", [0, 1])
def test_everything_that_the_shim_computes_lies_on_its_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: Any, freeze_first: int
) -> None:
    """torch's fake tensors have devices that need not be there, and refuse operations across two of them."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    gradients: list[Tensor] = []

    def backward(output: Tensor, gradient: Tensor) -> None:  # autograd itself asks for the GPU's thread
        assert gradient.shape == output.shape
        gradients.append(gradient)
        for p in shim.trunk.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None

    monkeypatch.setattr(Tensor, "backward", backward)
    weights = bundle.path / "trunk.safetensors"
    settings = OptimizerSettings(name, clip_norm=1.0)
    shapes = {name: value.shape for name, value in load_file(weights).items()}
    monkeypatch.setattr(trainer, "load", lambda data: {name: torch.zeros(*shape) for name, shape in shapes.items()})
    dim = bundle.manifest.dim
    sent = batch()._replace(activations=np.zeros((2, 3, dim), np.float32))
    if freeze_first:
        sent = sent._replace(hidden=np.zeros((4, bundle.manifest.tokens, dim), np.float32))
    with FakeTensorMode():
        shim = Shim(bundle.manifest.trunk, weights, settings, freeze_first, "cuda")
        for step in range(2):
            shim.recompute(np.zeros((4, 3, 16, 16), np.float32), sent)
            assert shim._waiting[0].device.type == "cuda"
            shim.backward(sent.activations)
            shim.update(step, 2)
        assert shim._optimizer is not None
        state = [value for values in shim._optimizer._torch.state.values() for value in values.values()]
        assert len(state) > 10
        for tensor in (*shim.trunk.state_dict().values(), *state, *gradients):
            assert not isinstance(tensor, Tensor) or tensor.device.type == "cuda"
        shim._optimizer.restore({"0.step": np.array(1.0, np.float32), "0.exp_avg": np.zeros(3, np.float32)})
        assert {value.device.type for value in shim._optimizer._torch.state_dict()["state"][0].values()} == {"cuda"}
        with pytest.raises(RuntimeError, match="same device"):  # the check itself
            shim.trunk(torch.zeros(4, 3, 16, 16))


def test_on_the_cpu_the_shims_weights_are_views_that_follow_its_steps(bundle: Bundle) -> None:
    shim = Shim(bundle.manifest.trunk, bundle.path / "trunk.safetensors", OptimizerSettings(lr=1e-2))
    weights = shim.weights()
    assert all(weights[name].ctypes.data == tensor.data_ptr() for name, tensor in shim.tensors().items())
