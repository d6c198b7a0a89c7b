"""Real ranks and one door: each device comes to its rank by itself, from whichever rank it asks, also after a kill."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adc_edge.cloud_trainer.ranks.devices.placing import rank_of_text
from adc_edge.cloud_trainer.ranks.state.turn import TURN
from adc_edge.errors import RefusedError
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.messages import Hello
from tests.cloud_trainer.ranks.launching import Torchrun
from tests.cloud_trainer.ranks.rank_trainers import MovingDevice, RankTrainers, check_every_step_once, train

pytestmark = pytest.mark.slow


class StayingDevice(MovingDevice):
    """A device of version 0.11, which knows nothing of moves."""

    def hello(self) -> Hello:
        return msgspec.structs.replace(super().hello(), moves=msgspec.UNSET)


def started_anew(trainers: Torchrun, before: dict[int, int]) -> bool:
    """Whether there are as many ranks as before, and none of those."""
    now = trainers.pids()
    return len(now) == len(before) and not {*now.values()} & {*before.values()}


def neighbour(endpoint: str, rank: int) -> str:
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + rank}"


def test_devices_come_to_their_ranks_by_name_from_any_door_and_come_back_after_a_kill(
    bundle: Bundle, tmp_path: Path
) -> None:
    steps, run = 12, tmp_path / "run"
    options = ("--devices", "4", "--place", "name", "--checkpoint-every", "5")
    with RankTrainers(bundle, tmp_path, 2, *options, max_restarts=5) as trainers:
        door = trainers.endpoint(run)
        devices = [MovingDevice(bundle, neighbour(door, n % 2), n + 1, steps) for n in range(4)]
        killed = threading.Event()

        def kill_once(step: int) -> None:
            if step == steps // 2 and not killed.is_set():
                killed.set()
                trainers.kill_rank(1)

        train(devices, kill_once)
        code, output = trainers.finish()
    assert code == 0, output
    check_every_step_once(run, devices)
    expected = [neighbour(door, rank_of_text(f"device-{device.number}", 2)) for device in devices]
    assert [device.session.channel.endpoint for device in devices] == expected
    assert len(set(expected)) == 2
    assert all(device.session.outages for device in devices)


def test_an_older_device_trains_where_it_is_and_is_told_where_if_it_asks_elsewhere(
    bundle: Bundle, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with RankTrainers(bundle, tmp_path, 2, "--devices", "2") as trainers:
        door = trainers.endpoint(run)
        second = neighbour(door, 1)
        older, other = StayingDevice(bundle, second, 1, 4), MovingDevice(bundle, second, 2, 4)
        older.session.open(120)
        other.session.open(120)
        assert older.session.channel.endpoint == second
        lost = StayingDevice(bundle, door, 1, 4)
        with pytest.raises(RefusedError, match="cannot move") as caught:
            lost.session.open(60)
        assert second in str(caught.value)
        lost.session.close()
        threads: list[Any] = [threading.Thread(target=device.run) for device in (older, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        code, output = trainers.finish()
    assert code == 0, output
    check_every_step_once(run, [older, other])


def test_ranks_whose_run_others_have_taken_over_serve_nobody_any_more(bundle: Bundle, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RankTrainers(bundle, tmp_path, 2, "--devices", "2", max_restarts=5) as trainers:
        door = trainers.endpoint(run)
        devices = [MovingDevice(bundle, door, n + 1, 6) for n in range(2)]
        for device in devices:
            device.session.open(120)
        before = trainers.pids()
        (run / TURN).write_bytes(b"ranks that were started later")
        trainers.wait_for(lambda: started_anew(trainers, before) or None, "new ranks")
        train(devices)
        code, output = trainers.finish()
    assert code == 0, output
    assert "taken over" in output
    check_every_step_once(run, devices)
