"""A device's trunk in a fleet: it becomes the trainer's, bit for bit, whatever happens in between."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from adc_edge.edge_runtime.screen.result import report_table
from adc_edge.errors import CheckpointError
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.checkpoint import load_checkpoint
from tests.edge_runtime.fleet.conftest import StartsRealTrainer
from tests.edge_runtime.fleet.device import averages, done, lines_of, same, serve, trunk
from tests.edge_runtime.fleet.recording_trainer import RecordingTrainer
from tests.serving import logged


class Undisturbed(NamedTuple):
    """A run of ten steps, and what its trainer saw."""

    report: dict[str, Any]
    run: Path
    server: RecordingTrainer


@pytest.fixture(scope="module")
def undisturbed(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Undisturbed]:
    run = tmp_path_factory.mktemp("undisturbed")
    with real_trainer() as server:
        yield Undisturbed(serve(bundle, server.endpoint, run), run, server)


def test_every_k_steps_and_at_the_end_the_trunk_becomes_the_fleets_bit_for_bit(undisturbed: Undisturbed) -> None:
    report, run, server = undisturbed
    assert [(d.step, d.images, d.base, d.last) for d, _ in server.deltas] == [
        (0, 0, 0, False),
        (4, 64, 0, False),
        (8, 64, 1, False),
        (10, 32, 2, True),
    ]
    assert same(trunk(run), server.rounds.trunk)
    lines = averages(run)
    assert [(line["step"], line["round"]) for line in lines] == [(0, 0), (4, 1), (8, 2), (10, 3)]
    assert report["averages"] == 4
    assert report["bytes_trunk_up"] == sum(line["bytes_up"] for line in lines) > 3 * len(server.deltas[1][1])
    assert report["bytes_total_up"] == sum(
        report[f"bytes_{part}up"] for part in ("", "evaluation_", "trunk_", "probe_")
    )
    assert report["seconds_trunk"] > 0
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(report_table(report))
    shown = console.export_text()
    assert "averages taken" in shown
    assert "4 times" in shown


def test_steps_done_again_begin_with_the_same_trunk_though_the_fleet_has_gone_on(
    bundle: Bundle, real_trainer: StartsRealTrainer, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with real_trainer() as server:
        nine_are_done = done(tmp_path, 9)
        serve(bundle, server.endpoint, tmp_path, stop=nine_are_done)
        stood, deltas = trunk(tmp_path), len(server.deltas)
        newest = max(tmp_path.glob("checkpoint-*"))
        newest.write_bytes(newest.read_bytes()[:-1])
        server.go_on()
        serve(bundle, server.endpoint, tmp_path, stop=nine_are_done)
        assert len(server.deltas) == deltas
        assert same(trunk(tmp_path), stood)
        report = serve(bundle, server.endpoint, tmp_path)
        assert same(trunk(tmp_path), server.rounds.trunk)
    assert not same(trunk(tmp_path), trunk(undisturbed.run))  # the fleet has gone on
    assert [line["step"] for line in averages(tmp_path)] == [0, 4, 8, 10]
    assert report["averages"] == 4
    assert report["steps_repeated"] == 3


@pytest.mark.parametrize("damaged", [0, 4, 8])
def test_steps_are_not_done_again_with_another_trunk_than_before(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path: Path, damaged: int
) -> None:
    with real_trainer() as server:
        begun: dict[str, Any] = {"checkpoint_every": 0}
        serve(bundle, server.endpoint, tmp_path, stop=done(tmp_path, 10), **begun)
        max(tmp_path.glob("checkpoint-*")).unlink()  # back to the beginning
        kept = tmp_path / "averages" / f"{damaged:08d}-0"
        whole = kept.read_bytes()
        kept.write_bytes(whole[:-1])
        rounds = server.rounds.newest
        for _ in range(2):  # the damaged file itself is gone after the first
            with pytest.raises(CheckpointError, match=f"step {damaged} is to be done again, and averages/ lacks"):
                serve(bundle, server.endpoint, tmp_path, **begun)
        assert server.rounds.newest == rounds
        kept.write_bytes(whole)
        serve(bundle, server.endpoint, tmp_path, **begun)
        assert same(trunk(tmp_path), server.rounds.trunk)


def test_a_run_that_is_extended_begins_with_the_fleets_newest_trunk(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path: Path
) -> None:
    with real_trainer() as server:
        begun: dict[str, Any] = {"checkpoint_every": 0}
        serve(bundle, server.endpoint, tmp_path, steps=6, **begun)
        server.go_on()
        serve(bundle, server.endpoint, tmp_path, steps=6, **begun)  # nothing is left to do
        assert len(server.deltas) == 3
        serve(bundle, server.endpoint, tmp_path, stop=done(tmp_path, 9), **begun)
        expected = [(0, 0, False), (4, 64, False), (6, 32, True), (6, 0, False), (8, 32, False)]
        assert [(d.step, d.images, d.last) for d, _ in server.deltas] == expected
        assert server.deltas[3][0].base == 2
        rounds = server.rounds.newest
        max(tmp_path.glob("checkpoint-*")).unlink()  # back to its first end: what follows is taken from the record
        serve(bundle, server.endpoint, tmp_path, **begun)
        assert [(d.step, d.images, d.last) for d, _ in server.deltas] == [*expected, (10, 32, True)]
        assert server.rounds.newest == rounds + 1
        assert same(trunk(tmp_path), server.rounds.trunk)
        assert [line["step"] for line in averages(tmp_path)] == [0, 4, 6, 6, 8, 10]


def test_a_run_that_an_evaluation_has_ended_begins_with_the_fleets_newest_trunk_if_it_goes_on(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"evaluate_every": 4, "optimizer": OptimizerSettings(lr=0.0)}
    with real_trainer() as server:
        server.training.optimizer.settings = OptimizerSettings(lr=0.0)
        serve(bundle, server.endpoint, tmp_path, stop_after=1, **options)
        assert [(d.step, d.last) for d, _ in server.deltas] == [(0, False), (4, False), (8, False)]
        server.go_on()
        serve(bundle, server.endpoint, tmp_path, **options)
        assert [(d.step, d.images, d.last) for d, _ in server.deltas[3:]] == [(8, 0, False), (10, 32, True)]
        assert same(trunk(tmp_path), server.rounds.trunk)


def test_a_run_stopped_while_it_waits_for_the_others_sends_the_same_change_again(
    bundle: Bundle, real_trainer: StartsRealTrainer, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with real_trainer() as server:
        server.wait_for(99)
        report = serve(bundle, server.endpoint, tmp_path, stop=lambda: len(server.deltas) > 1)
        assert (report["steps"], report["averages"]) == (4, 1)
        assert report["bytes_trunk_up"] > len(server.deltas[1][1])  # its bytes are not those of the training
        assert report["bytes_up"] == sum(line["bytes_up"] for line in lines_of(tmp_path, "step"))
        server.wait_for()
        serve(bundle, server.endpoint, tmp_path)
        assert [body for _, body in server.deltas[1:]] == [
            body for number in (1, 1, 2, 3) for _, body in undisturbed.server.deltas[number : number + 1]
        ]
        assert same(trunk(tmp_path), undisturbed.server.rounds.trunk)


@pytest.mark.parametrize(
    "options",
    [
        {"refresh_every": 3, "micro_batches": 2, "freeze_first": 1},
        {"engine": "torch", "evaluate_every": 2, "stop_after": 1, "optimizer": OptimizerSettings(lr=0.0)},
    ],
    ids=["onnxruntime", "torch"],
)
def test_whatever_the_options_both_sides_end_with_the_same_trunk(
    bundle: Bundle, real_trainer: StartsRealTrainer, options: dict[str, Any], tmp_path: Path
) -> None:
    with real_trainer(every=3, precision="bf16") as server:
        report = serve(bundle, server.endpoint, tmp_path, steps=5, **options)
        last, _ = server.deltas[-1]
        assert (last.step, last.last) == (report["steps"], True)
        assert same(trunk(tmp_path), server.rounds.trunk)


def test_a_frozen_trunk_says_so_and_sends_no_change(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path: Path
) -> None:
    with real_trainer(mode="frozen") as server:  # which refuses a device that trains its trunk
        report = serve(bundle, server.endpoint, tmp_path, steps=1, trunk="frozen")
        assert (server.deltas, report["averages"]) == ([], 0)


def test_a_run_that_learned_alone_brings_what_it_learned_into_the_fleet(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path: Path
) -> None:
    with real_trainer(mode="parallel") as before:
        serve(bundle, before.endpoint, tmp_path, steps=2)
        assert not before.deltas
        assert not (tmp_path / "averages").exists()
    with real_trainer(before) as server:
        with logged("adc_edge.edge_runtime") as lines:
            serve(bundle, server.endpoint, tmp_path, steps=3)
        assert [(d.step, d.images, d.base) for d, _ in server.deltas] == [(2, 32, 0), (3, 16, 1)]
        assert same(trunk(tmp_path), server.rounds.trunk)
        assert "fleet    what this trunk has learned alone in 2 steps is its first change" in lines


@pytest.mark.parametrize("every", [3, 4])
def test_a_first_average_between_two_others_times_is_taken_from_the_record_or_missed(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path: Path, every: int
) -> None:
    with real_trainer(mode="parallel") as before:
        serve(bundle, before.endpoint, tmp_path, stop=done(tmp_path, 7))
    before.sessions.restore(before.sessions.records())  # as a new process
    older = tmp_path / "checkpoint-00000006.safetensors"
    stood = older.read_bytes()
    with real_trainer(before, every=every) as server:
        serve(bundle, server.endpoint, tmp_path, stop=done(tmp_path, 8))
        for checkpoint in tmp_path.glob("checkpoint-*"):
            checkpoint.unlink()
        older.write_bytes(stood)
        kept = tmp_path / "averages" / "00000007-0"
        whole = kept.read_bytes()
        kept.write_bytes(whole[:-1])
        for _ in range(2):  # the damaged file itself is gone after the first
            with pytest.raises(CheckpointError, match="step 7 is to be done again, and averages/ lacks"):
                serve(bundle, server.endpoint, tmp_path)
        kept.write_bytes(whole)
        serve(bundle, server.endpoint, tmp_path)
        assert [d.step for d, _ in server.deltas] == [7, *range(9 if every == 3 else 8, 10, every), 10]
        assert same(trunk(tmp_path), server.rounds.trunk)


def test_what_rounding_has_left_outlives_an_average_without_a_change(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path: Path
) -> None:
    def residual() -> dict[str, Any]:
        arrays = load_checkpoint(max(tmp_path.glob("checkpoint-*"))).arrays
        return {name: value for name, value in arrays.items() if name.startswith("fleet.residual.")}

    with real_trainer() as server:
        serve(bundle, server.endpoint, tmp_path, steps=6)
        left = residual()
        assert any(value.any() for value in left.values())
        server.go_on()
        serve(bundle, server.endpoint, tmp_path, stop=done(tmp_path, 7))
        assert [(d.step, d.images) for d, _ in server.deltas[3:]] == [(6, 0)]
        assert same(residual(), left)


def test_nothing_goes_on_before_the_average_is_on_the_disk(
    bundle: Bundle, real_trainer: StartsRealTrainer, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    (tmp_path / "averages").touch()  # where a directory must be made
    with real_trainer() as server, logged("adc_edge.edge_runtime") as lines:
        thread = threading.Thread(target=serve, args=(bundle, server.endpoint, tmp_path), kwargs={"steps": 1})
        thread.start()
        eventually(lambda: any("File exists" in line for line in lines))
        time.sleep(0.2)
        assert not averages(tmp_path)
        (tmp_path / "averages").unlink()
        thread.join()
    assert [line["step"] for line in averages(tmp_path)] == [0, 1]
