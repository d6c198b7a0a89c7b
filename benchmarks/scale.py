"""Simulate fleets: calibrate on this machine, check against real trainers, and say what many devices need.

    python benchmarks/scale.py --calibrate work gloo profile    # about five minutes; on an idle machine
    python benchmarks/scale.py --check light heavier            # real trainers v the simulation, about four minutes
    python benchmarks/scale.py --answers                        # minutes
    python benchmarks/scale.py --write docs                     # tables and plots from the results

Results are kept in docs/results/scale.json; each option replaces its own part. `--results` names another file.
Calibrated are points with 1, 4 and 16 devices and a light head. Checked are others, with the time of the head alone
measured beside each (as fleet.py does), because the speed of a shared machine drifts.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import msgspec
from harness import Result, compare, show
from scale_answers import Answer, answers, digest
from scale_check import BOUND, CHECKED, Agreement, check
from scale_docs import write
from scale_gloo import Gloo, calibrate_gloo
from scale_profile import Speeds, calibrate_profile
from scale_stated import STATED, Stated
from scale_work import Work, calibrate_work

from adc_edge.machine.description import describe_machine

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "scale.json"
CALIBRATIONS = {"work": calibrate_work, "gloo": calibrate_gloo, "profile": calibrate_profile}


class Measured(msgspec.Struct, frozen=True):
    """When and on what something was measured; the load is the mean number of processes that ran, before and after."""

    date: str
    processor: str
    cores: int
    load: tuple[float, float]
    seconds: float


class Results(msgspec.Struct):
    """The content of the file."""

    measured: dict[str, Measured] = {}
    work: Work | None = None
    gloo: Gloo | None = None
    profile: Speeds | None = None
    check: dict[str, list[Agreement]] = {}  # by head
    stated: Stated | None = None
    answers: list[Answer] = []
    answered_with: str = ""  # digest of the calibration and the assumptions that the answers were computed from

    def are_answers_current(self) -> bool:
        """Whether the answers are of the calibration and the assumptions that stand beside them."""
        return self.answered_with == digest(self.work, self.gloo, self.profile, self.stated)


def read(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else Results()


def keep(path: Path, results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


class Clock:
    """Notes when a measurement began, and under which load."""

    def __init__(self) -> None:
        self._begun, self._load = time.time(), os.getloadavg()[0]

    def measured(self) -> Measured:
        machine = describe_machine(threads=1)
        date = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self._begun))
        load = round(self._load, 1), round(os.getloadavg()[0], 1)
        processor, cores = str(machine.get("processor")), int(machine.get("cores") or 0)
        return Measured(date, processor, cores, load, round(time.time() - self._begun, 1))


def needed(results: Results, *names: str) -> list[Any]:
    """The named calibrations; exits where one is missing."""
    if missing := [name for name in names if getattr(results, name) is None]:
        raise SystemExit(f"no calibration of {', '.join(missing)}: run --calibrate {' '.join(missing)} first")
    return [getattr(results, name) for name in names]


def work_through(args: argparse.Namespace, results: Results) -> None:
    """Do what is asked for, and keep each result as soon as it is there."""
    for name in args.calibrate:
        clock = Clock()
        setattr(results, name, CALIBRATIONS[name]())
        results.measured[name] = clock.measured()
        keep(args.results, results)
    for head in args.check:
        clock, results.check[head] = Clock(), []
        for row in check(head, *needed(results, "work")):
            print(row, flush=True)
            results.check[head].append(row)
            results.measured[f"check, {head}"] = clock.measured()
            keep(args.results, results)
    if args.answers:
        results.stated = STATED
        results.answers = answers(*needed(results, "work", "gloo", "profile"))
        results.answered_with = digest(results.work, results.gloo, results.profile, results.stated)
        keep(args.results, results)


def results_of(rows: list[Agreement]) -> list[Result]:
    found = []
    for row in rows:
        name = f"{row.devices} devices, {row.head} head: simulated v real"
        found.append(compare(f"{name}, steps", row.rate[1], row.rate[0], "steps/s"))
        found += [compare(f"{name}, {n}", 1e3 * b, 1e3 * a, "ms") for n, (a, b) in (("p50", row.p50), ("p99", row.p99))]
    return found


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Simulate fleets of devices and trainers.")
    parser.add_argument("--calibrate", nargs="+", default=[], choices=list(CALIBRATIONS), metavar="PART")
    parser.add_argument(
        "--check", nargs="*", choices=list(CHECKED), metavar="HEAD", help="light, heavier; default both"
    )
    parser.add_argument("--answers", action="store_true", help="simulate 100 to 10,000 devices")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write tables into DIR/scale.md, and plots beside it")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the agreement as the other benchmarks do")
    return parser


def main() -> None:
    args = options().parse_args()
    args.check = [] if args.check is None else args.check or list(CHECKED)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    results = read(args.results)
    work_through(args, results)
    rows = [row for head in args.check for row in results.check[head]]
    if rows or args.json:
        show(f"simulation v real trainers; bound {BOUND:.0%}", results_of(rows), args.json)
    if args.write:
        write(args.write, results)


if __name__ == "__main__":
    main()
