"""The wait of a rank before it joins a round."""

from __future__ import annotations

from adc_edge.cloud_trainer.ranks.pauses import Pauses


def test_pauses_grow_while_nobody_works_and_end_with_the_first_step() -> None:
    pauses, seen = Pauses(0.02), []
    for busy in [True, *[False] * 9, True]:
        pauses.after(busy)
        seen.append(pauses.seconds(expects=False))
    assert seen == [0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.2, 0.2, 0.2, 0.0]


def test_a_rank_with_devices_waits_for_them_and_one_that_has_answered_does_not_pause() -> None:
    pauses = Pauses(0.03)
    assert pauses.seconds(expects=True) == 0.03
    assert pauses.seconds(expects=False) == 0.0
    for _ in range(9):
        pauses.after(False)
    assert pauses.seconds(expects=True) == 0.2
    assert pauses.seconds(expects=True, after_answer_s=0.02) == 0.03
    assert pauses.seconds(expects=False, after_answer_s=0.02) == 0.02
