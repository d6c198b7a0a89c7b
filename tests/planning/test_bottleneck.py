"""The report names the place that a step waits for, and an option that would relieve it."""

from __future__ import annotations

import click
import pytest

from adc_edge.edge_runtime.command import serve
from adc_edge.edge_runtime.tally import StepRecord
from adc_edge.export.command import export
from adc_edge.planning.bottleneck import _OVERLAP, _RELIEF, PHASES, busiest

NOTHING = dict.fromkeys((phase for phases in PHASES.values() for phase in phases), 0.0)


@pytest.mark.parametrize(
    ("seconds", "micro_batches", "place", "share", "says"),
    [
        ({"backward": 0.9, "link": 0.05, "cloud": 0.05}, 1, "device", 0.9, "--freeze-first"),
        ({"recompute": 0.5, "backward": 0.4, "cloud": 0.1}, 1, "device", 0.9, "--engine torch"),
        ({"data": 0.8, "cloud": 0.2}, 1, "device", 0.8, "--workers"),
        ({"link": 0.8, "forward": 0.1, "cloud": 0.1}, 1, "link", 0.8, "--precision"),
        ({"cloud": 0.9, "forward": 0.1}, 1, "trainer", 0.9, "GPU"),
        ({"cloud": 0.1, "cloud_codec": 0.8, "forward": 0.1}, 1, "trainer", 0.9, "--gradient-precision"),
        ({"backward": 0.4, "link": 0.3, "cloud": 0.3}, 1, "device", 0.4, "--micro-batches 8"),
        ({"backward": 0.6, "link": 0.5, "cloud": 0.5}, 8, "device", 0.6, "--freeze-first"),
    ],
)
def test_the_busiest_place_is_named_with_what_would_relieve_it(
    seconds: dict[str, float], micro_batches: int, place: str, share: float, says: str
) -> None:
    found = busiest(NOTHING | seconds, 1.0, micro_batches)
    assert found is not None
    assert found.place == place
    assert found.share == pytest.approx(share)
    assert says in found.relief


def test_a_run_without_a_step_has_no_busiest_place() -> None:
    assert busiest(NOTHING, 0.0) is None


def test_every_phase_is_measured_and_every_option_that_is_advised_exists() -> None:
    assert {f"seconds_{phase}" for phase in NOTHING} <= set(StepRecord.__struct_fields__)
    assert set(_RELIEF) == set(NOTHING)
    known = {option for command in (serve, export) for param in command.params for option in param.opts}
    words = " ".join([*_RELIEF.values(), _OVERLAP]).replace(",", " ").replace(";", " ").split()
    assert {word for word in words if word.startswith("--")} <= known
    assert isinstance(serve, click.Command)
