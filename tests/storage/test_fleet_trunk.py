"""The fleet's trunk on disk: the newest intact round, with the steps of each session that it has."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from adc_edge.errors import CheckpointError
from adc_edge.storage.checkpoint import save_checkpoint
from adc_edge.storage.fleet_trunk import ROUNDS, FleetTrunk, keep_fleet_trunk, newest_fleet_trunk
from adc_edge.storage.run_dir import RunDir


def trunk(number: int) -> FleetTrunk:
    weights = {"cls_token": np.full((1, 1, 4), number, np.float32), "blocks.0.norm1.bias": np.zeros(3, np.float32)}
    return FleetTrunk(number, weights, {7: 10 * number, 2**62: number})


def test_the_newest_round_comes_back_with_its_weights_and_the_steps_of_each_session(tmp_path: Path) -> None:
    assert newest_fleet_trunk(tmp_path) is None
    for number in range(4):
        keep_fleet_trunk(tmp_path, trunk(number), {"residual.cls_token": np.ones(2)}, {"precision": "int8"})
    found = newest_fleet_trunk(tmp_path)
    assert found is not None
    assert (found.round, found.learned) == (3, {7: 30, 2**62: 3})
    assert found.weights.keys() == trunk(3).weights.keys()
    assert all(np.array_equal(found.weights[name], value) for name, value in trunk(3).weights.items())
    assert len(list((tmp_path / ROUNDS).iterdir())) == 2


def test_a_damaged_newest_round_gives_the_one_before_and_without_an_intact_one_it_is_an_error(tmp_path: Path) -> None:
    files = [keep_fleet_trunk(tmp_path, trunk(number)) for number in (1, 2)]
    files[1].write_bytes(files[1].read_bytes()[:-1])
    found = newest_fleet_trunk(tmp_path)
    assert found is not None
    assert found.round == 1
    files[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be used"):
        newest_fleet_trunk(tmp_path)


def test_another_checkpoint_in_that_directory_is_none_of_a_fleet(tmp_path: Path) -> None:
    (tmp_path / ROUNDS).mkdir()
    save_checkpoint(tmp_path / ROUNDS, 3, {}, {})
    with pytest.raises(CheckpointError, match="round 3"):
        newest_fleet_trunk(tmp_path)


def test_fresh_forgets_the_rounds_too(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, {}, {})):
        keep_fleet_trunk(tmp_path, trunk(1))
    with closing(RunDir(tmp_path, {}, {}, fresh=True)):
        assert newest_fleet_trunk(tmp_path) is None
