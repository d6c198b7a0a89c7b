"""The collective operations between real processes, and the loss of one of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import statistics
import sys

import numpy as np
import pytest
import torch

from adc_edge.cloud_trainer.ranks.launch import Launch
from adc_edge.cloud_trainer.ranks.world import OWN_STORE, World, check_store, losing_ranks
from adc_edge.errors import RanksLost, SettingError
from tests.cloud_trainer.ranks import rank_tasks
from tests.cloud_trainer.ranks.exchanging import meeting_place, ranks

_context = multiprocessing.get_context("forkserver")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_hears_the_same_of_all(size: int) -> None:
    values = [[rank, -rank, 2**40 + rank] for rank in range(size)]
    with ranks(size, rank_tasks.one_of_each, values) as started:
        results = started.results()
        assert started.exit_codes() == [0] * size
    assert all(result == results[0] for result in results)
    (heard, *_) = results
    assert heard["first"] == [[0]] * size
    assert heard["rows"] == values
    assert heard["blobs"] == [bytes([rank]) * (rank * 1000) for rank in range(size)]
    assert heard["nothing"] == [b""] * size
    assert heard["known"] == [bytes([rank]) * rank for rank in range(size)]
    assert heard["large"] == [3_000_000 if rank == 1 else 1 for rank in range(size)]
    assert heard["least"] == 10 - (size - 1)
    wanted = torch.stack([rank_tasks.gradient_of(rank) for rank in range(size)]).double().sum(0)
    np.testing.assert_allclose(np.frombuffer(heard["sum"], np.float32), wanted.numpy(), atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="policies of threads are Linux's")
def test_only_gloos_thread_for_sockets_interrupts_no_other_one() -> None:
    with ranks(2, rank_tasks.policies) as started:
        for policies in started.results():
            batch = {name for name, policy in policies.items() if policy == os.SCHED_BATCH}
            assert batch == {"gloo_tcp_loop"}, policies


def test_a_rank_that_waits_in_an_operation_does_other_work_again_and_again() -> None:
    with ranks(2, rank_tasks.late, _context.Event()) as started:
        (rows, calls), (others_rows, _) = started.results()
    assert rows == others_rows == [[0], [1]]
    assert calls >= 20


@pytest.mark.parametrize("operation", ["rows", "sum", "blobs", "least"])
def test_a_killed_rank_is_lost_in_every_operation(operation: str) -> None:
    with ranks(3, rank_tasks.killed, 1, operation) as started:
        assert started.outcome(1) is None
        for rank in (0, 2):
            outcome = started.outcome(rank)
            assert outcome is not None
            assert outcome.error == "RanksLost"
            assert "lost the other ranks" in outcome.text
        codes = started.exit_codes()
    assert codes == [3, -signal.SIGKILL, 3]


def test_a_silent_rank_is_lost_after_the_timeout() -> None:
    with ranks(2, rank_tasks.silent, timeout_s=2) as started:
        outcome = started.outcome(0)
        assert outcome is not None
        assert outcome.error == "RanksLost"
        assert "2000ms" in outcome.text
        assert outcome.seconds >= 2


def test_an_error_of_idle_passes_unchanged_and_ends_the_process_soon() -> None:
    over = _context.Event()
    with ranks(2, rank_tasks.impatient, over, timeout_s=600) as started:
        outcome = started.outcome(0)
        assert outcome is not None
        assert (outcome.error, outcome.text) == ("ZeroDivisionError", "in idle")
        started.processes[0].join(60)
        assert started.processes[0].exitcode == 3  # its operation would hang for 600 s
        over.set()


def test_wrong_use_is_no_lost_rank() -> None:
    with ranks(2, rank_tasks.wrong) as started:
        errors = {outcome.error for rank in (0, 1) if (outcome := started.outcome(rank)) is not None}
    assert errors == {"ValueError"}


def test_ranks_that_are_started_again_meet_in_the_same_store() -> None:
    with meeting_place() as store:
        for _ in range(4):  # as torchrun starts them, after one was killed
            begun = _context.Event()
            with ranks(2, rank_tasks.endless, begun, store=store) as started:
                assert begun.wait(60)
                started.processes[1].kill()
                outcome = started.outcome(0)
                assert outcome is not None
                assert outcome.error == "RanksLost"
        with ranks(2, rank_tasks.counted, 5, store=store) as started:
            assert started.results() == [5, 5]


def test_a_rank_that_asked_and_died_keeps_nobody_from_meeting() -> None:
    with meeting_place() as store:
        store.set("adc-edge/2/asks/1", "0123456789abcdef")  # of a process that was killed before the answer
        with ranks(2, rank_tasks.counted, 3, store=store) as started:
            assert started.results() == [3, 3]


def test_ranks_that_do_not_come_are_lost() -> None:
    with meeting_place() as store:
        launch = Launch(0, 2, 0, 2, 1, 0, "127.0.0.1", store.port, True)
        with pytest.raises(RanksLost, match="no sign of rank 1 within"), World(launch, timeout_s=0.5):
            pass


def test_a_store_that_is_gone_is_a_loss_of_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch = Launch(0, 1, 0, 1, 1, 0, "127.0.0.1", free.getsockname()[1], True)
        with pytest.raises(RanksLost, match="lost the other ranks"), World(launch, timeout_s=1):
            pass


def test_only_what_torch_raises_becomes_a_lost_rank() -> None:
    with pytest.raises(KeyboardInterrupt), losing_ranks("x"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="y"), losing_ranks("x"):
        raise ValueError("y")
    with pytest.raises(RanksLost, match="x"), losing_ranks("x"):
        raise torch.distributed.DistNetworkError("z")


def test_ranks_on_several_hosts_need_a_new_store_at_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(0, 4, 0, 2, 2, 0, "10.0.0.1", 29500, True)
    monkeypatch.delenv(OWN_STORE, raising=False)
    with pytest.raises(SettingError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_store(launch)
    check_store(launch._replace(nodes=1))
    monkeypatch.setenv(OWN_STORE, "1")
    check_store(launch)


def test_signals_are_handled_again_once_the_ranks_have_met() -> None:
    def handler(*_: object) -> None: ...

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with meeting_place() as store:
            launch = Launch(0, 2, 0, 2, 1, 0, "127.0.0.1", store.port, True)
            with pytest.raises(RanksLost), World(launch, timeout_s=0.2):
                pass
        assert all(signal.getsignal(number) is handler for number in before)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_cost_of_a_round_without_work(size: int) -> None:
    with ranks(size, rank_tasks.timed_rows, 2000, 8) as started:
        times = sorted(started.results()[0][100:])
    with ranks(size, rank_tasks.timed_sum, 5_500_000, 15) as started:
        sum_ms = max(started.results())
    p99 = times[len(times) * 99 // 100]
    print(
        f"{size} ranks, {os.cpu_count()} cores: rows {statistics.median(times):.3f} ms (p99 {p99:.3f} ms), "
        f"sum of 5.5 M float32 {sum_ms:.1f} ms"
    )
    if size <= (os.cpu_count() or 1):
        assert statistics.median(times) <= 2


@pytest.mark.slow
def test_ranks_meet_in_a_store_that_rank_0_serves() -> None:
    from tests.cloud_trainer.ranks.exchanging import _run

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = []
    try:
        for rank in (0, 1):
            here, there = _context.Pipe(duplex=False)
            launch = Launch(rank, 2, rank, 2, 1, 0, "127.0.0.1", port, False)
            run = there, launch, 60.0, rank_tasks.counted, (4,), "cpu"
            process = _context.Process(target=_run, args=run, daemon=True)
            process.start()
            there.close()
            ends.append((here, process))
        assert all(here.poll(120) for here, _ in ends)
        assert [here.recv()[0] for here, _ in ends] == [4, 4]
        for _, process in ends:
            process.join(60)
            assert process.exitcode == 0
    finally:
        for here, process in ends:
            process.kill()
            process.join()
            here.close()


def test_heads_on_unlike_devices_are_refused_on_every_rank() -> None:
    """No rank waits for the others with its GPU: none of them has one here."""
    with ranks(3, rank_tasks.one_of_each, [], kinds=("cpu", "cpu", "cuda")) as started:
        for rank in range(3):
            outcome = started.outcome(rank)
            assert outcome is not None
            assert outcome.error == "SettingError"
            assert "the head of rank 2 on cuda, that of rank 0 on cpu" in outcome.text
            assert "--device cpu" in outcome.text
