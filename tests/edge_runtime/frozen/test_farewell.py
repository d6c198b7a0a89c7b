"""The end of `serve --send-epochs`: what it says and how it exits if the trainer has everything, and if it has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.server import Server
from adc_edge.storage.bundle import Bundle
from tests.edge_runtime.frozen.trainers import waiting_trainer

STEPS = ("--batch-size", "512", "--micro-batches", "1", "--eval-images", "16", "--send-epochs", "1")
SENT, PLANNED = 2, 6


def serve(bundle: Bundle, endpoint: str, run: Path, *more: str) -> tuple[int, str]:
    """Exit code of a device that sends 2 of 6 steps, and all that it printed."""
    arguments = ["--bundle", str(bundle.path), "--trainer", endpoint, "--trunk", "frozen", *STEPS, "--run", str(run)]
    result = CliRunner().invoke(main, ["serve", *arguments, "--report", f"{run}.json", "--epochs", "3", *more])
    return result.exit_code, " ".join(result.output.split())


def complete(run: Path) -> bool:
    return bool(json.loads(Path(f"{run}.json").read_text())["complete"])


def test_an_end_that_the_trainer_refuses_is_a_failure_in_words(
    bundle: Bundle, training: HeadTraining, tmp_path: Path
) -> None:
    run = tmp_path / "device"

    def lose(busy: bool) -> bool:
        """Lose the second step between two messages, as a disk would."""
        for session in server.sessions:
            if session.store is not None:
                session.store.forget(1)
        return False

    with waiting_trainer(bundle, training, tmp_path / "run") as (server, _):
        server.between = lose
        code, text = serve(bundle, server.endpoint, run)
        assert "step 1 is not in the activation store" in text
        assert "all is sent" not in text
        assert "type the same command to go on" in text
        assert "next:" not in text
        assert (code, complete(run)) == (1, False)
        assert (run / "events.jsonl").read_text().count("did not acknowledge that it has all") == 1
    code, text = serve(bundle, server.endpoint, run, "--wait", "0.3")
    assert code == 1, "whether a trainer that is away has everything is not known"
    assert "no trainer at" in text


def test_a_device_that_returns_is_told_what_is_left(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    run = tmp_path / "device"
    with waiting_trainer(bundle, training, tmp_path / "run") as (server, work):
        code, text = serve(bundle, server.endpoint, run)
        assert (code, complete(run)) == (0, True)
        assert f"all is sent: the trainer does the other {PLANNED - SENT} steps, up to {PLANNED}, alone" in text
        assert f"merged once the trainer has come to step {PLANNED}: next: adc-edge merge" in text
        do_one_step(server, work, eventually)
        code, text = serve(bundle, server.endpoint, run)
        assert (code, complete(run)) == (0, True)
        assert f"does the other {PLANNED - SENT - 1} steps, up to {PLANNED}, alone" in text
        server.between = work
        eventually(lambda: server.sessions.finished() == 1)
        code, text = serve(bundle, server.endpoint, run)
        assert (code, complete(run)) == (0, True)
        assert f"the trainer has done all {PLANNED} steps: nothing is left to do" in text
        assert "alone" not in text.partition("all is sent")[2].partition("What the run")[0]
    code, text = serve(bundle, server.endpoint, run, "--wait", "0.3")
    assert (code, complete(run)) == (0, True)
    assert "the trainer has acknowledged all that this device sends, and does not answer now" in text
    code, _ = serve(bundle, server.endpoint, run, "--wait", "0.3", "--epochs", "4")
    assert code == 1, "nobody has heard the wish for a longer run"


def do_one_step(server: Server, work: Callable[[bool], bool], eventually: Callable[[Callable[[], bool]], None]) -> None:
    """Let the trainer do one step alone, and the evaluation before it."""
    (session,) = server.sessions
    server.between = lambda busy: session.applied == SENT and work(busy)
    eventually(lambda: session.applied == SENT + 1)
    server.between = lambda busy: False
