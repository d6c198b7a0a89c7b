"""The board and its state, as Linux reports them. Uses the standard library and changes nothing.

Every path is below ``root``. A fact that a system does not report is None or empty, never a guess.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adc_edge.machine.processor import processor_name

ROOT = Path("/")
_COMMAND_TIMEOUT_S = 5.0
_ABSENT_C = -200.0  # a sensor whose part is switched off reads -256
_JETPACK = {  # L4T -> JetPack, from NVIDIA's archive
    "39.2.1": "7.2.1",
    "39.2.0": "7.2",
    "38.4.0": "7.1",
    "38.2.2": "7.0",
    "38.2.1": "7.0",
    "38.2.0": "7.0",
    "36.5.2": "6.2.3",
    "36.5.0": "6.2.2",
    "36.4.7": "6.2.1",
    "36.4.4": "6.2.1",
    "36.4.3": "6.2",
    "36.4.0": "6.1",
    "36.3.0": "6.0",
    "35.6.0": "5.1.4",
    "35.5.0": "5.1.3",
    "35.4.1": "5.1.2",
    "35.3.1": "5.1.1",
    "35.2.1": "5.1",
    "35.1.0": "5.0.2",
}
_JETPACK_MAJOR = {"39": "7", "38": "7", "36": "6", "35": "5", "32": "4"}
_GPUS = ("gpu", "ga10b", "gv11b", "gp10b")  # devfreq's names, by JetPack: 17000000.gpu, 17000000.ga10b, gpu-gpc-0


@dataclass(frozen=True)
class Board:
    """Facts that stay while a board runs; ``model`` is None where the firmware names none (most x86 machines)."""

    model: str | None
    jetson: bool
    l4t: str | None
    jetpack: str | None
    system: str
    architecture: str
    processor: str
    cores: int
    cores_online: int
    gpus: tuple[str, ...]  # discrete ones of NVIDIA
    memory_mb: float | None
    memory_free_mb: float | None
    congestion: str | None  # TCP's, of new connections
    congestion_offered: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name for a title."""
        return self.model or self.processor


@dataclass(frozen=True)
class Clock:
    """``low_mhz`` to ``high_mhz`` is what the governor may choose from at the moment."""

    name: str
    mhz: float
    low_mhz: float
    high_mhz: float
    governor: str

    @property
    def pinned(self) -> bool:
        """Whether it cannot move, as after `jetson_clocks`."""
        return self.low_mhz == self.high_mhz

    def __str__(self) -> str:
        """Such as ``GPU 306 of 625 MHz (nvhost_podgov)``."""
        return f"{self.name} {self.mhz:.0f} of {self.high_mhz:.0f} MHz ({'pinned' if self.pinned else self.governor})"


@dataclass(frozen=True)
class BoardState:
    """Facts that change while a board runs."""

    power_mode: str | None  # nvpmodel's
    clocks: tuple[Clock, ...]
    temperatures_c: dict[str, float]
    throttling: tuple[str, ...]  # at this moment
    throttle_events: dict[str, int]  # counted since it was switched on
    throttling_told: bool  # whether the board tells it at all

    @property
    def hottest(self) -> tuple[str, float] | None:
        """Name and degrees Celsius of the hottest sensor."""
        return max(self.temperatures_c.items(), key=lambda item: item[1], default=None)


def describe_board(root: Path = ROOT) -> Board:
    """Read the facts that stay."""
    model, l4t = read(root / "proc/device-tree/model") or None, _l4t(root)
    memory = _memory_mb(root)
    online = len(_cores(read(root / "sys/devices/system/cpu/online"))) or os.cpu_count() or 1
    return Board(
        model=model,
        jetson=l4t is not None or "Jetson" in (model or ""),
        l4t=l4t,
        jetpack=_jetpack(l4t),
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        processor=processor_name(read(root / "proc/cpuinfo") or ""),
        cores=max(online, len(_cores(read(root / "sys/devices/system/cpu/present")))),
        cores_online=online,
        gpus=tuple(_discrete_gpus(root)),
        memory_mb=memory.get("MemTotal"),
        memory_free_mb=memory.get("MemAvailable"),
        congestion=read(root / "proc/sys/net/ipv4/tcp_congestion_control"),
        congestion_offered=tuple((read(root / "proc/sys/net/ipv4/tcp_available_congestion_control") or "").split()),
    )


def board_state(root: Path = ROOT) -> BoardState:
    """Read the facts that change; asks `nvpmodel` where PATH has it."""
    raspberry = _number(root / "sys/devices/platform/soc/soc:firmware/get_throttled", 16)
    alerts, events = dict(_alerts(root)), dict(_events(root))
    return BoardState(
        power_mode=_power_mode(),
        clocks=(*_cpu_clocks(root), *_gpu_clocks(root)),
        temperatures_c=dict(_temperatures(root)),
        throttling=(*(name for name, active in alerts.items() if active), *_raspberry(raspberry or 0)),
        throttle_events=events,
        throttling_told=bool(alerts or events) or raspberry is not None,
    )


def throttled(before: BoardState, after: BoardState) -> tuple[str, ...]:
    """Return the causes of throttling at both states, and those counted between them."""
    counted = (name for name, count in after.throttle_events.items() if count > before.throttle_events.get(name, 0))
    return tuple(dict.fromkeys((*before.throttling, *after.throttling, *counted)))


def read(path: Path) -> str | None:
    """Return the stripped text of a kernel file; None where it is missing or cannot be read.

    Not ``Path.read_text``: a sensor that is off answers "try again", at which Python's text reader raises TypeError.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        data = b"".join(iter(lambda: os.read(handle, 1 << 16), b""))
    except OSError:
        return None
    finally:
        os.close(handle)
    return data.decode(errors="replace").strip("\0 \t\n")  # the device tree's strings end in NUL


def _number(path: Path, base: int = 10) -> int | None:
    try:
        return int(read(path) or "", base)
    except ValueError:
        return None


def _l4t(root: Path) -> str | None:
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read(root / "etc/nv_tegra_release") or "")
    return f"{found[1]}.{found[2]}" if found else None


def _jetpack(l4t: str | None) -> str | None:
    major = _JETPACK_MAJOR.get((l4t or "").partition(".")[0])
    return _JETPACK.get(l4t or "") or (f"{major}.x" if major else None)


def _cores(ranges: str | None) -> set[int]:
    """``"0-3,6"`` -> {0, 1, 2, 3, 6}."""
    pairs = re.findall(r"(\d+)(?:-(\d+))?", ranges or "")
    return {core for first, last in pairs for core in range(int(first), int(last or first) + 1)}


def _memory_mb(root: Path) -> dict[str, float]:
    lines = re.findall(r"^(\w+):\s+(\d+) kB", read(root / "proc/meminfo") or "", re.MULTILINE)
    return {name: int(kib) * 1024 / 1e6 for name, kib in lines}


def _discrete_gpus(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        if found := re.search(r"Model:\s*(.+)", read(path) or ""):
            yield found[1].strip()


def _power_mode() -> str | None:
    """Ask `nvpmodel -q`; its errors about files that only root may read do not matter."""
    path = shutil.which("nvpmodel")
    if path is None:
        return None
    try:
        done = subprocess.run([path, "-q"], capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+))?", done.stdout.decode(errors="replace"))
    return None if found is None else f"{found[1]} ({found[2]})" if found[2] else found[1]


def _cpu_clocks(root: Path) -> Iterator[Clock]:
    for path in sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*")):
        cores = (read(path / "affected_cpus") or "").split()
        name = f"CPU {cores[0]}-{cores[-1]}" if len(cores) > 1 else f"CPU {path.name.removeprefix('policy')}"
        khz = [_number(path / f"scaling_{which}_freq") for which in ("cur", "min", "max")]
        yield from _clock(name, khz, 1e3, read(path / "scaling_governor"))


def _gpu_clocks(root: Path) -> Iterator[Clock]:
    for path in sorted(root.glob("sys/class/devfreq/*")):
        if any(part in path.name for part in _GPUS):
            hz = [_number(path / f"{which}_freq") for which in ("cur", "min", "max")]
            yield from _clock("GPU", hz, 1e6, read(path / "governor"))


def _clock(name: str, values: list[int | None], per_mhz: float, governor: str | None) -> Iterator[Clock]:
    now, low, high = (None if value is None else value / per_mhz for value in values)
    if now is not None and low is not None and high is not None:
        yield Clock(name, now, low, high, governor or "?")


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for path in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name, value = read(path / "type"), _number(path / "temp")
        # The PMIC's reads 100 or 50 on boards where nobody measures it.
        if name and value is not None and value / 1e3 > _ABSENT_C and not name.upper().startswith("PMIC"):
            yield re.sub(r"-therm(al)?$", "", name), value / 1e3


def _alerts(root: Path) -> Iterator[tuple[str, bool]]:
    """A Jetson's throttle alerts; other cooling devices, such as a fan, are at work in a healthy board too."""
    for path in sorted(root.glob("sys/class/thermal/cooling_device*")):
        name = read(path / "type") or ""
        if name.endswith("-alert"):
            yield name, (_number(path / "cur_state") or 0) > 0


def _raspberry(flags: int) -> Iterator[str]:
    names = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
    return (name for bit, name in enumerate(names) if flags >> bit & 1)


def _events(root: Path) -> Iterator[tuple[str, int]]:
    """A Jetson's under-voltage and over-current events, and how often an x86 core was too hot."""
    for name, pattern in (
        ("under-voltage", "sys/class/hwmon/hwmon*/oc1_event_cnt"),
        ("average over-current", "sys/class/hwmon/hwmon*/oc2_event_cnt"),
        ("peak over-current", "sys/class/hwmon/hwmon*/oc3_event_cnt"),
        ("core too hot", "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"),
    ):
        counts = [count for path in root.glob(pattern) if (count := _number(path)) is not None]
        if counts:
            yield name, sum(counts)
