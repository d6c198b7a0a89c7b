"""Power of a Jetson's rails, and the energy of a piece of work, from `tegrastats`.

`tegrastats` comes with JetPack and needs no root. On other boards energy is not measured.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

_INTERVAL_MS = 100
_LEAST_SAMPLES = 3
# "VDD_IN 6140/5510" (JetPack 4), "VDD_IN 4824mW/4824mW" (5, 6), "VDD_GPU_SOC 5139mW/5139mW/5139mW" (7): now, average,
# largest. RAM and SWAP end in MB.
_RAIL = re.compile(r"(?<!\S)([A-Z]\w*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?:/-?\d+mW)?(?!\S)")
_RAM = re.compile(r"(?<!\S)RAM (\d+)/(\d+)MB")
# What adds up to the module's input, by board. A rail that feeds another is not counted twice: AGX Orin's VIN_SYS_5V0
# feeds VDDQ_VDD2_1V8AO. Rails that are not known give no total.
_TOTALS = (
    ("VDD_IN",),  # Orin Nano, Orin NX, Xavier NX, TX2
    ("POM_5V_IN",),  # Nano
    ("VIN",),  # Thor
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


class Reading(NamedTuple):
    """The values of one line; a value that it lacks is empty or None."""

    rails_mw: dict[str, int]  # at this moment
    ram_mb: int | None


class PowerSample(NamedTuple):
    """A reading and when it came, by the monotonic clock."""

    at_s: float
    reading: Reading


class Window(NamedTuple):
    """A stretch of time, by the monotonic clock."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


class Energy(NamedTuple):
    """Energy of a piece of work, beyond the idle board's."""

    mj: float
    busy_mw: float
    idle_mw: float
    rails: str  # which were added up
    samples: int


class NotMeasured(Exception):
    """Energy cannot be measured; the text says why."""


def parse_tegrastats(line: str) -> Reading:
    """Read a line of tegrastats; what is garbled in it is left out."""
    rails_mw = {name: int(now) for name, now in _RAIL.findall(line) if name != "NC"}
    ram = _RAM.search(line)
    return Reading(rails_mw, int(ram[1]) if ram else None)


def total_mw(rails_mw: Mapping[str, int]) -> tuple[str, int] | None:
    """The module's input, with the names of what was added up; None if these rails do not tell it."""
    for names in _TOTALS:
        if all(name in rails_mw for name in names):
            return " + ".join(names), sum(rails_mw[name] for name in names)
    return None


class Tegrastats:
    """Runs `tegrastats` while it is entered, and keeps its samples; without `tegrastats` there are none."""

    def __init__(self) -> None:
        self._path = shutil.which("tegrastats")
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._samples: list[PowerSample] = []

    @property
    def available(self) -> bool:
        """Whether there is anything to ask."""
        return self._path is not None

    def __enter__(self) -> Tegrastats:
        """Start it."""
        if self._path is None:
            return self
        try:
            self._process = subprocess.Popen(
                [self._path, "--interval", str(_INTERVAL_MS)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError:  # one that this system cannot run
            self._path = None
            return self
        self._thread = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._process is None or self._thread is None:
            return
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(2)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def watch(self, seconds: float) -> Window:
        """Let time pass and return it; at once where there is no tegrastats."""
        start = time.monotonic()
        if self.available:
            time.sleep(seconds)
        return Window(start, time.monotonic())

    def between(self, window: Window) -> list[PowerSample]:
        """Return the samples within a window."""
        return [sample for sample in self._samples.copy() if window.start_s <= sample.at_s <= window.end_s]

    def energy(self, idle: Window, busy: Window) -> Energy:
        """Return the energy of ``busy`` beyond the mean power of ``idle``; raises NotMeasured."""
        if not self.available:
            raise NotMeasured("no tegrastats here")
        return energy(self.between(idle), self.between(busy), busy)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # not the one that the end cuts short
                self._samples.append(PowerSample(time.monotonic(), parse_tegrastats(line)))


def energy(idle: Sequence[PowerSample], busy: Sequence[PowerSample], window: Window) -> Energy:
    """Integrate the total over ``window`` and subtract the idle mean over the same time.

    Args:
        idle: before the work.
        busy: during it; lines without a total are passed over.
        window: of the work.

    Raises:
        NotMeasured: too few samples, or rails that do not tell the total.
    """
    before, during = _totals(idle), _totals(busy)
    rails = {names for _, names, _ in before + during}
    if not rails:
        seen = sorted({name for sample in [*idle, *busy] for name in sample.reading.rails_mw})
        raise NotMeasured(f"tegrastats tells no total, only {', '.join(seen)}" if seen else "tegrastats tells no rails")
    if len(before) < _LEAST_SAMPLES or len(during) < _LEAST_SAMPLES or len(rails) > 1:
        raise NotMeasured(f"{len(before)} samples idle and {len(during)} at work, too few: raise --seconds")
    idle_mw = sum(mw for _, _, mw in before) / len(before)
    times = [window.start_s, *(at for at, _, _ in during), window.end_s]
    values = [during[0][2], *(mw for _, _, mw in during), during[-1][2]]
    integral = sum((b - a) * (u + v) / 2 for a, b, u, v in zip(times, times[1:], values, values[1:], strict=False))
    busy_mw = integral / window.seconds
    return Energy((busy_mw - idle_mw) * window.seconds, busy_mw, idle_mw, rails.pop(), len(during))


def _totals(samples: Sequence[PowerSample]) -> list[tuple[float, str, int]]:
    """(when, rails, mW) of the samples that tell it."""
    found = ((sample.at_s, total_mw(sample.reading.rails_mw)) for sample in samples)
    return [(at, *total) for at, total in found if total is not None]
