"""The golden pair: a device that computes something else notices before it trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.errors import BundleError, EngineError
from adc_edge.onnx import golden
from adc_edge.onnx.agreement import Agreement
from adc_edge.onnx.golden import check_golden, golden_pixels, read_golden
from adc_edge.storage.bundle import CLIENT, GOLDEN, MANIFEST, Bundle
from tests.wrong_graph import change_weight


def test_the_bundles_own_graph_passes(bundle: Bundle) -> None:
    pair = read_golden(bundle)
    assert set(pair.assignment) == {0, 1, 2}
    assert pair.pixels.shape == (6, 16, 16, 3)
    with OnnxEngine(bundle.client("fp32"), bundle.manifest.trunk) as engine:
        found = check_golden(bundle, engine)
    assert found.assignment == found.tokens == 1.0
    assert found.difference < 1e-5


def test_its_images_are_unlike_one_another_in_every_shape(bundle: Bundle) -> None:
    spec = msgspec.structs.replace(bundle.manifest.trunk, image_size=(24, 32), channels=1)
    pixels = golden_pixels(spec)
    assert pixels.shape == (6, 24, 32, 1)
    assert all(np.abs(a.astype(int) - b).mean() > 20 for i, a in enumerate(pixels) for b in pixels[:i])


def test_an_engine_that_computes_something_else_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    change_weight(bundle.path / CLIENT, tmp_path / CLIENT, "blocks.1.mlp.fc2.bias", lambda bias: bias + 0.1)
    with (
        OnnxEngine(tmp_path / CLIENT, bundle.manifest.trunk) as engine,
        pytest.raises(EngineError, match=r"(?s)differ by .*at most 1e-03 in fp32.*--engine onnxruntime"),
    ):
        check_golden(bundle, engine)


def test_where_no_cluster_kept_just_the_same_tokens_the_shares_decide(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [0.33, 0.83]  # the second is int8's with DeiT-T
    monkeypatch.setattr(golden, "agreement", lambda *_: Agreement(shares.pop(), 0.86, float("nan")))
    with OnnxEngine(bundle.client("fp32"), bundle.manifest.trunk) as engine:
        check_golden(bundle, engine, "int8")
        with pytest.raises(EngineError, match="33% of assignments"):
            check_golden(bundle, engine, "int8")


def test_a_bundle_without_one_and_a_changed_one_are_refused(bundle_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_dir, tmp_path / "changed")
    data = bytearray((tmp_path / "changed" / GOLDEN).read_bytes())
    data[-1] ^= 1
    (tmp_path / "changed" / GOLDEN).write_bytes(data)
    with pytest.raises(BundleError, match="changed or damaged"):
        read_golden(Bundle.load(tmp_path / "changed", ()))
    shutil.copytree(bundle_dir, tmp_path / "old")
    manifest = msgspec.json.decode((tmp_path / "old" / MANIFEST).read_bytes())
    del manifest["files"][GOLDEN]
    (tmp_path / "old" / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BundleError, match=r"(?s)no golden pair.*export it again"):
        read_golden(Bundle.load(tmp_path / "old", ()))
