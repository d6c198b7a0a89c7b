"""The run directory of a fleet's trainer, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from adc_edge.storage.bundle import Bundle
from tests.export.fleet_run import FleetRun


@pytest.fixture
def fleet(bundle: Bundle, tmp_path: Path) -> FleetRun:
    return FleetRun(bundle, tmp_path)


@pytest.fixture
def complete(fleet: FleetRun) -> FleetRun:
    return fleet.complete()
