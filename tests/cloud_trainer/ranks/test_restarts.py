"""Ranks under real torchrun: killed ranks, a killed agent, and the end that is asked for."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.cloud_trainer.ranks.launching import ROOT, Torchrun

PROGRAM = ROOT / "tests" / "cloud_trainer" / "ranks" / "rank_program.py"
SEED = int(os.environ.get("ADC_EDGE_SEED", random.randrange(2**32)))


def rounds_done(directory: Path) -> int:
    """Rounds that rank 0 has kept."""
    state = directory / "state"
    return int(state.read_text().split()[0]) if state.exists() else 0


def starts(directory: Path, rank: int) -> int:
    """Return how often a rank was started."""
    file = directory / f"starts.{rank}"
    return len(file.read_text().splitlines()) if file.exists() else 0


def more_rounds(run: Torchrun, directory: Path, more: int) -> None:
    """Wait until so many rounds more are kept, or all of them."""
    wanted = rounds_done(directory) + more
    run.wait_for(lambda: True if rounds_done(directory) >= wanted else None, f"round {wanted}", timeout_s=240)


@pytest.mark.slow
def test_ranks_come_to_their_end_and_torchrun_with_them(tmp_path: Path) -> None:
    with Torchrun(2, [PROGRAM, tmp_path, "20"], tmp_path) as run:
        code, output = run.finish()
    assert code == 0, output
    assert (tmp_path / "done").read_text() == "20 60"  # 1 + 2 in each round


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ranks_killed_at_random_times_come_to_their_end(tmp_path: Path) -> None:
    kills, dice = 26, random.Random(SEED)
    print(f"seed {SEED}")
    with Torchrun(2, [PROGRAM, tmp_path, "2000", "0.01"], tmp_path, max_restarts=3 * kills) as run:
        for number in range(kills):
            before = starts(tmp_path, 0), starts(tmp_path, 1)
            if number % 3:  # at work
                more_rounds(run, tmp_path, dice.randrange(1, 20))
            else:  # perhaps while the ranks start or meet
                time.sleep(dice.random() * 3)
            run.kill_rank(rank := dice.randrange(2))

            def anew(old: int = before[rank], rank: int = rank) -> bool | None:
                return True if starts(tmp_path, rank) > old else None

            run.wait_for(anew, f"a new rank {rank} after kill {number + 1}", timeout_s=300)
        code, output = run.finish(600)
    assert code == 0, output[-5000:]
    assert (tmp_path / "done").read_text() == "2000 6000"
    restarts = int((tmp_path / "starts.0").read_text().split()[-1])  # a rank killed while it imports notes no start
    print(f"{kills} kills, {restarts} restarts")
    assert restarts >= 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_agent_killed_under_the_supervisor_leaves_no_rank_and_comes_again(
    tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with Torchrun(2, [PROGRAM, tmp_path, "1000", "0.01"], tmp_path, supervised=True) as run:
        for number in range(4):
            more_rounds(run, tmp_path, 10)
            old = run.pids()
            assert len(old) == 2
            if number == 3:
                run.kill_rank(1)  # and torchrun while it handles that
            run.kill_agent()
            eventually(partial(all_gone, list(old.values())))
        code, output = run.finish(400)
    assert code == 0, output[-5000:]
    assert (tmp_path / "done").read_text() == "1000 3000"
    assert output.count("ranks.sh: torchrun ended with exit code 137") == 4


def all_gone(pids: list[int]) -> bool:
    """Whether none of the processes exists."""
    return not any(map(alive, pids))


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("supervised", [False, True], ids=["torchrun", "ranks.sh"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_ranks_end_together_when_torchrun_is_asked_to(number: int, supervised: bool, tmp_path: Path) -> None:
    with Torchrun(2, [PROGRAM, tmp_path, "100000", "0.01"], tmp_path, supervised=supervised) as run:
        more_rounds(run, tmp_path, 5)
        ranks = run.pids().values()
        os.kill(run.process.pid, number)
        code, output = run.finish(60)
        assert not any(map(alive, ranks))
    stopped = {line.partition(" stops")[0]: line for line in output.splitlines() if " stops after " in line}
    assert stopped.keys() == {"rank 0", "rank 1"}, output
    assert len({line.partition("stops")[2] for line in stopped.values()}) == 1  # both in one round
    assert "lost the other ranks" not in output
    assert starts(tmp_path, 0) == 1
    if supervised:
        assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(number)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_sigterm_that_follows_another_ranks_death_ends_no_run(
    tmp_path: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """torchrun sends the survivors SIGTERM, as if somebody had asked for an end."""
    with Torchrun(3, [PROGRAM, tmp_path, "300", "0.01"], tmp_path) as run:
        for _ in range(3):
            more_rounds(run, tmp_path, 20)
            old = run.pids()
            run.kill_rank(2)
            eventually(partial(all_gone, list(old.values())))
        code, output = run.finish()
    assert code == 0, output
    assert "stops after" not in output
    assert (tmp_path / "done").read_text() == "300 1800"
