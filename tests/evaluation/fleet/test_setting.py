"""The fleets that options describe."""

from __future__ import annotations

from typing import Any

import pytest

from adc_edge.errors import SettingError
from adc_edge.evaluation.fleet.setting import StudyFleet, check_methods, fleets_of
from adc_edge.evaluation.study.records import run_name
from adc_edge.evaluation.study.setting import METHODS, WITHOUT_RATIO, parse_setting

HOW = StudyFleet(1, every=5, precision="fp16", robust="median", guard=False)


def test_every_combination_is_a_fleet_once_and_keeps_only_what_its_mode_uses() -> None:
    found = fleets_of([1, 4], ["iid", "by-class"], ["parallel", "averaged", "sequential", "frozen"], HOW)
    assert len(found) == len(set(found)) == 2 + 2 * 4
    assert found[:2] == [None, StudyFleet(1, mode="frozen")]  # one device alone, whatever the mode
    assert StudyFleet(4, "by-class", "averaged", 5, "fp16", "median", False) in found
    assert StudyFleet(4, "iid", "sequential", 5, "fp16") in found
    assert StudyFleet(4, "iid", "parallel") in found


def test_a_partition_is_one_however_its_number_is_spelt() -> None:
    texts = ["dirichlet:0.3", "dirichlet:.3", "dirichlet:3e-1", "dirichlet:0.30", "dirichlet:1", "dirichlet:1.0", "iid"]
    found = [fleet.partition for fleet in fleets_of([4], texts, ["parallel"], StudyFleet(1)) if fleet]
    assert found == ["dirichlet:0.3", "dirichlet:1", "iid"]


def test_a_fleet_is_named_by_what_is_not_the_default() -> None:
    assert str(StudyFleet(4, "dirichlet:0.3", "averaged")) == "4 devices, dirichlet:0.3, averaged"
    assert str(StudyFleet(1, mode="frozen")) == "1 device, iid, frozen"
    fleet = StudyFleet(4, "dirichlet:0.3", "averaged", 5, "fp16", "median", False)
    assert str(fleet).endswith("averaged, every 5, fp16, median, no guard")
    name = run_name(parse_setting("none/pca1:pca2"), 3, fleet)
    assert name == "none_pca1-pca2.4-dirichlet0.3-averaged-every5-fp16-median-noguard.seed3.json"


def test_a_robust_rule_without_averages_is_refused() -> None:
    for devices, modes in (([4], ["parallel"]), ([1], ["averaged"])):
        modes_: Any = modes
        with pytest.raises(SettingError, match="--robust median"):
            fleets_of(devices, ["iid"], modes_, HOW)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_fleet_uses_the_methods_that_serve_has(method: str) -> None:
    setting = parse_setting(method if method in WITHOUT_RATIO else f"{method}@0.1")
    check_methods([setting], [None])
    if method in ("none", "adc", "adc-batch", "adc-tokens"):
        check_methods([setting], [None, StudyFleet(2)])
        return
    with pytest.raises(SettingError, match="a method that `serve` has"):
        check_methods([parse_setting("none"), setting], [None, StudyFleet(2)])
