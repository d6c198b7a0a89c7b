"""Evaluations in several precisions: each is judged by the head of its moment, in the messages of `serve`."""

from __future__ import annotations

from pathlib import Path

import evaluation_precision
import msgspec
import numpy as np
import pytest
import results_page
from evaluation_precision import Found, Judge, command_of, row_of, sent, with_rows
from results_records import Judged, JudgedTable, Records, Source, read_records
from results_taking import as_text

from adc_edge.data.sources import load_dataset
from adc_edge.errors import SettingError
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.training import train
from tests.conftest import TINY

STUDY = Study(
    "digits", "vit_tiny_patch16_224", model_args=TINY, crop_pct=1.0, split=2, batch_size=32, epochs=1.0,
    evaluate_every=0.5, train_images=128, test_images=120,
)  # fmt: skip
SOURCE = Source("0.13.0", "a machine", "python benchmarks/evaluation_precision.py")


def test_each_evaluation_of_a_run_is_judged_in_each_precision() -> None:
    judge = Judge(STUDY, ("fp32", "pca4", "pca0.0625"))
    run = train(STUDY, parse_setting("none/pca1:pca0.25"), 0, dataset=load_dataset("digits"), judged=judge)
    assert len(judge.found) == len(run.curve) == 2
    for one, point in zip(judge.found, run.curve, strict=True):
        assert one.unrounded == one.accuracies["fp32"] == pytest.approx(point.accuracy)
        assert abs(one.accuracies["pca4"] - one.unrounded) <= 0.05
        assert one.bytes_an_image["fp32"] == 4 * 17 * 32 + 4
    again = train(STUDY, parse_setting("none/pca1:pca0.25"), 0, dataset=load_dataset("digits"))
    assert [(p.accuracy, p.loss) for p in again.curve] == [(p.accuracy, p.loss) for p in run.curve]


def test_activations_are_sent_in_as_many_messages_as_serve_sends() -> None:
    x = np.random.default_rng(0).normal(size=(1100, 17, 32)).astype(np.float32)
    received, size = sent(x, 32, "fp32")
    assert np.array_equal(received, x)
    assert size == x.nbytes + 4 * 1100
    coarse, few = sent(x, 32, "pca1")
    assert few == pytest.approx(x.nbytes / 32 + 4 * 1100, abs=2)
    assert 0.05 < np.square(coarse - x).mean() < 1


def test_the_standard_error_is_over_runs_and_the_largest_difference_over_evaluations() -> None:
    def run(*points: float) -> list[Found]:
        return [Found(0.5, {"pca1": 0.5 + point / 100}, {"pca1": 1234.4}) for point in points]

    about = {"source": "s", "data": "d", "setting": "none"}
    row = row_of([run(1.0, 3.0), run(-1.0, -4.0)], ("pca1",), about)
    assert row.judged[0] == Judged(-0.25, 2.25, 4.0, 1234)
    assert (row.seeds, row.evaluations, row.accuracy) == (2, 2, 50.0)
    assert row_of([run(1.0)], ("pca1",), about).judged[0].sem is None


def test_rows_of_other_data_and_settings_stay_in_the_file_and_make_a_table(tmp_path: Path) -> None:
    def rows(setting: str, points: float) -> Records:
        found = [Found(0.5, {"pca1": 0.5 + points / 100}, {"pca1": 1200.0})]
        row = row_of([found], ("pca1",), {"source": setting, "data": "digits, 24 px", "setting": setting})
        records = with_rows([row], ("pca1",), SOURCE, tmp_path)
        (tmp_path / "evaluation-precision.json").write_bytes(as_text(records))
        return records

    rows("none/pca1", 0.25)
    rows("none/pca2", 0.5)
    rows("none/pca1", -0.5)
    table = read_records("evaluation-precision", tmp_path).tables["judged"]
    assert isinstance(table, JudgedTable)
    assert [(row.setting, row.judged[0].points) for row in table.rows] == [("none/pca2", 0.5), ("none/pca1", -0.5)]
    text = results_page.rendered("evaluation-precision/judged", tmp_path)
    assert "| digits, 24 px | none/pca1 † | 1 | 1 | 50.0 | -0.5 (0.5); 1.2 kB |" in text
    with pytest.raises(SettingError, match=r"--precisions pca2\n"):
        with_rows(list(table.rows), ("pca2",), SOURCE, tmp_path)


def test_the_recorded_command_has_no_folders_of_this_machine() -> None:
    words = ["--data", "npz:/data/x.npz", "--weights", "../w.safetensors", "--setting", "none/pca1:pca0.25", "int8"]
    assert command_of(words) == (
        "python benchmarks/evaluation_precision.py --data npz:x.npz --weights w.safetensors "
        "--setting none/pca1:pca0.25 int8"
    )
    assert command_of(["--data", "folder:/food/"]).endswith("--data folder:food/")


def test_the_help_names_the_file_that_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluation_precision._arguments().parse_args(["--help"])
    assert "docs/results/evaluation-precision.json" in capsys.readouterr().out
    assert msgspec.to_builtins(SOURCE)["version"] == "0.13.0"
