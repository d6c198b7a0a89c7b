"""A network link in user space: two namespaces and two TUN devices, with rate, delay, queue and loss in each direction.

    python benchmarks/link_emulator.py

The kernel's TCP runs at both ends, so packet loss has its real effects: retransmissions, and the reaction of the
congestion control. A separate process forwards the packets. It needs root, and changes only the namespaces that it
makes. It removes them at its end, also when the benchmark is killed. Rates count IP packets: TCP's payload is 1448 of
each 1500 bytes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import shutil
import signal
import socket
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from link_forwarder import DEVICE, TRAINER, TUN, Stats, Way, emulate, enter, inside, remove

__all__ = [
    "LinkEmulator",
    "Stats",
    "Way",
    "available",
    "enter",
    "goodput_mbit_s",
    "inside",
    "process",
    "rtt_ms",
    "tcp_pair",
]

_CAPABILITIES = 1 << 12 | 1 << 21  # CAP_NET_ADMIN, CAP_SYS_ADMIN


def available() -> str | None:
    """None if links can be emulated here, otherwise the reason why not."""
    if sys.platform != "linux":
        return "link emulation needs Linux"
    status = Path("/proc/self/status").read_text()
    if int(status.partition("CapEff:")[2].split()[0], 16) & _CAPABILITIES != _CAPABILITIES:
        return "link emulation needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"link emulation needs {TUN}"
    return None if shutil.which("ip") else "link emulation needs the command `ip` (iproute2)"


class LinkEmulator:
    """A link between two namespaces; a context manager.

    Args:
        up: direction from the device to the trainer.
        down: direction from the trainer to the device.
        seed: random seed of the losses.
        mtu_bytes: largest size of an IP packet.
        congestion: congestion control of new connections; None: the default of this machine.

    Raises:
        RuntimeError: the link cannot be made; raised on entering, with the system's message.
    """

    device_address, trainer_address = DEVICE, TRAINER

    def __init__(
        self, up: Way, down: Way, *, seed: int = 1, mtu_bytes: int = 1500, congestion: str | None = "cubic"
    ) -> None:
        name = f"adc-{os.getpid()}-{os.urandom(3).hex()}"
        self.device_namespace, self.trainer_namespace = f"{name}-device", f"{name}-trainer"
        self._namespaces = (self.device_namespace, self.trainer_namespace)
        self._settings = (self._namespaces, mtu_bytes, congestion), (up, down, seed)
        self._lock = threading.Lock()

    def __enter__(self) -> LinkEmulator:
        spawn = multiprocessing.get_context("spawn")
        self._control, theirs = spawn.Pipe()
        self._process = spawn.Process(target=emulate, args=(theirs, os.getpid(), *self._settings), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._reply()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._control.send(None)
        self._process.join(10)
        self._process.kill()
        self._process.join()
        self._control.close()
        remove(self._namespaces)  # if the process was killed

    def enter_device(self) -> None:
        """Move the calling thread to the device's end. Call it in a child process, before it makes a socket."""
        enter(self.device_namespace)

    def enter_trainer(self) -> None:
        """Move the calling thread to the trainer's end."""
        enter(self.trainer_namespace)

    def set(self, up: Way | None = None, down: Way | None = None) -> None:
        """Change one or both directions now. Packets in the queue are affected, packets in transit are not."""
        self._ask((up, down))

    def stats(self) -> Stats:
        """The statistics of the emulator so far."""
        return Stats(*self._ask("stats"))

    @property
    def lag_ms(self) -> float:
        """The largest delay of a packet behind its due time since the last ``set``. Reject a run above 20 ms."""
        return self.stats().lag_ms

    @property
    def bytes(self) -> tuple[int, int]:
        """Delivered bytes up and down, IP headers included."""
        return self.stats()[2:4]

    def _ask(self, question: object) -> Any:
        with self._lock:
            with contextlib.suppress(BrokenPipeError):  # `_reply` then raises
                self._control.send(question)
            return self._reply()

    def _reply(self) -> Any:
        try:
            trouble, value = self._control.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("the link emulator's process has ended") from None
        if trouble:
            raise RuntimeError(f"no link can be emulated: {trouble}")
        return value


def tcp_pair(link: LinkEmulator) -> tuple[socket.socket, socket.socket]:
    """A connection across the link: the device's end and the trainer's, usable in any namespace."""
    with inside(link.trainer_namespace):
        listener = socket.create_server((TRAINER, 0))
    with listener:
        with inside(link.device_namespace):
            device = socket.create_connection(listener.getsockname(), timeout=30)
        trainer, _ = listener.accept()
    for end in (device, trainer):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.settimeout(30)
    return device, trainer


def rtt_ms(one: socket.socket, other: socket.socket, rounds: int = 5) -> float:
    """Median round-trip time of one byte."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for sender, receiver in ((one, other), (other, one)):
            sender.sendall(b"x")
            receiver.recv(1)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def goodput_mbit_s(sender: socket.socket, receiver: socket.socket, warm_up_s: float, seconds: float) -> float:
    """Rate of the received payload after the warm-up. Bytes in transit at the end are received, too."""
    start, count, data, inputs = time.monotonic(), 0, bytes(2**18), [receiver]
    sender.setblocking(False)
    while (now := time.monotonic()) < start + warm_up_s + seconds:
        readable, writable, _ = select.select(inputs, [sender], [], 0.01)
        if writable:
            sender.send(data)
        if readable:
            size = len(receiver.recv(2**18))
            count += size if now > start + warm_up_s else 0
    sender.setblocking(True)
    sender.shutdown(socket.SHUT_WR)
    while receiver.recv(2**18):
        pass
    return count * 8 / 1e6 / seconds


def _work(namespace: str, target: Callable[[Connection], None], pipe: Connection) -> None:
    """Run ``target`` at one end of the link. Its errors are sent through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles it
    enter(namespace)
    try:
        target(pipe)
    except Exception:
        with contextlib.suppress(OSError):  # the benchmark has ended
            pipe.send(RuntimeError(traceback.format_exc()))


@contextlib.contextmanager
def process(namespace: str, target: Callable[[Connection], None]) -> Iterator[Connection]:
    """Run ``target`` in a process at one end of the link. The process ends with its pipe."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=_work, args=(namespace, target, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        child.join(15)
        child.kill()
        child.join()


def main() -> None:
    from harness import arguments, compare, show  # here, so that the emulator's process does not load rich

    parser = arguments("Rates and round trips of the link emulator: measured v requested.")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of the transfer on each link")
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--congestion", default="cubic", help="congestion control")
    args = parser.parse_args()
    if trouble := available():
        sys.exit(trouble)
    results = []
    with LinkEmulator(Way(1, 1), Way(1, 1), mtu_bytes=args.mtu, congestion=args.congestion) as link:
        for rate in (5, 20, 100):
            for rtt in (5, 40, 120):
                way = Way(rate, rtt / 2)
                link.set(way, way)
                device, trainer = tcp_pair(link)
                with device, trainer:
                    got_ms = rtt_ms(device, trainer)
                    goodput = goodput_mbit_s(device, trainer, 1 + rtt / 60, args.seconds)
                stats = link.stats()
                name = f"{rate} Mbit/s, {rtt} ms; lag {stats.lag_ms:.1f} ms, {stats.cpu_share:.0%} of a core"
                results.append(compare(f"{name}: goodput", goodput, rate, "Mbit/s"))
                results.append(compare("round trip", got_ms, rtt, "ms"))
    show("link emulator: measured v requested", results, args.json)


if __name__ == "__main__":
    main()
