"""Identity and state of a board, from files as they were seen on real ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adc_edge.edge_runtime import board
from adc_edge.edge_runtime.board import Clock
from tests.edge_runtime.made_up_board import NVPMODEL, ORIN, RASPBERRY_PI, put, script


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """To put a command on PATH, which holds no other nvpmodel."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return lambda name, text: script(tmp_path / "bin", name, text)


def test_an_orin_is_told_as_it_is(tmp_path: Path) -> None:
    facts = board.describe_board(put(tmp_path, ORIN))
    assert facts.model == facts.name == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (facts.jetson, facts.l4t, facts.jetpack) == (True, "36.4.7", "6.2.1")
    assert (facts.processor, facts.cores_online, facts.cores) == ("Cortex-A78AE", 4, 6)
    assert facts.memory_mb == pytest.approx(7990.7, abs=0.1)
    assert facts.memory_free_mb == pytest.approx(5243.4, abs=0.1)
    assert (facts.congestion, facts.congestion_offered) == ("cubic", ("reno", "cubic"))


def test_its_state_is_told_as_it_is(tmp_path: Path, commands: Callable[[str, str], None]) -> None:
    commands("nvpmodel", NVPMODEL)
    state = board.board_state(put(tmp_path, ORIN))
    assert state.power_mode == "15W (0)"
    assert state.clocks == (
        Clock("CPU 0-3", 729.6, 729.6, 1510.4, "schedutil"),
        Clock("GPU", 306.0, 306.0, 624.75, "nvhost_podgov"),
    )
    assert [str(clock) for clock in state.clocks][1] == "GPU 306 of 625 MHz (nvhost_podgov)"
    assert state.temperatures_c == {"cpu": 48.562, "gpu": 48.5, "tj": 49.062}  # cv0 is off
    assert state.hottest == ("tj", 49.062)
    assert (state.throttling, state.throttling_told) == ((), True)  # a fan at work holds nothing back
    assert state.throttle_events == {"under-voltage": 0, "average over-current": 0, "peak over-current": 37}


def test_clocks_that_jetson_clocks_has_pinned(tmp_path: Path) -> None:
    gpu = "sys/class/devfreq/17000000.gpu/"
    put(tmp_path, ORIN | {f"{gpu}{which}_freq": "624750000\n" for which in ("cur", "min")})
    cpu, pinned = board.board_state(tmp_path).clocks
    assert (cpu.pinned, pinned.pinned) == (False, True)
    assert str(pinned) == "GPU 625 of 625 MHz (pinned)"


def test_throttling_is_what_is_so_now_or_was_counted_meanwhile(tmp_path: Path) -> None:
    before = board.board_state(put(tmp_path, ORIN))
    assert board.throttled(before, before) == ()
    put(tmp_path, {"sys/class/thermal/cooling_device9/cur_state": "1\n"})
    put(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": "40\n"})
    after = board.board_state(tmp_path)
    assert after.throttling == ("gpu-throttle-alert",)
    assert board.throttled(before, after) == ("gpu-throttle-alert", "peak over-current")


def test_a_raspberry_pi(tmp_path: Path) -> None:
    put(tmp_path, RASPBERRY_PI)
    facts, state = board.describe_board(tmp_path), board.board_state(tmp_path)
    assert (facts.model, facts.jetson, facts.l4t) == ("Raspberry Pi 5 Model B Rev 1.0", False, None)
    assert facts.processor == "Cortex-A76"
    assert state.throttling == ("under-voltage", "throttled")  # 0x5 now; 0x50000 is history


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64", "36.4.0", "6.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic, EABI: aarch64", "39.2.0", "7.2"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64", "35.4.1", "5.1.2"),
        ("# R36 (release), REVISION: 9.1, GCID: 1, BOARD: generic, EABI: aarch64", "36.9.1", "6.x"),
        ("# R99 (release), REVISION: 1.0", "99.1.0", None),
        ("nonsense", None, None),
    ],
)
def test_jetpack_is_named_where_it_is_certain(line: str, l4t: str | None, jetpack: str | None, tmp_path: Path) -> None:
    facts = board.describe_board(put(tmp_path, {"etc/nv_tegra_release": line}))
    assert (facts.l4t, facts.jetpack, facts.jetson) == (l4t, jetpack, l4t is not None)


def test_an_x86_machine_with_a_graphics_card(tmp_path: Path) -> None:
    put(tmp_path, {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H200\nIRQ:   \t\t 105\n"})
    put(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9454\n"})
    facts = board.describe_board(tmp_path)
    assert (facts.name, facts.gpus) == ("AMD EPYC 9454", ("NVIDIA H200",))


def test_a_system_that_tells_nothing_gives_no_guesses(tmp_path: Path, commands: Callable[[str, str], None]) -> None:
    facts, state = board.describe_board(tmp_path / "nowhere"), board.board_state(tmp_path / "nowhere")
    assert (facts.model, facts.memory_mb, facts.congestion, facts.congestion_offered) == (None, None, None, ())
    assert facts.cores >= facts.cores_online >= 1
    assert state == board.BoardState(None, (), {}, (), {}, False)
    assert state.hottest is None
    assert board.throttled(state, replace(state, throttling=("x",))) == ("x",)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_sensor_that_says_try_again_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, ORIN)
    sensor = tmp_path / "sys/class/thermal/thermal_zone2/temp"
    sensor.unlink()
    os.mkfifo(sensor)
    writer = os.open(sensor, os.O_RDWR)  # open and silent: a read gives EAGAIN, as a switched off cv0-thermal does
    try:
        assert board.read(sensor) is None
        assert set(board.board_state(tmp_path).temperatures_c) == {"cpu", "gpu", "tj"}
    finally:
        os.close(writer)


@pytest.mark.parametrize("text", ["echo 'NVPM ERROR: root only' >&2\nexit 1\n", "exec sleep 30\n", "printf '\\377'\n"])
def test_a_power_mode_that_is_not_told_costs_little_time(
    text: str, commands: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(board, "_COMMAND_TIMEOUT_S", 0.3)
    commands("nvpmodel", text)
    start = time.monotonic()
    assert board.board_state(tmp_path / "nowhere").power_mode is None
    assert time.monotonic() - start < 5


def test_this_machine_can_be_described() -> None:
    assert board.describe_board().cores >= 1
    assert board.board_state().power_mode is None or board.describe_board().jetson
