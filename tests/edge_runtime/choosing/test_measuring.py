"""Measurements on the first batch: seconds by size, and the error of the codec by cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from adc_edge.data.loader import Loader
from adc_edge.data.sources import load_dataset
from adc_edge.edge_runtime.choosing.measuring import DeviceSeconds, FirstBatch, at_size
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.method.ratio import Ratio
from adc_edge.storage.bundle import CLIENT, Bundle


@pytest.fixture
def loader(bundle: Bundle) -> Iterator[Loader]:
    loader = Loader(load_dataset("digits").train, bundle.manifest.preprocessing, 64)
    yield loader
    loader.close()


def test_seconds_of_other_sizes_are_a_call_and_so_much_for_each_image() -> None:
    measured = {4: DeviceSeconds(1.4), 16: DeviceSeconds(2.6)}
    assert at_size(measured, 64).forward == pytest.approx(1.0 + 64 * 0.1)
    assert at_size(measured, 2).forward == pytest.approx(1.2)
    assert at_size({4: DeviceSeconds(1.4)}, 8).forward == pytest.approx(2.8)
    assert at_size({4: DeviceSeconds(2.0), 16: DeviceSeconds(1.0)}, 64).forward == 1.0  # a busy machine


def test_the_error_of_principal_components_grows_with_the_parts_and_others_do_not_depend_on_them(
    bundle: Bundle, loader: Loader
) -> None:
    manifest = bundle.manifest

    def errors(precision: str, count: int) -> list[float]:
        shape = Ratio(xi=1.0).shape(64 // count, manifest.tokens, manifest.prefix)
        batch = FirstBatch(engine, None, loader, 0, manifest.prefix, (precision, None))  # type: ignore[arg-type]
        return batch.codec_errors(shape)

    with OnnxEngine(bundle.path / CLIENT, manifest.trunk, 1) as engine:
        whole, parts = errors("pca1", 1)[0], errors("pca1", 16)[0]
        assert 0 < whole < parts
        assert errors("int8", 16) == []


def test_looking_at_a_batch_leaves_it_ready(loader: Loader) -> None:
    seen = loader.look_ahead(0)
    assert np.array_equal(seen.images, loader.batch(0).images)
    assert np.array_equal(loader.look_ahead(1).images, loader.batch(1).images)
