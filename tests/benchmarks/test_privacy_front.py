"""Accuracy against reconstruction: which settings count, which are on the front, and the committed file and figure."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import privacy_front
import pytest
from privacy_front import FIGURE, FRONT, LIMITS, FrontPoint, judged
from results_records import RESULTS

from adc_edge.files import json_bytes


def point(setting: str, share: float, accuracy: float, ssim: float) -> FrontPoint:
    return FrontPoint(setting, share, accuracy, 1.0, 3, "a.json", ssim, 1, "b.json")


def test_a_setting_is_on_the_front_where_none_within_the_share_is_as_good_in_both() -> None:
    points = [
        point("few bytes", 1.0, 40.0, 0.40),
        point("more bytes, better in both", 2.0, 45.0, 0.35),
        point("most accurate", 10.0, 60.0, 0.60),
        point("worse in both", 10.0, 44.0, 0.50),
    ]
    found = {one.setting: one for one in judged(points)}
    assert found["few bytes"].limits == [1.0]
    assert found["few bytes"].front
    assert found["more bytes, better in both"].limits == [2.0, 10.0, 100.0]
    assert found["most accurate"].limits == [10.0, 100.0]
    assert found["worse in both"].limits == []
    assert not found["worse in both"].front


def test_equal_settings_do_not_beat_each_other() -> None:
    assert all(one.front for one in judged([point("a", 1.0, 50.0, 0.4), point("b", 1.0, 50.0, 0.4)]))


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ("none", "none"),
        ("pca1", "none/pca1"),
        ("none/pca1:pca0.25", "none/pca1"),
        ("adc@1x0.5/pca1:pca0.25", "adc@1x0.5/pca1"),
        ("adc@0.1", "adc@0.1"),
        ("adc@0.25/int4", "adc@0.25/int4"),
        ("topk@0.1", "topk@0.1"),
    ],
)
def test_an_attacker_sees_what_goes_up(setting: str, seen: str) -> None:
    assert privacy_front.way_up(setting) == seen


def test_every_point_was_measured_in_accuracy_and_in_reconstruction() -> None:
    front = privacy_front.measured()
    assert len({one.setting for one in front.points}) == len(front.points) >= 6
    for one in front.points:
        assert one.seeds >= 2
        assert front.ssim_of_mean_image < one.ssim < 1
        assert 10 < one.accuracy < 100
    assert {limit for one in front.points for limit in one.limits} == set(LIMITS)


def test_the_committed_file_and_figure_are_those_of_the_committed_records() -> None:
    front = privacy_front.measured()
    again = "run `python benchmarks/privacy_front.py`"
    assert FRONT.read_bytes() == json_bytes(front), again
    assert f"<dc:description>{privacy_front.digest(front)}</dc:description>" in FIGURE.read_text(), again


def test_a_figure_names_the_values_that_it_shows() -> None:
    front = privacy_front.measured()
    changed = msgspec.structs.replace(front.points[0], accuracy=front.points[0].accuracy + 0.1)
    other = msgspec.structs.replace(front, points=[changed, *front.points[1:]])
    assert privacy_front.drawn(front) == privacy_front.drawn(front)
    assert privacy_front.digest(front).encode() in privacy_front.drawn(front)
    assert privacy_front.digest(front).encode() not in privacy_front.drawn(other)


def test_the_figure_has_a_panel_for_each_share_and_a_name_for_each_point() -> None:
    front = privacy_front.measured()
    panels = privacy_front.figure(front).axes
    assert len(panels) == len(LIMITS) - 1
    for panel, limit in zip(panels, LIMITS, strict=False):
        shown = {text.get_text() for text in panel.texts}
        assert {one.setting for one in front.points if privacy_front.fits(one, limit)} <= shown
        assert "up to" in panel.get_title()


def test_a_point_of_one_seed_has_no_spread_in_the_tables(tmp_path: Path) -> None:
    front = privacy_front.measured()
    one = [msgspec.structs.replace(point, sem=None, seeds=1) for point in front.points]
    (tmp_path / FRONT.name).write_bytes(json_bytes(msgspec.structs.replace(front, points=one)))
    shutil.copy(RESULTS / "cifar10-224px.json", tmp_path)
    assert "±" not in privacy_front.front_table(tmp_path).partition("\n\n")[0]
    default = next(line for line in privacy_front.preset_table(tmp_path).splitlines() if "the default" in line)
    accuracy = next(point.accuracy for point in one if point.setting == "none/pca1:pca0.25")
    assert f"| {accuracy:.1f} (1) |" in default
