"""`adc-edge link` on emulated links: measured v configured, and RTT under load v a UDP echo through the same queue.

    python benchmarks/link.py --json out/link.json

Trainer and device are processes in their own network namespaces. link_emulator.py needs root; without it the list of
results is empty. With iperf3 installed the rates of lossy links, or with --iperf of all, are compared with iperf3's
under the same congestion control. A row is marked where the emulator lagged by more than 20 ms.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from harness import Result, arguments, compare, show
from link_emulator import LinkEmulator, Way, available, enter, inside, process

from adc_edge.calibration.link.report import LinkMoment

# Heavy packages (torch, timm, onnx) are imported inside functions, because the emulator's process imports this module.

ENDPOINT = f"tcp://{LinkEmulator.trainer_address}:5700"
MODEL_ARGS = {"patch_size": 4, "img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 4}
PAYLOAD = 1448 / 1500  # of a packet
LAG_MS = 20.0
ECHO_S = 0.05
MOMENT_S = 0.25  # window of the report's series, at most
PING_BYTES = 115  # on the wire


class Link(NamedTuple):
    """A configured link."""

    up_mbit_s: float
    down_mbit_s: float
    rtt_ms: float
    loss: float = 0.0

    def __str__(self) -> str:
        lost = f", {self.loss:.0%} loss" if self.loss else ""
        return f"{self.up_mbit_s:g}/{self.down_mbit_s:g} Mbit/s, {self.rtt_ms:g} ms{lost}"

    def ways(self) -> tuple[Way, Way]:
        """Both directions, with the emulator's usual queues."""
        up, down = (Way(rate, self.rtt_ms / 2, loss=self.loss) for rate in self[:2])
        return up, down


SYMMETRIC = [
    Link(rate, rate, rtt, loss) for rate in (1, 5, 20, 100) for rtt in (5, 40, 200) for loss in (0, 0.01, 0.02)
]
LINKS = [*SYMMETRIC, *(Link(2, 20, rtt) for rtt in (5, 40, 200))]
QUICK = [Link(1, 1, 40), Link(20, 20, 5), Link(5, 5, 200), Link(2, 20, 40), Link(20, 20, 40, 0.01)]


def export(bundle: Path) -> None:
    from adc_edge.export.build import ExportSettings, export_bundle
    from adc_edge.method.ratio import Ratio

    model = "vit_tiny_patch16_224"
    export_bundle(ExportSettings(model, 2, bundle, Ratio(xi=0.4), 16, "fp32", classes=10, model_args=MODEL_ARGS))


def trainer(bundle: Path, directory: Path, pipe: Connection) -> None:
    """The trainer's process, until the pipe ends."""
    from rich.console import Console

    from adc_edge.cloud_trainer.runner import Trainer, TrainerSettings

    settings = TrainerSettings(bundle, ENDPOINT, run=directory / "trainer", device="cpu", insecure=True, threads=1)
    with open(os.devnull, "w") as nowhere:
        Trainer(settings, Console(file=nowhere), pipe.poll).run()


def device(pipe: Connection) -> None:
    """The device's process: one measurement for each number of seconds that comes. It answers with start and report."""
    from adc_edge.calibration.link.measure import measure_link
    from adc_edge.wire.channel import Channel

    def dial(stop: Callable[[], bool]) -> Channel:
        channel = Channel(ENDPOINT, stop=stop)
        channel.open(60)
        return channel

    with contextlib.suppress(EOFError):
        while True:
            seconds = pipe.recv()
            start = time.monotonic()
            pipe.send((start, msgspec.to_builtins(measure_link(dial, seconds))))


@contextlib.contextmanager
def echoes(link: LinkEmulator) -> Iterator[list[tuple[float, float]]]:
    """Send a UDP packet every 50 ms and have it echoed; yield the (monotonic time, round trip in ms) so far."""
    over, times = threading.Event(), list[tuple[float, float]]()
    with inside(link.trainer_namespace):
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.bind((link.trainer_address, 0))
    with inside(link.device_namespace):
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        near.connect(far.getsockname())
    for end in (far, near):
        end.settimeout(0.1)

    def answer() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                far.sendto(*far.recvfrom(64))

    def listen() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                sent = float(near.recv(64))
                times.append((time.monotonic(), (time.monotonic() - sent) * 1e3))

    def ask() -> None:
        while not over.wait(ECHO_S):
            with contextlib.suppress(OSError):
                near.send(repr(time.monotonic()).encode())

    threads = [threading.Thread(target=target) for target in (answer, listen, ask)]
    for thread in threads:
        thread.start()
    try:
        yield times
    finally:
        over.set()
        for thread in threads:
            thread.join()
        far.close()
        near.close()


def iperf_mbit_s(link: LinkEmulator, option: str, seconds: float, congestion: str) -> tuple[float, ...]:
    """Goodput by iperf3, with ``--bidir`` up and down; nothing where it is missing or fails."""
    if shutil.which("iperf3") is None:
        return ()
    far = partial(enter, link.trainer_namespace)
    server = subprocess.Popen(["iperf3", "-s", "-1"], preexec_fn=far, stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    command = ["iperf3", "-c", link.trainer_address, "-J", "-t", f"{seconds:.0f}", "-O", "2", "-C", congestion]
    command += [option] if option else []
    try:
        result = subprocess.run(
            command, preexec_fn=partial(enter, link.device_namespace), capture_output=True, timeout=seconds + 30
        )
        sums = json.loads(result.stdout)["end"]
        names = [name for name in ("sum_received", "sum_received_bidir_reverse") if name in sums]
        return tuple(float(sums[name]["bits_per_second"]) / 1e6 for name in names)
    except (subprocess.TimeoutExpired, KeyError, ValueError):
        return ()
    finally:
        server.kill()
        server.wait()


def rows(
    name: str, asked: Link, report: dict[str, Any], start: float, echoed: list[tuple[float, float]]
) -> list[Result]:
    """Compare one measurement with what was configured and what the echoes saw."""
    found = []
    if not asked.loss:
        for way, rate in (("up", asked.up_mbit_s), ("down", asked.down_mbit_s)):
            found.append(compare(f"{name}: {way}", report[f"{way}_mbit_s"], rate, "Mbit/s"))
            found.append(compare(f"{name}: {way}, load both", report[f"both_{way}_mbit_s"], rate, "Mbit/s"))
    serial_ms = PING_BYTES * 8e-3 * (1 / asked.up_mbit_s + 1 / asked.down_mbit_s)
    found.append(compare(f"{name}: RTT idle", report["rtt_p50_ms"], asked.rtt_ms + serial_ms, "ms"))
    series = msgspec.convert(report["series"], list[LinkMoment])
    for load in ("idle", "up", "down", "both"):
        found.append(compare(f"{name}: RTT, load {load}", *beside_echoes(series, load, start, echoed), "ms"))
    return found


def beside_echoes(
    series: list[LinkMoment], load: str, start: float, echoed: list[tuple[float, float]]
) -> tuple[float, float]:
    """Median round trip in ms by the measurement and by the echoes, in the moments that have both; NaN without any.

    The first third of a stage is left out, in which TCP starts.
    """
    moments = [moment for moment in series if moment.load == load]
    pairs = [(moment.rtt_ms, near(start + moment.t, echoed)) for moment in moments[len(moments) // 3 :]]
    both = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
    if not both:
        return math.nan, math.nan
    return statistics.median(ours for ours, _ in both), statistics.median(theirs for _, theirs in both)


def near(at: float, echoed: list[tuple[float, float]]) -> float | None:
    """Median of the echoes that came back around an instant."""
    found = [ms for when, ms in echoed if abs(when - at) <= MOMENT_S / 2]
    return statistics.median(found) if found else None


def run(links: list[Link], seconds: float, iperf: bool = False) -> list[Result]:
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name, LinkEmulator(*links[0].ways()) as link:
        directory = Path(name)
        export(directory / "bundle")
        serve = partial(trainer, directory / "bundle", directory)
        with process(link.trainer_namespace, serve) as there, process(link.device_namespace, device) as here:
            while not (directory / "trainer" / "endpoint").exists():
                if there.poll(0.1):
                    raise there.recv()
            for asked in links:
                link.set(*asked.ways())
                with echoes(link) as echoed:
                    here.send(seconds)
                    answer = here.recv()
                if isinstance(answer, Exception):
                    raise answer
                start, report = answer
                mark = f"{asked}; lag" if link.lag_ms > LAG_MS else str(asked)
                results += rows(mark, asked, report, start, echoed)
                if asked.loss or iperf:
                    results += beside_iperf(link, mark, report, seconds / 3)
                resent = {way: report[f"retransmitted_{way}"] for way in ("up", "down")}
                print(
                    mark,
                    f"{report['seconds']:.1f} s, {report['bytes'] / 1e6:.1f} MB, {link.stats()}, {resent}",
                    flush=True,
                )
    return results


def beside_iperf(link: LinkEmulator, name: str, report: dict[str, Any], seconds: float) -> list[Result]:
    """Compare the rates with iperf3's."""
    cases = {"": ("up",), "-R": ("down",), "--bidir": ("both_up", "both_down")}
    return [
        compare(f"{name}: {way} v iperf3", report[f"{way}_mbit_s"], rate, "Mbit/s")
        for option, ways in cases.items()
        for way, rate in zip(ways, iperf_mbit_s(link, option, seconds, report["congestion"]), strict=False)
    ]


def main() -> None:
    parser = arguments("The measured link v the configured one, over an emulated link.")
    parser.add_argument("--quick", action="store_true", help="measure five links instead of 39")
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each measurement")
    parser.add_argument("--iperf", action="store_true", help="compare with iperf3 on links without loss too")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    if trouble := available():
        print(trouble)
        show("link: measured v configured", [], args.json)
        return
    show("link: measured v configured", run(QUICK if args.quick else LINKS, args.seconds, args.iperf), args.json)


if __name__ == "__main__":
    main()
