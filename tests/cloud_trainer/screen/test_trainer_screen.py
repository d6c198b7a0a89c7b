"""The live area of `trainer`: a row for each device, at any size."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from adc_edge.cloud_trainer.screen.fleet import Fleet
from adc_edge.cloud_trainer.screen.trainer_screen import TrainerScreen
from adc_edge.screen.sheet import RowSheet, rows_for
from adc_edge.storage.events import Away, Done, Joined, Rejected, Use


def a_step(session: str, step: int, **more: Any) -> dict[str, Any]:
    values = {
        "kind": "step", "device": "?", "session": session, "step": step, "head_step": step + 1, "images": 32,
        "clusters": 16, "kept": 98, "precision": "pca1", "gradient_precision": "pca0.25", "loss": 1.25,
        "accuracy": 0.5, "up_mbit_s": 23.4, "down_mbit_s": 45.6, "rtt_ms": 12.3,
    }  # fmt: skip
    return values | more


def a_screen(insecure: str = "") -> TrainerScreen:
    console = Console(file=io.StringIO(), color_system=None)
    return TrainerScreen(console, "vit_tiny, blocks 4 to 12 on tcp://0.0.0.0:5700", 197, insecure)


def join(fleet: Fleet, count: int, name: str = "device-{}") -> None:
    for number in range(count):
        fleet.take(Joined(session=f"{number:016x}", device=name.format(number), step=0, steps=1000))
        fleet.take(a_step(f"{number:016x}", 41))


def drawn(screen: TrainerScreen, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    sheet = RowSheet(width, encoding)
    screen.draw(sheet, height)
    return [row.plain for row in sheet.fitting(rows_for(height))]


def row_of(screen: TrainerScreen, name: str, width: int = 200) -> str:
    (row,) = [line for line in drawn(screen, width, 40) if line.startswith(name)]
    return row


@pytest.mark.parametrize("devices", [0, 1, 4, 40, 300])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(("width", "height"), [(50, 12), (60, 15), (80, 24), (140, 40)])
def test_the_area_fits_with_any_number_of_devices(width: int, height: int, encoding: str, devices: int) -> None:
    screen = a_screen("insecure: in the clear")
    join(screen.fleet, devices)
    lines = drawn(screen, width, height, encoding)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height - 4
    assert any("insecure" in line for line in lines)
    assert any(line.startswith("devices") for line in lines)


def test_four_devices_have_a_row_each_on_a_terminal_of_80_by_24() -> None:
    screen = a_screen()
    join(screen.fleet, 4)
    lines = drawn(screen)
    assert sum(line.startswith("device-") for line in lines) == 4
    assert all("42/1000" in line for line in lines if line.startswith("device-"))
    assert "devices 4 connected" in lines


def test_a_wide_terminal_shows_every_figure_of_a_device() -> None:
    screen = a_screen()
    join(screen.fleet, 1)
    screen.fleet.take({"kind": "evaluation", "session": f"{0:016x}", "step": 42, "accuracy": 0.61, "loss": 1.0})
    row = row_of(screen, "device-0")
    for figure in ("connected", "42/1000", "1.250", "50.0%", "61.0%", "23.4/45.6", "12.3", "0.249", "pca1/pca0.25"):
        assert figure in row, row


def test_devices_that_are_away_finished_or_refused_are_told_apart() -> None:
    screen = a_screen()
    join(screen.fleet, 3)
    screen.fleet.take(Away(session=f"{1:016x}"))
    screen.fleet.take(Done(session=f"{2:016x}", step=1000))
    screen.fleet.take(Rejected(code="bundle", text="another bundle", session="f" * 16, device="stranger"))
    assert "devices 1 connected, 1 away, 1 finished, 1 refused  1 message refused" in drawn(screen)
    assert "away" in row_of(screen, "device-1")
    assert "finished" in row_of(screen, "device-2")
    assert "refused" in row_of(screen, "stranger")
    screen.fleet.take(Joined(session=f"{1:016x}", device="device-1", step=42, steps=1000))
    assert "connected" in row_of(screen, "device-1")


def test_a_paused_device_is_told_apart_while_it_is_connected() -> None:
    screen = a_screen()
    join(screen.fleet, 3)
    screen.fleet.is_paused = lambda session: session != f"{0:016x}"
    assert "connected" in row_of(screen, "device-0")
    assert "paused" in row_of(screen, "device-1", 80)
    assert any(line.startswith("devices 3 connected (2 paused)") for line in drawn(screen))
    screen.fleet.take(Away(session=f"{1:016x}"))
    assert "away" in row_of(screen, "device-1")
    screen.fleet.is_paused = lambda session: False
    assert "connected" in row_of(screen, "device-2")


def test_devices_that_do_not_fit_are_counted() -> None:
    screen = a_screen()
    join(screen.fleet, 40)
    lines = drawn(screen)
    shown = sum(line.startswith("device-") for line in lines)
    assert shown >= 3
    assert f"and {40 - shown} more: {40 - shown} connected" in lines


def test_sessions_of_an_earlier_process_are_away_until_they_join() -> None:
    screen = a_screen()
    screen.fleet.seed("0" * 16, "device-0", 17, finished=False)
    screen.fleet.seed("1" * 16, "device-1", 20, finished=True)
    assert "devices 1 away, 1 finished" in drawn(screen)
    assert row_of(screen, "device-0").split() == ["device-0", "away", "17"]


def test_names_with_control_sequences_and_markup_are_shown_escaped() -> None:
    screen = a_screen()
    join(screen.fleet, 1, "\x1b[2J[red]{}[/]\n")
    text = "\n".join(drawn(screen, 140))
    assert r"\x1b[2J[red]0[/]\x0a" in text
    assert "\x1b" not in text


def test_the_use_of_time_and_memory_is_shown_while_it_is_new() -> None:
    screen = a_screen()
    spent = {"seconds_head": 2.5, "seconds_codec": 0.5, "seconds_update": 1.0}
    screen.fleet.take(Use(seconds=5.0, memory_mb=812.0, held_bytes=2_000_000, connections=3, **spent))
    text = "\n".join(drawn(screen, 140))
    assert "head 50 %" in text
    assert "wait 20 %" in text
    assert "memory 812 MB" in text
    screen.fleet.used_at -= 60
    assert "wait 100 %" in "\n".join(drawn(screen, 140))


def test_twenty_thousand_steps_of_a_thousand_sessions_leave_bounded_memory() -> None:
    fleet = Fleet()
    for number in range(20_000):
        session = f"{number % 1000:016x}"
        if number < 1000:
            fleet.take(Joined(session=session, device="x", step=0, steps=9))
        fleet.take(a_step(session, number))
        if number % 1000 == 999:
            fleet.update()
    assert len(fleet.rows) <= 256
    assert len(fleet.loss.values()) <= 1024


def test_taking_a_line_costs_microseconds() -> None:
    fleet, line = Fleet(), a_step("0" * 16, 1)
    start = time.perf_counter()
    for _ in range(5000):
        fleet.take(line)
    assert (time.perf_counter() - start) / 5000 < 50e-6  # 0.3 µs on an idle machine
