"""The precisions of `serve`: impossible ones are refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.storage.bundle import Bundle


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--compute int8", ["int8 with a trunk that trains", "forward only", "--trunk frozen"]),
        ("--compute int8 --trunk frozen", ["no calibration.json", "adc-edge calibrate"]),
        ("--compute fp16", ["no client.fp16.onnx", "--fp16 for ONNX Runtime"]),
        ("--compute fp16 --engine torch", ["fp16 with --engine torch", "--engine onnxruntime or tensorrt"]),
        ("--compute int8 --trunk frozen --engine auto", ["int8 with --engine auto"]),
        ("--engine tensorrt", ["no client.fp16.onnx", "--fp16"]),
    ],
)
def test_a_precision_that_the_engine_or_the_bundle_lacks_is_refused(
    options: str, words: list[str], bundle_dir: Path
) -> None:
    command = f"serve --bundle {bundle_dir} --trainer tcp://127.0.0.1:9 {options}".split()
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2, result.output
    for word in [*words, "expected:", "remedy:"]:
        assert word in result.output


def test_the_default_compute_precision_depends_on_the_engine(bundle_dir: Path) -> None:
    def computes(**more: object) -> str:
        return ServeSettings(bundle_dir, "tcp://127.0.0.1:9", **more).computes  # type: ignore[arg-type]

    assert computes() == "fp32"
    assert computes(engine="tensorrt") == "fp16"
    assert computes(engine="tensorrt", compute="fp32") == "fp32"


@pytest.mark.parametrize(
    ("asked", "bundle", "expected"),
    [
        ((None, None), ("pca1", "pca0.25"), ("pca1", "pca0.25")),
        ((None, None), ("int8", None), ("int8", "int8")),
        ((None, "int4"), ("pca1", "pca0.25"), ("pca1", "int4")),
        (("int8", None), ("pca1", "pca0.25"), ("int8", "int8")),
        (("int8", "int4"), ("pca1", None), ("int8", "int4")),
    ],
)
def test_the_precisions_on_the_wire_are_those_given_or_the_bundles(
    asked: tuple[Any, Any], bundle: tuple[Any, Any], expected: tuple[str, str], bundle_dir: Path
) -> None:
    manifest = Bundle.load(bundle_dir, ()).manifest
    manifest = msgspec.structs.replace(manifest, precision=bundle[0], gradient_precision=bundle[1])
    settings = ServeSettings(bundle_dir, "", precision=asked[0], gradient_precision=asked[1])
    assert settings.precisions(manifest) == expected
