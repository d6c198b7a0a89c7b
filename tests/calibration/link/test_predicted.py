"""`link --bundle` tells what the measured link means for a step of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from adc_edge.calibration.link.predicted import check_forecast
from adc_edge.calibration.link.report import LinkReport
from adc_edge.errors import SettingError
from adc_edge.files import json_bytes
from adc_edge.storage.bundle import Bundle
from tests.calibration.link.reports import measured
from tests.planning.inputs import measured_profile


def lines(bundle: Bundle, report: LinkReport, profile: Path | None = None) -> list[str]:
    forecast = check_forecast(bundle.path, profile)
    assert forecast is not None
    return list(forecast.lines(report))


def seconds(line: str) -> float:
    return float(line.rpartition(": ")[2].partition(" s")[0])


def test_three_settings_are_predicted_and_unknown_computation_is_said(bundle: Bundle) -> None:
    found = lines(bundle, measured(up=1.0, down=2.0, rtt_ms=40.0))
    assert [line[:8].strip() for line in found] == ["step", "step", "step", "note"]
    whole, own, several = map(seconds, found[:3])
    assert whole > own >= several


def test_a_slower_link_makes_each_step_longer(bundle: Bundle) -> None:
    fast, slow = (lines(bundle, measured(up=rate, down=rate, rtt_ms=40.0)) for rate in (20.0, 1.0))
    assert all(seconds(a) < seconds(b) for a, b in zip(fast[:3], slow[:3], strict=True))


def test_a_profile_adds_what_computing_takes(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(json_bytes(measured_profile(bundle.manifest, bundle.digest, seconds=0.1)))
    report = measured(up=20.0, down=20.0, rtt_ms=5.0)
    known, unknown = lines(bundle, report, file), lines(bundle, report)
    assert len(known) == 3
    assert seconds(known[1]) > seconds(unknown[1]) + 1.0


def test_a_profile_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--profile without --bundle"):
        check_forecast(None, tmp_path / "profile.json")


def test_nothing_is_predicted_for_a_link_that_was_not_measured(bundle: Bundle) -> None:
    assert lines(bundle, measured(up=None, down=None, rtt_ms=40.0)) == []
