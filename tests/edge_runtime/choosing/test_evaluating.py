"""The precision of a run's evaluations, in runs with a real trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.choosing.evaluating import tell_of_another
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.tally import Evaluation


def evaluated(bundle: Path, server: Server, run: Path, steps: int, **more: Any) -> list[str]:
    """The precisions of all evaluations of a run that goes on to ``steps``."""
    usual: dict[str, Any] = {
        "batch_size": 32,
        "precision": "pca1",
        "evaluate_every": 2,
        "evaluate_images": 200,
        "threads": 1,
    }
    chosen = ServeSettings(bundle, server.endpoint, steps=steps, run=run, **(usual | more))
    report = Serve(chosen, Console(quiet=True), stop=lambda: False).run()
    return [one["precision"] for one in report["evaluations"]]


@pytest.mark.parametrize(("trains_in", "precision"), [("pca1", "pca1"), ("dct1", "dct1"), ("dct0.5", "dct1")])
def test_a_run_is_evaluated_in_the_components_that_it_trains_in_and_says_so(
    bundle_dir: Path, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, trains_in: str, precision: str
) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    assert evaluated(bundle_dir, server, tmp_path / "run", 3, precision=trains_in) == [precision] * 2
    assert f" %) in {precision}" in caplog.text


def test_a_run_whose_precision_changes_by_epoch_is_evaluated_in_the_last_one(
    bundle_dir: Path, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the first evaluation on, before any step has had it, and as the lines before the run say."""
    caplog.set_level(logging.INFO, "adc_edge")
    listed = {"precision": "pca4,pca2", "batch_size": 256, "evaluate_every": 3}
    assert evaluated(bundle_dir, server, tmp_path / "run", 7, **listed) == ["pca2"] * 3
    assert " %) in pca2" in caplog.text


def test_a_run_that_an_earlier_version_began_keeps_the_precision_of_its_evaluations(
    bundle_dir: Path, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier version has chosen pca4 for any training; a precision that is named changes that, with a warning."""
    run = tmp_path / "run"
    assert evaluated(bundle_dir, server, run, 2, evaluate_precision="pca4") == ["pca4"]
    assert evaluated(bundle_dir, server, run, 4) == ["pca4", "pca4"]
    assert "so far, now in" not in caplog.text
    assert evaluated(bundle_dir, server, run, 6, evaluate_precision="pca2")[-1] == "pca2"
    assert "evaluations were sent in pca4 so far, now in pca2 (--eval-precision)" in caplog.text


def test_evaluations_of_0_7_do_not_tell_their_precision(caplog: pytest.LogCaptureFixture) -> None:
    tell_of_another([], "pca1")
    tell_of_another([Evaluation(1, 8, 0.5, 1.0, precision="pca1")], "pca1")
    assert not caplog.text
    tell_of_another([Evaluation(1, 8, 0.5, 1.0)], "pca1")
    assert "sent in another precision, perhaps so far, now in pca1" in caplog.text
