"""`export --preset`: the values it brings, what wins over it, and the numbers it rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.defaults import ExportPreset
from adc_edge.export.presets import EXPORT_PRESETS, preset_options
from adc_edge.method.ratio import Ratio
from adc_edge.planning.accuracy.frontier import read_setting
from adc_edge.storage.bundle import Bundle
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
PRIVATE = EXPORT_PRESETS["private"]
MODEL = ["--model", "vit_tiny_patch16_224", "--split", "2", "--num-classes", "3", "--img-size", "16"]
ARGUMENTS = [f"--model-arg={name}={value}" for name, value in TINY.items() if name != "img_size"]


def test_each_preset_that_can_be_typed_has_values() -> None:
    assert set(get_args(ExportPreset)) == set(EXPORT_PRESETS)


@pytest.mark.parametrize(
    ("given", "ratio", "precisions"),
    [
        ({}, PRIVATE.ratio, (PRIVATE.precision, PRIVATE.gradient_precision)),
        ({"precision": None, "gradient_precision": None}, PRIVATE.ratio, ("pca1", "pca0.25")),
        ({"ratio": Ratio(xi=0.1)}, Ratio(xi=0.1), ("pca1", "pca0.25")),
        ({"gradient_precision": "int8"}, PRIVATE.ratio, ("pca1", "int8")),
        ({"precision": "int8", "gradient_precision": None}, PRIVATE.ratio, ("int8", None)),
        ({"precision": "int8", "gradient_precision": "int4"}, PRIVATE.ratio, ("int8", "int4")),
    ],
)
def test_options_that_are_given_come_before_the_preset(
    given: dict[str, Any], ratio: Ratio, precisions: tuple[str, str | None]
) -> None:
    chosen = preset_options("private", {"split": 3, **given})
    assert chosen["ratio"] == ratio
    assert (chosen["precision"], chosen["gradient_precision"]) == precisions
    assert chosen["split"] == 3


@pytest.mark.parametrize(
    ("more", "ratio", "precisions"),
    [
        (["--gradient-precision", "int8"], PRIVATE.ratio, ("pca1", "int8")),
        pytest.param([], PRIVATE.ratio, ("pca1", "pca0.25"), marks=pytest.mark.slow),
        pytest.param(
            ["--ratio", "0.25", "--precision", "int8"], Ratio(xi=0.25), ("int8", "int8"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_bundle_says_the_presets_values_as_any_others(
    more: list[str], ratio: Ratio, precisions: tuple[str, str], tmp_path: Path
) -> None:
    command = ["export", *MODEL, *ARGUMENTS, "--preset", "private", *more, "-o", str(tmp_path / "b")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    manifest = Bundle.load(tmp_path / "b", ()).manifest
    assert manifest.ratio == ratio
    assert (manifest.precision, manifest.gradient_precision or manifest.precision) == precisions


def test_an_unknown_preset_is_refused_and_the_known_ones_are_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", *MODEL, "--preset", "secret", "-o", str(tmp_path / "b")])
    assert result.exit_code == 2
    assert "'secret' is not 'private'" in result.output
    assert not list(tmp_path.iterdir())


def test_the_private_preset_is_the_setting_of_the_measured_front() -> None:
    """docs/results/privacy-front.json names it, and has it on the front of accuracy and SSIM at its share of bytes."""
    front = msgspec.json.decode((ROOT / "docs" / "results" / "privacy-front.json").read_bytes())
    named = front["presets"]["private"]
    assert read_setting(named) == (PRIVATE.ratio, PRIVATE.precision, PRIVATE.gradient_precision)
    (point,) = (one for one in front["points"] if one["setting"] == named)
    default = next(one for one in front["points"] if one["setting"] == "none/pca1:pca0.25")
    assert point["front"], "no other setting that was measured is as accurate and reveals as little"
    assert point["share"] <= default["share"]
    assert point["ssim"] < default["ssim"]
