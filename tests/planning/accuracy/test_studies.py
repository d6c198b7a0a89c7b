"""Studies on disk: the user's own, and those that come with adc-edge."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import measured_frontier
import msgspec
import pytest

from adc_edge.errors import SettingError
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.planning.accuracy.frontier import MeasuredPoint
from adc_edge.planning.accuracy.studies import SHIPPED, read_studies, shipped_studies, study_files
from adc_edge.storage.bundle import Bundle
from tests.planning.inputs import written_attack, written_study

ACCURACIES = {"none": (0.80, 0.84), "none/pca1:pca0.25": (0.79, 0.81), "topk@0.1": (0.5, 0.6)}
FROZEN = StudyFleet(4, mode="frozen")


def test_accuracies_are_differences_to_uncompressed_training_with_the_standard_error_of_both(
    bundle: Bundle, tmp_path: Path
) -> None:
    (study,), notes = read_studies([written_study(tmp_path, bundle.manifest, ACCURACIES)], bundle.manifest)
    assert (study.quantity, study.tokens, study.epochs, notes) == ("accuracy", bundle.manifest.tokens, 2.0, [])
    assert study.reference == pytest.approx(82.0)
    points = {point.setting: point for point in study.points}
    assert points["none"] == MeasuredPoint("none", 0.0, 0.0, 2)
    found = points["none/pca1:pca0.25"]
    errors = [statistics.stdev(ACCURACIES[name]) / 2**0.5 for name in ("none", "none/pca1:pca0.25")]
    assert found.value == pytest.approx(-2.0)
    assert found.spread == pytest.approx(100 * math.hypot(*errors))


def test_a_study_of_one_seed_has_no_spread(bundle: Bundle, tmp_path: Path) -> None:
    path = written_study(tmp_path, bundle.manifest, {"none": (0.8,), "int4": (0.79,)})
    (study,), _ = read_studies([path], bundle.manifest)
    assert [point.spread for point in study.points if point.setting == "int4"] == [None]


def test_a_directory_may_hold_both_kinds_and_a_file_is_taken_by_itself(bundle: Bundle, tmp_path: Path) -> None:
    written_study(tmp_path, bundle.manifest, ACCURACIES)
    written_attack(tmp_path, bundle.manifest, {"none": 0.63, "adc@0.1": 0.26})
    both, _ = read_studies([tmp_path], bundle.manifest)
    assert [study.quantity for study in both] == ["accuracy", "ssim"]
    assert [point.value for point in both[1].points] == [0.63, 0.26]
    assert both[1].reference == 0.2
    alone, _ = read_studies([tmp_path / "privacy.json"], bundle.manifest)
    assert [study.quantity for study in alone] == ["ssim"]
    assert study_files(tmp_path) == [tmp_path / "results.json", tmp_path / "privacy.json"]


def test_only_the_runs_with_one_device_count_in_a_study_of_fleets(bundle: Bundle, tmp_path: Path) -> None:
    alone = written_study(tmp_path / "alone", bundle.manifest, ACCURACIES)
    both = written_study(tmp_path / "both", bundle.manifest, ACCURACIES, [FROZEN, None])
    found, _ = read_studies([alone, both], bundle.manifest)
    assert found[0].points == found[1].points


def test_a_study_may_write_out_the_image_size_that_the_bundle_has_by_default(bundle: Bundle, tmp_path: Path) -> None:
    plain = {key: value for key, value in bundle.manifest.model_args.items() if key != "img_size"}
    by_default = msgspec.structs.replace(bundle.manifest, model_args=plain)
    path = written_study(tmp_path, bundle.manifest, ACCURACIES)
    assert len(read_studies([path], by_default)[0]) == 1
    with pytest.raises(SettingError, match="is a study of"):
        read_studies([written_study(tmp_path / "plain", by_default, ACCURACIES)], bundle.manifest)


def test_what_a_study_says_about_itself_is_passed_on(bundle: Bundle, tmp_path: Path) -> None:
    path = written_study(tmp_path, bundle.manifest, ACCURACIES)
    content = json.loads((path / "results.json").read_text()) | {"note": "Nothing was learned yet"}
    (path / "results.json").write_text(json.dumps(content))
    _, notes = read_studies([path], bundle.manifest)
    assert notes == [f"{path / 'results.json'}: Nothing was learned yet"]


def changed(path: Path, **more: Any) -> Path:
    content = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(content | more))
    return path


def test_a_study_that_does_not_serve_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    other = msgspec.structs.replace(manifest, model="deit_tiny_patch16_224")
    cases = {
        written_study(tmp_path / "model", other, ACCURACIES): "is a study of deit_tiny_patch16_224",
        written_study(tmp_path / "alone", manifest, {"int4": (0.5,)}): "no run of uncompressed training",
        changed(written_study(tmp_path / "torn", manifest, ACCURACIES), steps=3): "Expected `array`",
        written_study(tmp_path / "fleet", manifest, ACCURACIES, [FROZEN]): r"a fleet alone \(4 devices, iid, frozen\)",
        tmp_path / "absent": "No such file",
        tmp_path: "neither results.json nor privacy.json",
    }
    for path, words in cases.items():
        with pytest.raises(SettingError, match=words):
            read_studies([path], manifest)


def test_the_shipped_studies_are_the_tables_of_the_documentation() -> None:
    assert SHIPPED.read_bytes() == measured_frontier.content(), "run benchmarks/measured_frontier.py"


def test_the_shipped_studies_tell_their_task_and_have_a_reference_each() -> None:
    studies = shipped_studies()
    assert {(study.quantity, study.tokens) for study in studies} == {("accuracy", 197), ("accuracy", 17), ("ssim", 17)}
    for study in studies:
        assert (Path(__file__).parents[3] / study.source).exists()
        assert any(point.setting == "none" for point in study.points)
    first = {point.setting: point for point in studies[0].points}
    assert first["none/pca1:pca0.25"].value == pytest.approx(82.4 - 82.9)
    assert first["none/pca1:pca0.25"].spread == pytest.approx((1.5**2 / 3 + 1.6**2 / 4) ** 0.5, abs=0.01)
