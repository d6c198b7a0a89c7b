"""ONNX Runtime's providers: the one asked for, or an error; never another in silence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from adc_edge.edge_runtime.engines import onnxruntime as onnx_engine
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.engines.providers import NAMES, Provider, available, open_session
from adc_edge.errors import SettingError
from adc_edge.machine.processor import SLOW_INT8, processor_name
from adc_edge.storage.bundle import CLIENT, CLIENT_INT8, Bundle


@pytest.mark.parametrize("provider", [name for name in NAMES if name not in available()])
def test_a_provider_that_is_not_here_is_refused_with_those_that_are(provider: Provider, bundle: Bundle) -> None:
    with pytest.raises(SettingError) as caught, OnnxEngine(bundle.path / "client.onnx", bundle.manifest.trunk,
                                                           provider=provider):  # fmt: skip
        pass
    text = str(caught.value)
    assert f"--provider {provider}" in text
    assert NAMES[provider] in text
    assert "works here: cpu" in text
    assert "remedy:" in text


def test_a_provider_that_is_built_in_but_does_not_load_is_no_silent_fallback(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FellBack(ort.InferenceSession):  # type: ignore[misc]  # what ONNX Runtime does when libcudart is missing: a warning, and the CPU
        def __init__(self, path: str, options: Any, providers: Any) -> None:
            assert providers[0] in (("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {}))
            super().__init__(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", FellBack)
    path = str(bundle.path / "client.onnx")
    with pytest.raises(SettingError, match="fell back to CPUExecutionProvider"):
        open_session(path, "cuda")
    opened = open_session(path, "auto")
    assert opened.provider == "cpu"
    assert "CUDAExecutionProvider does not load here" in opened.reason


def test_auto_takes_what_works_and_says_why(bundle: Bundle) -> None:
    if "cuda" in available():
        pytest.skip("CUDA is here")
    opened = open_session(str(bundle.path / "client.onnx"), "auto")
    assert opened.provider == "cpu"
    assert opened.reason == "no CUDA in this ONNX Runtime"
    with OnnxEngine(bundle.path / "client.onnx", bundle.manifest.trunk, provider="auto") as engine:
        assert engine.description == "cpu: no CUDA in this ONNX Runtime"


@pytest.mark.parametrize("saturates", [True, False])
def test_an_int8_engine_says_where_fast_8_bit_products_saturate(
    saturates: bool, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx_engine, "int8_saturates", lambda: saturates)
    shutil.copy(bundle.path / CLIENT, tmp_path / CLIENT_INT8)
    with OnnxEngine(tmp_path / CLIENT_INT8, bundle.manifest.trunk) as engine:
        assert engine.description == (f"cpu: {SLOW_INT8}" if saturates else "cpu")
    assert (processor_name() in caplog.text and "adc-edge bench" in caplog.text) is saturates
