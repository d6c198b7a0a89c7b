"""The benchmark of a dark link: what it counts, and that `infer` keeps its promise over a real one."""

from __future__ import annotations

import math
from pathlib import Path

import infer_fallback
import pytest
from infer_fallback import PROMISED_S, Cut, CutTimes, Line
from link_emulator import available


def line(came_s: float, where: str, file: str = "a.png") -> Line:
    return Line(came_s, {"file": file, "where": where, "modified_ns": int(1e9 * (came_s - 0.5))})


def test_a_cut_costs_the_time_to_the_next_answer_of_the_other_place() -> None:
    lines = [line(1.0, "split"), line(2.5, "local"), line(4.0, "local"), line(5.25, "split")]
    assert infer_fallback.times_of([Cut(2.0, 5.0)], lines) == [CutTimes(3.0, 0.5, 0.25)]
    assert infer_fallback.times_of([Cut(5.5, 6.0)], lines) == [CutTimes(0.5, math.inf, math.inf)]
    assert lines[0].written_s == 0.5


def test_lost_images_and_second_answers_are_counted() -> None:
    lines = [line(1.0, "split"), line(1.5, "split"), line(2.0, "local", "b.png")]
    results = infer_fallback.report(lines, [CutTimes(3.0, 0.5, 0.25), CutTimes(3.0, 1.5, 2.25)], images=3)
    assert [result.value for result in results] == [2, 3, 1.0, 1.5, 1.25, 2.25, 0.5]


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_a_link_that_goes_dark_costs_two_seconds_each_way_and_no_image(tmp_path: Path) -> None:
    words = ["--images", "150", "--cuts", "3", "--dark-s", "1", "6", "--rtt-ms", "80"]
    lines, cuts = infer_fallback.measure(tmp_path, infer_fallback.options().parse_args(words))
    assert len(lines) == len({one.answer["file"] for one in lines}) == 150
    assert len(cuts) == 3
    assert max(cut.local_s for cut in cuts) < PROMISED_S
    assert max(cut.back_s for cut in cuts) < PROMISED_S
