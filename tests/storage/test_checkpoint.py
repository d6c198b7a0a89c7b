"""State on disk: it comes back as it was, or its damage is noticed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adc_edge.errors import CheckpointError
from adc_edge.storage.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    drop_newer,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

KINDS = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_])
ARRAYS = st.dictionaries(
    st.text("abc.xyz_0", min_size=1, max_size=8),
    KINDS.flatmap(lambda kind: arrays(kind, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))),
    max_size=4,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
STATE: dict[str, npt.NDArray[Any]] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(7.0, np.float32),
    "empty": np.empty((0, 3), np.int64),
}


def described(state: dict[str, npt.NDArray[Any]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in state.items()}


@given(ARRAYS, st.dictionaries(st.text(), JSON, max_size=3), st.integers(0, 10**8 - 1))
@settings(deadline=None, max_examples=60)
def test_arrays_and_meta_come_back_bit_for_bit(
    state: dict[str, npt.NDArray[Any]], meta: dict[str, Any], step: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        read = load_checkpoint(save_checkpoint(Path(directory), step, state, meta))
    assert described(read.arrays) == described(state)
    assert read.meta == meta
    assert read.step == step


def test_scalars_empty_and_strided_arrays_come_back(tmp_path: Path) -> None:
    state = {**STATE, "turned": np.arange(12, dtype=np.int32).reshape(3, 4).T}
    read = load_checkpoint(save_checkpoint(tmp_path, 1, state, {}))
    assert described(read.arrays) == described(state)


def test_a_state_without_arrays_comes_back(tmp_path: Path) -> None:
    assert load_checkpoint(save_checkpoint(tmp_path, 3, {}, {"session": 2**62})) == Checkpoint(
        3, {}, {"session": 2**62}
    )


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (9, 10, 99, 100, 100):
        save_checkpoint(tmp_path, step, STATE, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-00000099.safetensors",
        "checkpoint-00000100.safetensors",
    ]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert (latest.step, latest.meta) == (100, {"step": 100})


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, {"session": 1})
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="cannot be used"):
            load_checkpoint(path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, {"session": 1})
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cannot be used"):
            load_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_checkpoint(path)


def test_weights_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="as adc-edge wrote it"):
        load_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, STATE, {})
    newest = save_checkpoint(tmp_path, 20, STATE, {})
    newest.write_bytes(newest.read_bytes()[:-1])
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.step == 10


def test_when_all_are_damaged_that_is_said_with_the_newest_by_name(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, STATE, {}).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"checkpoint-00000020[^$]*start over in another --run"):
        latest_checkpoint(tmp_path)


def test_where_there_never_was_one_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "settings.json").touch()
    (tmp_path / ".checkpoint-00000001.safetensors.x").write_bytes(b"a write that was cut off")
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_up_to_a_step_is_read(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, STATE, {})
    found = [latest_checkpoint(tmp_path, until) for until in (9, 10, 19, 20, 10**9)]
    assert [kept and kept.step for kept in found] == [None, 10, 10, 20, 20]


def test_damage_to_a_newer_one_does_not_matter_to_who_asks_for_an_older_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, STATE, {})
    save_checkpoint(tmp_path, 20, STATE, {}).write_bytes(b"torn")
    kept = latest_checkpoint(tmp_path, 15)
    assert kept is not None
    assert kept.step == 10
    (tmp_path / "checkpoint-00000010.safetensors").write_bytes(b"torn too")
    with pytest.raises(CheckpointError, match="checkpoint-00000010"):
        latest_checkpoint(tmp_path, 15)


def test_the_steps_of_all_that_is_there_are_told_in_order_whole_or_not(tmp_path: Path) -> None:
    assert checkpoint_steps(tmp_path) == []
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, STATE, {})
    (tmp_path / "checkpoint-00000005.safetensors").write_bytes(b"torn")
    for foreign in (".checkpoint-00000001.safetensors.x", "checkpoint-x.safetensors", "checkpoint-00000002.pt"):
        (tmp_path / foreign).touch()
    assert checkpoint_steps(tmp_path) == [5, 99_999_999, 100_000_000]


def test_later_ones_are_dropped_when_a_run_goes_back_and_then_it_keeps_two_again(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, STATE, {})
    drop_newer(tmp_path, 20)
    assert checkpoint_steps(tmp_path) == [10, 20]
    drop_newer(tmp_path, 19)
    assert checkpoint_steps(tmp_path) == [10]
    for step in (15, 16):
        save_checkpoint(tmp_path, step, STATE, {})
    assert checkpoint_steps(tmp_path) == [15, 16]


WRITE_FOREVER = """
import sys, itertools, pathlib, numpy
from adc_edge.storage.checkpoint import save_checkpoint
for step in itertools.count():
    save_checkpoint(pathlib.Path(sys.argv[1]), step, {"w": numpy.full(200_000, step, numpy.float32)}, {"step": step})
"""


def test_a_process_killed_while_it_writes_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("checkpoint-0000000[5-9].*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.step >= 5
    assert (latest.arrays["w"] == latest.meta["step"]).all()
