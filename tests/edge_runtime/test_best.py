"""The best evaluation of a run: both halves are kept (`--keep-best`), and a run without gain ends (`--stop-after`)."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file

from adc_edge.cli import main
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.screen.result import report_table
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.tally import Evaluation, best_of, summed
from adc_edge.errors import SettingError
from adc_edge.export.merge import merge_runs
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, MANIFEST, Bundle
from adc_edge.storage.halves import BEST_TRUNK, best_trunk
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.messages import Evaluated
from tests.serving import logged, serving

NO_GAIN = {"optimizer": OptimizerSettings(lr=0.0)}  # every evaluation equals the first


class OlderCheckpoints(TrainerCheckpoints):
    """Those of a trainer that knows no KeepHead: its Welcome says nothing of it."""

    keep_heads = False


@contextmanager
def trainer(
    bundle: Bundle, run: Path | None, kind: type[TrainerCheckpoints] = TrainerCheckpoints, lr: float = 3e-3
) -> Iterator[str]:
    """A trainer in a thread, with a run directory or without one; yields its address."""
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / HEAD))
    training = HeadTraining(head, OptimizerSettings(lr=lr))
    with closing(RunDir(run, {}, {})) as run_dir:
        run_dir.keep(MANIFEST, (bundle.path / MANIFEST).read_bytes())
        sessions = SessionRegistry(run_dir.journal)
        checkpoints = kind(training, sessions, run_dir, 50)
        checkpoints.resume()
        with serving(Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints)) as server:
            yield server.endpoint


def serve(bundle: Bundle, endpoint: str, run: Path | None, **more: Any) -> dict[str, Any]:
    given = {"threads": 1, "evaluate_images": 32, "evaluate_every": 1, "steps": 10} | more
    return Serve(ServeSettings(bundle.path, endpoint, run=run, **given), Console(quiet=True), stop=lambda: False).run()


def evaluation(step: int, accuracy: float, loss: float = 1.0, mixed: bool = False) -> Evaluation:
    return Evaluation(step, 10, accuracy, loss, mixed)


def test_the_best_evaluation_is_the_most_accurate_and_among_equals_the_one_of_lower_loss() -> None:
    done = [evaluation(1, 0.5), evaluation(2, 0.7, 1.0), evaluation(3, 0.7, 0.9), evaluation(4, 0.7, 0.9)]
    assert [best_of(done[:n]) for n in range(5)] == [
        (None, 0),
        (done[0], 0),
        (done[1], 0),
        (done[2], 0),
        (done[2], 1),
    ]


def test_an_evaluation_without_images_or_by_a_head_of_another_step_is_never_the_best() -> None:
    assert not Evaluation(1, 0, math.nan, math.nan).gains_on(None)
    assert not evaluation(2, 0.9, mixed=True).gains_on(evaluation(1, 0.1))
    assert not evaluation(2, 0.1, math.nan).gains_on(evaluation(1, 0.1))
    assert best_of([evaluation(1, 0.1), evaluation(2, 0.9, mixed=True)]) == (evaluation(1, 0.1), 0)
    answers = [Evaluated(1, 4, 0, 6, 3, 6.0, 0.1), Evaluated(1, 4, 1, 4, 2, 4.0, 0.1)]
    assert summed(4, answers, [6, 4]) == evaluation(4, 0.5)
    assert summed(4, answers, [6, 3]).mixed
    assert summed(4, [*answers[:1], Evaluated(1, 4, 1, 4, 2, 4.0, 0.1, head_step=9)], [6, 4]).mixed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--keep-best --run RUN", ["--keep-best with one evaluation", "add --eval-every N"]),
        ("--stop-after 3", ["--stop-after 3 with one evaluation", "add --eval-every N"]),
        ("--keep-best --eval-every 5", ["--keep-best without --run", "add --run DIR here and on the trainer"]),
    ],
)
def test_options_that_lack_their_place_or_their_evaluations_are_refused(
    options: str, words: list[str], bundle_dir: Path, tmp_path: Path
) -> None:
    options = options.replace("RUN", str(tmp_path / "run"))
    result = CliRunner().invoke(main, f"serve --bundle {bundle_dir} --trainer tcp://127.0.0.1:9 {options}".split())
    assert result.exit_code == 2
    assert all(word in result.output for word in words), result.output


def test_a_trainer_that_cannot_keep_its_half_is_told_before_the_first_step(bundle: Bundle, tmp_path: Path) -> None:
    with (
        trainer(bundle, None) as endpoint,
        pytest.raises(SettingError, match="--keep-best with a trainer without --run") as refusal,
    ):
        serve(bundle, endpoint, tmp_path / "device", keep_best=True)
    assert refusal.value.remedy == "start it with --run DIR, or leave --keep-best out"
    with trainer(bundle, tmp_path / "trainer", OlderCheckpoints) as endpoint:
        with pytest.raises(SettingError, match="which keeps no best head") as refusal:
            serve(bundle, endpoint, tmp_path / "device", keep_best=True)
        assert refusal.value.remedy == "update it, or leave --keep-best out"
        assert serve(bundle, endpoint, tmp_path / "device", steps=2)["complete"]  # without the option it serves


def test_two_devices_on_one_head_each_keep_their_own_best_pair(bundle: Bundle, tmp_path: Path) -> None:
    reports: dict[str, dict[str, Any]] = {}

    def work(name: str, seed: int) -> None:
        reports[name] = serve(bundle, endpoint, tmp_path / name, seed=seed, name=name, keep_best=True, steps=8)

    with trainer(bundle, tmp_path / "trainer") as endpoint:
        threads = [threading.Thread(target=work, args=(f"device-{seed}", seed)) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name, report in reports.items():
        merged = merge_runs(tmp_path / name, tmp_path / "trainer", tmp_path / "model", best=True)
        assert (merged.step, merged.accuracy) == (report["best"]["step"], report["best"]["accuracy"])


def test_a_frozen_trunk_is_kept_by_name_alone_and_its_best_head_by_the_trainer(bundle: Bundle, tmp_path: Path) -> None:
    with trainer(bundle, tmp_path / "trainer") as endpoint:
        report = serve(bundle, endpoint, tmp_path / "device", trunk="frozen", keep_best=True, steps=6)
    assert not load_file(tmp_path / "device" / BEST_TRUNK)
    assert (
        merge_runs(tmp_path / "device", tmp_path / "trainer", tmp_path / "model", best=True).step
        == (report["best"]["step"])
    )


def test_with_stale_weights_in_the_engine_those_that_were_judged_are_kept(bundle: Bundle, tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": OptimizerSettings(lr=1e-3), "refresh_every": 8, "steps": 6}
    with trainer(bundle, tmp_path / "trainer", lr=0.0) as endpoint:
        report = serve(bundle, endpoint, tmp_path / "device", keep_best=True, **options)
    state = best_trunk(tmp_path / "device")
    assert state is not None
    assert report["best"]["step"] == 1  # neither half has changed since the start, as far as the engine knows
    start = load_file(bundle.path / "trunk.safetensors")
    assert all((start[name].numpy() == value).all() for name, value in state.weights().items())


def test_a_run_without_gain_ends_complete_and_goes_on_only_with_a_larger_number(bundle: Bundle, tmp_path: Path) -> None:
    device = tmp_path / "device"
    with trainer(bundle, tmp_path / "trainer", lr=0.0) as endpoint:
        report = serve(bundle, endpoint, device, stop_after=3, **NO_GAIN)
        assert report["complete"]
        assert report["stopped"]["step"] == report["steps"] == 4
        assert report["stopped"]["why"].startswith("3 evaluations in a row without gain (--stop-after 3); the best was")
        with logged("adc_edge.edge_runtime") as lines:
            assert serve(bundle, endpoint, device, stop_after=3, **NO_GAIN)["stopped"]["step"] == 4
        assert any(line.startswith("nothing is left to do: 3 evaluations in a row") for line in lines)
        assert serve(bundle, endpoint, device, stop_after=5, **NO_GAIN)["stopped"]["step"] == 6
        report = serve(bundle, endpoint, device, stop_after=9, **NO_GAIN)
        assert (report["stopped"], report["steps"], report["complete"]) == (None, 10, True)
    ended = serve(bundle, endpoint, device, stop_after=9, wait_s=0.1, **NO_GAIN)  # its trainer has gone
    assert ended["complete"]


def test_the_table_shows_the_best_accuracy_with_its_step(bundle: Bundle, tmp_path: Path) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    with trainer(bundle, tmp_path / "trainer", lr=0.0) as endpoint:
        report = serve(bundle, endpoint, tmp_path / "device", keep_best=True, stop_after=1, **NO_GAIN)
    console.print(report_table(report))
    shown = console.export_text()
    assert "best, kept" in shown
    assert f"{report['best']['accuracy']:.1%}, step 1" in shown
    assert "at step 2" in shown
