"""The TensorRT engine on a fake TensorRT that computes with ONNX Runtime and enforces TensorRT's rules."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from adc_edge.arrays import Float32, Int64
from adc_edge.edge_runtime.engines.on_gpu import converted
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.engines.tensorrt import session
from adc_edge.edge_runtime.engines.tensorrt.build import Order, build
from adc_edge.edge_runtime.engines.tensorrt.engine import TensorRtEngine
from adc_edge.edge_runtime.engines.tensorrt.library import load_tensorrt, make_logger
from adc_edge.errors import BundleError, EngineError, SettingError
from adc_edge.onnx.agreement import agreement, perturb_weights
from adc_edge.onnx.golden import GOLDEN_LIMITS, check_golden
from adc_edge.storage.bundle import TRUNK, Bundle
from tests.edge_runtime.engines.tensorrt.fake_cuda import Gpu, cudaError_t
from tests.edge_runtime.engines.tensorrt.fake_tensorrt import Faults, Machine, installed

LARGEST, OPT = 12, (4, 6)
BIAS = "blocks.0.mlp.fc1.bias"


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A board with the fake TensorRT; at the end nothing may be left on its GPU."""
    with installed(Machine()) as machine:
        yield machine
    assert machine.gpu.memory == {}
    assert machine.gpu.streams == set()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns the messages since the last call."""
    caplog.set_level(logging.INFO, "adc_edge")

    def messages() -> list[str]:
        found = caplog.messages.copy()
        caplog.clear()
        return found

    return messages


@pytest.fixture
def make(half: Bundle, tmp_path: Path) -> Any:
    """An engine, with what differs from the usual one."""

    def make(**changes: Any) -> TensorRtEngine:
        usual: dict[str, Any] = {
            "bundle": half,
            "largest": LARGEST,
            "opt": OPT,
            "directory": tmp_path / "engines",
        }
        return TensorRtEngine(**(usual | changes))

    return make


@pytest.fixture
def reference(half: Bundle) -> Iterator[OnnxEngine]:
    with OnnxEngine(half.client("fp32"), half.manifest.trunk, freeze_first=1) as engine:
        yield engine


def images(count: int, seed: int = 0) -> Float32:
    """Images that differ in the large, so that fp16 chooses as fp32 does."""
    coarse = np.random.default_rng(seed).standard_normal((count, 3, 4, 4)).astype(np.float32)
    return np.repeat(np.repeat(coarse, 4, axis=2), 4, axis=3)


def rows(*values: int) -> Int64:
    return np.array(values, np.int64)


def trunk(bundle: Bundle) -> dict[str, Float32]:
    return load_file(bundle.file(TRUNK))


def assert_alike(ours: Any, theirs: Any, compute: Any) -> None:
    found, limit = agreement(ours, theirs), GOLDEN_LIMITS[compute]
    assert found.assignment >= limit.assignment
    assert found.tokens >= limit.tokens
    assert found.difference <= limit.difference


@pytest.mark.parametrize(("compute", "difference"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_it_computes_what_onnx_runtime_computes_at_every_shape(
    compute: Any, difference: float, make: Any, reference: OnnxEngine, machine: Machine
) -> None:
    with make(compute=compute, freeze_first=1) as engine:
        assert engine.description == f"TensorRT 10.3.0 on Orin, {compute}, weights refitted"
        for count, clusters, slots in ((12, 4, 6), (12, 12, 16), (5, 3, 1), (1, 1, 16), (2, 1, 7), (12, 4, 6)):
            case = images(count, count), np.arange(clusters), slots
            ours, theirs = engine.compress(*case), reference.compress(*case)
            assert_alike(ours, theirs, compute)
            assert ours.hidden is not None
            assert theirs.hidden is not None
            np.testing.assert_allclose(ours.hidden, theirs.hidden, atol=difference)
        np.testing.assert_allclose(engine.full_output(images(9)), reference.full_output(images(9)), atol=difference)
    assert machine.gpu.peak_allocations > 30  # the weights' places, inputs, outputs; all given back: see the fixture


def test_evaluation_takes_images_that_are_alike(make: Any, reference: OnnxEngine, machine: Machine) -> None:
    batch = images(5)
    batch[3] = batch[4] = batch[1]
    with make() as engine:
        assert engine.compress(batch, rows(0, 1), 3).hidden is None
        np.testing.assert_allclose(engine.full_output(batch), reference.full_output(batch), atol=2e-3)


def test_it_is_built_as_it_must_be(make: Any, half: Bundle, machine: Machine) -> None:
    with make(freeze_first=1):
        pass
    (build,) = machine.builds
    assert build["outputs"] == ["activations", "assignment", "tokens", "counts", "hidden_1"]  # not the scores
    assert build["profile"]["images"] == ((1, 3, 16, 16), (12, 3, 16, 16), (12, 3, 16, 16))
    assert build["profile"]["seeds"] == ((1,), (4,), (12,))
    assert build["profile"]["slots"] == ((1,), (6,), (16,))
    assert not build["tf32"]
    assert sorted(build["refit"]) == sorted(trunk(half))


def test_what_is_too_large_for_the_engine_is_refused(make: Any, machine: Machine) -> None:
    with make() as engine:
        with pytest.raises(SettingError, match=r"13 images at once(.|\n)*at most 12"):
            engine.compress(images(13), rows(0), 3)
        with pytest.raises(SettingError, match="13 images at once"):
            engine.full_output(images(13))
        with pytest.raises(SettingError, match="17 slots: expected 1 to 16"):
            engine.compress(images(3), rows(0), 17)
        with pytest.raises(SettingError, match="distinct rows"):
            engine.compress(images(3), rows(1, 1), 3)
        assert engine.compress(images(12), rows(0), 3).activations.shape == (1, 4, 32)


@pytest.mark.parametrize("opt", [(13, 6), (0, 6), (4, 17), (4, 0)])
def test_a_profile_that_cannot_be_is_refused(opt: tuple[int, int], make: Any) -> None:
    with pytest.raises(SettingError, match="1 <= T <= B"):
        make(opt=opt)
    with pytest.raises(SettingError, match="--freeze-first 2 of 2 blocks"):
        make(freeze_first=2)


@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_new_weights_by_refit(compute: Any, make: Any, half: Bundle, reference: OnnxEngine, machine: Machine) -> None:
    case = images(8), rows(0, 1, 2), 5
    with make(compute=compute) as engine:
        first = engine.compress(*case)
        for turn in (5, 6):
            weights = perturb_weights(trunk(half), turn)
            engine.refresh(weights)
            reference.refresh(weights)
            assert_alike(engine.compress(*case), reference.compress(*case), compute)
            assert (
                agreement(engine.compress(*case), first).difference > 0.1
                or agreement(engine.compress(*case), first).tokens < 0.9
            )
        engine.refresh(trunk(half))
        np.testing.assert_array_equal(engine.compress(*case).activations, first.activations)
    assert machine.refits >= 5  # two of the test, back again, then these


@pytest.fixture
def on_the_gpu(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    """Take the memory of torch's tensors for memory of the GPU."""

    def adopted(*arguments: Any) -> Any:
        ready = converted(*arguments)
        machine.gpu.others = {w.data_ptr(): w.nbytes for w in ready.values()}
        return ready

    monkeypatch.setattr(session, "converted", adopted)


@pytest.mark.usefixtures("on_the_gpu")
@pytest.mark.parametrize(("compute", "stuck"), [("fp32", ()), ("fp16", ()), ("fp16", (BIAS,))])
def test_weights_on_the_gpu_give_the_same_as_from_host_memory(
    compute: Any, stuck: tuple[str, ...], make: Any, half: Bundle, machine: Machine
) -> None:
    machine.faults = Faults(stuck=stuck)  # a refit that fails its test: weights become inputs
    case = images(8), rows(0, 1, 2), 5
    weights = perturb_weights(trunk(half), 5)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    with make(compute=compute) as engine:
        engine.refresh(weights)
        expected = engine.compress(*case).activations
        engine.refresh(trunk(half))
        engine.refresh_on_gpu(tensors)
        for value in weights.values():  # as the next step does
            value += 1
        np.testing.assert_array_equal(engine.compress(*case).activations, expected)
        with pytest.raises(SettingError, match="cls_token"):
            engine.refresh_on_gpu(tensors | {"cls_token": tensors["cls_token"].double()})
        if compute == "fp16":
            with pytest.raises(EngineError, match=r"pos_embed holds 1e\+05, beyond what float16 can"):
                engine.refresh_on_gpu(tensors | {"pos_embed": torch.full_like(tensors["pos_embed"], 1e5)})


def test_weights_may_change_as_soon_as_a_refresh_is_back(make: Any, half: Bundle, machine: Machine) -> None:
    weights = perturb_weights(trunk(half), 3)
    with make(compute="fp32") as engine:
        engine.refresh(weights)
        before = engine.compress(images(4), rows(0, 1), 4).activations
        for value in weights.values():
            value += 1
        np.testing.assert_array_equal(engine.compress(images(4), rows(0, 1), 4).activations, before)


def test_foreign_or_incomplete_weights_are_refused(make: Any, half: Bundle, machine: Machine) -> None:
    weights = trunk(half)
    with make() as engine:
        with pytest.raises(SettingError, match=r"blocks\.9"):
            engine.refresh(weights | {"blocks.9.bias": np.zeros(3, np.float32)})
        with pytest.raises(SettingError, match="cls_token"):
            engine.refresh(weights | {"cls_token": np.zeros((1, 1, 31), np.float32)})
        with pytest.raises(SettingError, match="cls_token"):
            engine.refresh(weights | {"cls_token": weights["cls_token"].astype(np.float64)})
        with pytest.raises(SettingError, match="pos_embed"):
            engine.refresh({name: value for name, value in weights.items() if name != "pos_embed"})
        with pytest.raises(EngineError, match=r"pos_embed holds 1e\+05, beyond what float16 can(.|\n)*--compute fp32"):
            engine.refresh(weights | {"pos_embed": np.full_like(weights["pos_embed"], 1e5)})


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(unlisted=(BIAS,)), f"TensorRT offers no {BIAS} to refit"),  # what 11.3 does to biases
        (Faults(stuck=(BIAS,)), "with new weights, refresh 1: activations differ"),
        (Faults(stuck=("cls_token",)), "with new weights, refresh 1: activations differ"),
        (Faults(stuck=("blocks.1.norm2.bias",)), "with new weights, refresh 1: activations differ"),
        (Faults(unmarked=("pos_embed",)), "TensorRT has no weights called pos_embed"),
        (Faults(wanted=("tmp_weight_3",)), "TensorRT wants other weights too: tmp_weight_3"),
        (Faults(fixed=True), "cannot be refitted"),
    ],
)
def test_where_a_refit_cannot_be_trusted_the_weights_become_inputs(
    faults: Faults,
    words: str,
    make: Any,
    half: Bundle,
    reference: OnnxEngine,
    machine: Machine,
    logged: Callable[[], list[str]],
) -> None:
    machine.faults = faults
    with make(freeze_first=1) as engine:
        assert engine.description.endswith("weights as network inputs")
        assert any(words in line and "using weights as network inputs instead" in line for line in logged())
        case = images(8), rows(0, 1, 2), 5
        assert_alike(engine.compress(*case), reference.compress(*case), "fp16")
        assert len(machine.gpu.memory) == 3 + len(trunk(half)) + 5  # inputs, weights, outputs: nothing of the refit's
        for turn in (5, 6):
            weights = perturb_weights(trunk(half), turn)
            engine.refresh(weights)
            reference.refresh(weights)
            assert_alike(engine.compress(*case), reference.compress(*case), "fp16")
    assert machine.builds[-1]["refit"] == []
    assert machine.refits == 0 or "refresh" in words
    builds = len(machine.builds)
    with make(freeze_first=1) as engine:  # what was found out is remembered
        assert engine.description.endswith("weights as network inputs")
    assert len(machine.builds) == builds
    assert words in logged()[-1]


def test_without_a_graph_for_it_there_is_no_last_resort(make: Any, bundle: Bundle, machine: Machine) -> None:
    machine.faults.fixed = True
    with pytest.raises(EngineError, match="export it again with --tensorrt"), make(bundle=bundle, compute="fp32"):
        pass
    with pytest.raises(BundleError, match="--fp16"), make(bundle=bundle):
        pass


@pytest.mark.parametrize("trains", [True, False])
def test_an_engine_that_computes_something_else_is_refused(trains: bool, make: Any, machine: Machine) -> None:
    machine.faults.wrong = 0.3
    with pytest.raises(EngineError, match=r"fails its test(.|\n)*use --engine onnxruntime"), make(trains=trains):
        pass
    machine.faults.wrong = 0.0
    with make(trains=trains):  # a fault that is over leaves nothing behind that would be used
        pass


def test_a_frozen_trunk(make: Any, half: Bundle, reference: OnnxEngine, machine: Machine) -> None:
    case = images(8), rows(0, 1, 2), 5
    with make(trains=False) as engine:
        assert_alike(engine.compress(*case), reference.compress(*case), "fp16")
        assert check_golden(half, engine, "fp16").difference < 1e-2
        with pytest.raises(SettingError, match="frozen"):
            engine.refresh(trunk(half))
    assert machine.builds[0]["refit"] == []
    assert machine.refits == 0


def test_int8_is_forward_only(make: Any) -> None:
    with pytest.raises(SettingError, match="int8 is forward only"):
        make(compute="int8")


def test_a_second_start_builds_nothing(make: Any, machine: Machine, logged: Callable[[], list[str]]) -> None:
    case = images(8), rows(0, 1, 2), 5
    with make() as engine:
        first = engine.compress(*case)
    runs = machine.runs
    logged()
    with make() as engine:
        assert machine.runs == runs  # not tested again either
        np.testing.assert_array_equal(engine.compress(*case).activations, first.activations)
    assert len(machine.builds) == 1
    assert logged() == []
    with make(largest=6):
        assert len(machine.builds) == 2


@pytest.mark.parametrize("largest", [1, 2])
def test_small_engines_are_tested_too(largest: int, make: Any, machine: Machine) -> None:
    machine.faults.stuck = (BIAS,)
    with make(largest=largest, opt=(1, 3)) as engine:
        assert engine.description.endswith("inputs")


def test_what_the_builder_has_timed_is_not_timed_again(make: Any, machine: Machine, tmp_path: Path) -> None:
    with make():
        pass
    with make(largest=6):
        pass
    assert (len(machine.builds), machine.timed) == (2, 1)
    (timing,) = (tmp_path / "engines").glob("*.timing")
    timing.write_bytes(b"nonsense")
    with make(largest=5):
        pass
    assert (len(machine.builds), machine.timed) == (3, 2)


def test_another_board_builds_its_own_and_says_so(make: Any, machine: Machine, logged: Callable[[], list[str]]) -> None:
    with make():
        pass
    with installed(Machine(gpu=Gpu("Xavier NX", "7.2"))) as other, make():
        assert len(other.builds) == 1
    assert any("holds engines of Orin (8.7); building one for this GPU, Xavier NX (7.2)" in line for line in logged())
    for version in ("10.16.1.11", "11.4.0.106"):
        with installed(Machine(version)) as newer, make() as engine:
            assert len(newer.builds) == 1
            assert engine.description.startswith(f"TensorRT {version} on Orin")


def test_everything_that_the_parser_objects_to_is_told(make: Any, machine: Machine) -> None:
    machine.faults.parse = [("TopK", "node_topk", "k is too large"), ("Gelu", "node_gelu", "no such operator")]
    with pytest.raises(EngineError) as caught, make():
        pass
    for word in ("client.fp16.onnx", "TopK node_topk (node 0): k is too large", "Gelu node_gelu (node 1)"):
        assert word in str(caught.value)


def test_a_build_that_fails_tells_why(make: Any, machine: Machine, logged: Callable[[], list[str]]) -> None:
    machine.faults.build = "Could not find any implementation for node MatMul"
    with (
        pytest.raises(EngineError, match=r"cannot build client\.fp16\.onnx: Could not find any implementation"),
        make(),
    ):
        pass
    assert "TensorRT: Could not find any implementation for node MatMul" in logged()


@pytest.mark.parametrize(
    ("fault", "words"), [("no_context", "memory for it"), ("runs_fail", "refuses a run: Cuda Runtime")]
)
def test_an_engine_that_cannot_run_is_an_error_and_leaves_nothing(
    fault: str, words: str, make: Any, machine: Machine
) -> None:
    setattr(machine.faults, fault, True)
    with pytest.raises(EngineError, match=words), make():
        pass


@pytest.mark.parametrize(
    ("function", "status", "words"),
    [
        ("cudaMalloc", cudaError_t.cudaErrorMemoryAllocation, "cudaMalloc failed with cudaErrorMemoryAllocation"),
        ("cudaGetDevice", cudaError_t.cudaErrorInsufficientDriver, "cuda-python no newer than the driver's"),
        (
            "cudaGetDevice",
            RuntimeError("Failed to dlopen libcuda.so.1"),
            r"CUDA: Failed to dlopen(.|\n)*--runtime nvidia",
        ),
        ("cudaStreamSynchronize", cudaError_t.cudaErrorIllegalAddress, "cudaErrorIllegalAddress"),
    ],
)
def test_what_cuda_refuses_is_an_error_with_a_remedy(
    function: str, status: cudaError_t | Exception, words: str, make: Any
) -> None:
    with installed(Machine()) as machine:
        machine.gpu.failing[function] = status
        with pytest.raises(EngineError, match=words), make():
            pass


def test_an_opset_beyond_this_tensorrt_is_refused_before_it_is_parsed(
    make: Any, machine: Machine, half: Bundle
) -> None:
    for opset in (8, 21):
        newer = msgspec.structs.replace(half, manifest=msgspec.structs.replace(half.manifest, opset=opset))
        with (
            pytest.raises(SettingError, match=f"client.fp16.onnx is in opset {opset}(.|\n)*9 to 20"),
            make(bundle=newer),
        ):
            pass
    assert machine.builds == []


def test_a_graph_without_hidden_states_is_refused(make: Any, machine: Machine, half: Bundle, tmp_path: Path) -> None:
    trt = load_tensorrt()
    old = onnx.load(half.client("fp16"))
    del old.graph.output[5:]
    onnx.save(old, tmp_path / "old.onnx")
    order = Order(tmp_path / "old.onnx", 20, {}, ("activations", "hidden_1"))
    with pytest.raises(SettingError, match=r"no output hidden_1(.|\n)*export the model again"):
        build(trt, make_logger(trt), order)


def test_without_tensorrt_or_cuda_there_is_one_clear_error(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(SettingError, match=r"python3-libnvinfer(.|\n)*pip install 'adc-edge\[tensorrt\]'"), make():
        pass
    with installed(Machine()):
        for name in ("cuda.bindings.runtime", "cuda.cudart"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(EngineError, match="no cuda-python here"), make():
            pass


def test_an_engine_directory_that_cannot_be_written_to_is_refused_before_the_build(
    make: Any, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="--engine-cache DIR"), make(directory=tmp_path / "file" / "engines"):
        pass
    assert machine.builds == []


def test_it_imports_no_torch_and_no_tensorrt() -> None:
    code = (
        "import sys, adc_edge.edge_runtime.engines.tensorrt.engine;"
        "print({'torch', 'tensorrt', 'cuda', 'onnx'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
