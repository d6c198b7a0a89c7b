"""The choice between split and local inference, and its reason."""

from __future__ import annotations

import pytest

from adc_edge.planning.place import SplitCosts, choose_place, pays

COSTS = SplitCosts(trunk=0.020, head=0.010, rtt=0.030, up=0.040, down=0.005)


def test_the_parts_of_a_split_batch_follow_one_another() -> None:
    assert COSTS.seconds == pytest.approx(0.105)
    assert str(COSTS) == "20.0 ms trunk, 75.0 ms link, 10.0 ms head"


@pytest.mark.parametrize(
    ("local_s", "place", "reason"),
    [
        (0.2, "split", "105.0 ms split (20.0 ms trunk, 75.0 ms link, 10.0 ms head), 200.0 ms local"),
        (0.05, "local", "50.0 ms local, 105.0 ms split (20.0 ms trunk, 75.0 ms link, 10.0 ms head)"),
        (0.110, "local", "110.0 ms local"),  # a gain of less than a tenth
        (None, "split", "no whole model is here"),
    ],
)
def test_the_faster_place_is_chosen_with_its_reason(local_s: float | None, place: str, reason: str) -> None:
    found = choose_place(COSTS, local_s)
    assert found.place == place
    assert found.reason.startswith(reason)


def test_without_a_trainer_all_is_local() -> None:
    assert choose_place(None, 0.05) == ("local", "50.0 ms local; no trainer")


def test_a_change_must_gain_a_tenth() -> None:
    assert pays(0.09, 0.1)
    assert not pays(0.095, 0.1)
