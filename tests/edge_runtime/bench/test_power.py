"""Power: lines that were recorded on boards, and a real process that prints them."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from adc_edge.edge_runtime.bench.power import (
    NotMeasured,
    PowerSample,
    Reading,
    Tegrastats,
    Window,
    energy,
    parse_tegrastats,
    total_mw,
)
from tests.edge_runtime.made_up_board import ORIN_NANO, script

AGX_ORIN = (
    "10-16-2023 10:59:22 RAM 1205/30623MB (lfb 6429x4MB) SWAP 0/15311MB (cached 0MB) CPU [0%@729,0%@729,off,off] "
    "EMC_FREQ 0%@204 GR3D_FREQ 0%@114 GR3D2_FREQ 0%@114 NVJPG1 729 VIC_FREQ 729 APE 233 CV0@-256C CPU@43.5C "
    "Tdiode@32.5C SOC2@40.062C GPU@38.156C CV2@-256C VDD_GPU_SOC 4788mW/4788mW VDD_CPU_CV 798mW/798mW VIN_SYS_5V0 "
    "3842mW/3842mW NC 0mW/0mW VDDQ_VDD2_1V8AO 707mW/707mW NC 0mW/0mW"
)
AGX_ORIN_JETPACK_7 = (
    "07-31-2026 14:58:05 RAM 4714/62878MB (lfb 7x4MB) SWAP 0/2048MB (cached 0MB) CPU [78%@1728,33%@1728,off,off] "
    "EMC_FREQ 2%@2133 GR3D_FREQ 12%@[1300,1300] NVENC0 off PVA0_FREQ off APE 174 cpu@50.718C/50.718C tj@50.718C/50.718C"
    " soc1@49C/49C VDD_GPU_SOC 2265mW/2266mW/2300mW VDD_CPU_CV 2643mW/2643mW/2643mW VIN_SYS_5V0 4722mW/4722mW/4722mW"
)
XAVIER_NX = (
    "RAM 5246/7771MB (lfb 7x4MB) SWAP 983/20269MB (cached 280MB) CPU [47%@1420,23%@1420,32%@1420,22%@1420,31%@1420,"
    "96%@1420] EMC_FREQ 2%@1600 GR3D_FREQ 0%@1109 APE 150 MTS fg 1% bg 9% AO@29C GPU@31.5C PMIC@100C AUX@30C CPU@33.5C "
    "thermal@31.35C VDD_IN 6140/5510 VDD_CPU_GPU_CV 2706/2119 VDD_SOC 1074/1051"
)
AGX_XAVIER = (
    "RAM 721/31927MB (lfb 7291x4MB) SWAP 0/15963MB (cached 0MB) CPU [2%@1190,0%@1190,off,off] EMC_FREQ 0%@665 "
    "GR3D_FREQ 0%@318 APE 150 MTS fg 0% bg 0% AO@37.5C GPU@37.5C Tdiode@40C PMIC@100C AUX@36C CPU@37.5C thermal@36.9C "
    "Tboard@37C GPU 0/0 CPU 311/311 SOC 932/932 CV 0/0 VDDRQ 621/621 SYS5V 1482/1482"
)
NANO = (
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1224,4%@1224] EMC_FREQ "
    "0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C AO@45C thermal@40C POM_5V_IN 1750/1628 "
    "POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)


@pytest.mark.parametrize(
    ("line", "rails", "mw", "ram"),
    [
        (ORIN_NANO, "VDD_IN", 4824, 3452),
        (AGX_ORIN, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 4788 + 798 + 3842, 1205),
        (AGX_ORIN_JETPACK_7, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 9630, 4714),
        (XAVIER_NX, "VDD_IN", 6140, 5246),
        (AGX_XAVIER, "GPU + CPU + SOC + CV + VDDRQ + SYS5V", 3346, 721),
        (NANO, "POM_5V_IN", 1750, 1923),
    ],
    ids=["Orin Nano", "AGX Orin", "AGX Orin, JetPack 7", "Xavier NX", "AGX Xavier", "Nano"],
)
def test_the_lines_of_each_board_are_read(line: str, rails: str, mw: int, ram: int) -> None:
    reading = parse_tegrastats(line)
    assert total_mw(reading.rails_mw) == (rails, mw)
    assert reading.ram_mb == ram
    assert not {"RAM", "SWAP", "IRAM", "NC"} & set(reading.rails_mw)


def test_the_first_number_of_a_rail_counts() -> None:
    assert parse_tegrastats(AGX_ORIN_JETPACK_7).rails_mw["VDD_GPU_SOC"] == 2265
    assert parse_tegrastats("VDD_GPU -392mW/-392mW").rails_mw == {"VDD_GPU": -392}  # Thor's, with its GPU asleep


@pytest.mark.parametrize(
    "line", ["", "\n", "\x00\x7f��", "RAM 77", "VDD_IN 48", "VDD_IN 4824mW/", "VDD_IN /4824mW", "@C"]
)
def test_garbage_is_nothing(line: str) -> None:
    assert parse_tegrastats(line) == Reading({}, None)


@pytest.mark.parametrize("line", [ORIN_NANO, AGX_ORIN, AGX_ORIN_JETPACK_7, XAVIER_NX, AGX_XAVIER, NANO])
def test_a_line_that_begins_or_ends_anywhere_never_gives_a_wrong_number(line: str) -> None:
    whole = parse_tegrastats(line.strip())
    for cut in range(len(line)):
        for part in (line[cut:], line[:cut].rpartition(" ")[0]):
            found = parse_tegrastats(part)
            names = found.rails_mw.keys() & whole.rails_mw.keys()  # a name may be cut
            assert all(found.rails_mw[name] == whole.rails_mw[name] for name in names)
            total = total_mw(found.rails_mw)
            assert total is None or total == total_mw(whole.rails_mw)


def samples(start: float, values: list[int], rail: str = "VDD_IN") -> list[PowerSample]:
    return [PowerSample(start + i / 10, Reading({rail: mw}, None)) for i, mw in enumerate(values)]


def test_energy_is_the_integral_less_what_is_drawn_anyway() -> None:
    found = energy(samples(0.0, [4000] * 5), samples(10.0, [9000] * 11), Window(10.0, 11.0))
    assert found.mj == pytest.approx(5000.0)
    assert found.busy_mw == pytest.approx(9000.0)
    assert (found.idle_mw, found.rails, found.samples) == (4000.0, "VDD_IN", 11)
    ramp = energy(samples(0.0, [0, 0, 0]), samples(10.0, [0, 1000, 2000, 3000, 4000]), Window(10.0, 10.4))
    assert ramp.mj == pytest.approx(0.4 * 2000)
    edges = energy(samples(0.0, [0, 0, 0]), samples(10.1, [1000] * 3), Window(10.0, 10.4))
    assert edges.mj == pytest.approx(400.0)  # what came first and last holds to the edges


@pytest.mark.parametrize(
    ("idle", "busy", "why"),
    [
        ([], [9000] * 9, "0 samples idle"),
        ([4000] * 9, [9000] * 2, "raise --seconds"),
        ([], [], "no rails"),
    ],
)
def test_too_little_is_not_measured(idle: list[int], busy: list[int], why: str) -> None:
    with pytest.raises(NotMeasured, match=why):
        energy(samples(0.0, idle), samples(10.0, busy), Window(10.0, 11.0))


def test_rails_that_tell_no_total_are_named() -> None:
    with pytest.raises(NotMeasured, match="only VDD_CPU"):
        energy(samples(0.0, [1] * 5, "VDD_CPU"), samples(1.0, [1] * 5, "VDD_CPU"), Window(1.0, 2.0))


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A `tegrastats` on PATH: busy draws more from the moment when the file `busy` is there."""
    script(folder / "bin", "tegrastats", body)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_a_real_process_is_read_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy_line = ORIN_NANO.replace("VDD_IN 4824mW", "VDD_IN 9824mW").replace("RAM 3452", "RAM 3600")
    fake(
        tmp_path,
        monkeypatch,
        f"""[ "$1" = --interval ] && [ "$2" = 100 ] || exit 9
echo $$ > '{tmp_path}/pid'
printf 'VDD_IN 99999mW/99'
printf '\\377\\376 garbage\\n\\n'
while :; do
    if [ -e '{tmp_path}/busy' ]; then echo '{busy_line}'; else echo '{ORIN_NANO}'; fi
    sleep 0.05
done
""",
    )
    with Tegrastats() as power:
        assert power.available
        power.watch(0.2)
        idle = power.watch(0.4)
        (tmp_path / "busy").touch()
        power.watch(0.2)
        busy = power.watch(0.6)
        found = power.energy(idle, busy)
    assert found.mj == pytest.approx(5000 * busy.seconds, rel=1e-6)
    assert found.busy_mw == pytest.approx(9824.0)
    assert (found.idle_mw, found.rails) == (4824.0, "VDD_IN")
    assert max(sample.reading.ram_mb or 0 for sample in power.between(busy)) == 3600
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("body", ["exit 1\n", "echo 'RAM 1/2MB'\n", "printf 'no newline VDD_IN 1mW/1mW'\n"])
def test_one_that_tells_nothing_is_not_measured(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, body)
    with Tegrastats() as power:
        idle, busy = power.watch(0.1), power.watch(0.1)
    with pytest.raises(NotMeasured, match="no rails"):
        power.energy(idle, busy)


def test_one_that_this_system_cannot_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "")
    (tmp_path / "bin" / "tegrastats").write_bytes(b"\x7fELF of another kind")
    with Tegrastats() as power:
        assert not power.available


def test_where_there_is_none_no_time_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    start = time.monotonic()
    with Tegrastats() as power:
        window = power.watch(30.0)
    assert not power.available
    assert time.monotonic() - start < 5
    with pytest.raises(NotMeasured, match="no tegrastats here"):
        power.energy(window, window)
    assert math.isclose(window.seconds, 0.0, abs_tol=1.0)
