"""The line of an evaluation on the trainer: its parts added up, told once, and never of a part alone."""

from __future__ import annotations

from typing import Any

from adc_edge.cloud_trainer.record.evaluations import EvaluatedPart, SessionEvaluations


def evaluate(found: SessionEvaluations, *parts: tuple[int, int], step: int = 50, session: int = 1) -> None:
    """Evaluate with parts of 10 images each: the number of a part, and how many of it were judged correctly."""
    for part, correct in parts:
        found.add(session, step, part, EvaluatedPart(10, correct, 5.0), step)


def line(step: int = 50, images: int = 20, accuracy: float = 0.75) -> dict[str, Any]:
    told: dict[str, Any] = {"session": "0000000000000001", "step": step, "head_step": step}
    return told | {"images": images, "accuracy": accuracy, "loss": 0.5}


def test_the_parts_are_added_up_and_told_once() -> None:
    found = SessionEvaluations()
    assert found.take(1) is None
    evaluate(found, (0, 9), (1, 6))
    assert found.take(2) is None
    assert found.take(1) == line()
    assert found.take(1) is None


def test_parts_that_come_again_after_an_outage_count_once() -> None:
    found = SessionEvaluations()
    evaluate(found, (0, 9), (1, 6), (1, 6))
    assert found.take(1) == line()
    evaluate(found, (0, 9), (1, 6), (0, 9), (1, 5), step=100)
    assert found.take(1) == line(100, accuracy=0.7)


def test_an_evaluation_whose_first_parts_an_earlier_process_answered_is_not_told() -> None:
    found = SessionEvaluations()
    evaluate(found, (1, 9), (2, 9))
    assert found.take(1) is None
    evaluate(found, (0, 9), (2, 9))
    assert found.take(1) is None


def test_what_a_device_evaluates_once_more_is_told_once_unless_it_differs() -> None:
    found = SessionEvaluations()
    for correct, told in ((6, True), (6, False), (5, True)):
        evaluate(found, (0, 9), (1, correct))
        assert (found.take(1) is not None) is told
    again = SessionEvaluations()
    assert again.learn(line())  # a line that the run has kept
    evaluate(again, (0, 9), (1, 6))
    assert again.take(1) is None


def test_a_new_process_of_the_device_does_not_go_on_with_the_evaluation_of_the_one_before() -> None:
    found = SessionEvaluations()
    found.resume(1, incarnation=5)
    evaluate(found, (0, 9))
    found.resume(1, incarnation=5)  # the same one, after an outage
    evaluate(found, (1, 6))
    assert found.take(1) == line()
    evaluate(found, (0, 9), step=60)
    found.resume(1, incarnation=6)
    assert found.take(1) is None


def test_what_is_remembered_is_bounded() -> None:
    found = SessionEvaluations()
    for step in range(5000):
        evaluate(found, (0, 9), step=step)
        assert found.take(1) is not None
    assert len(found._known) < 2000
