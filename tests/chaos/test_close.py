"""A device that drops a connection never takes its process down with it (libzmq#3442)."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from adc_edge.wire.connection import Connection
from tests.chaos.hostile_peers import COMMAND, GREETING, READY, zmtp_frame

ROOT = Path(__file__).parents[2]
SECONDS, HEADER = 10.0, 100
BATCH = 8192  # bytes that libzmq hands to the kernel at a time


def close_under_attack(seed: int) -> None:
    """Drop connections whose peer has stopped reading and ends within microseconds of the close.

    Sizes make a batch end between a message's header and its piece: only then can libzmq abort.
    """
    rng, end, closes = random.Random(seed), time.monotonic() + SECONDS, 0
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    while time.monotonic() < end:
        port = listener.getsockname()[1]
        connection = Connection(context, f"tcp://127.0.0.1:{port}", None, lambda: False)
        peer, _ = listener.accept()
        peer.settimeout(5)
        peer.sendall(GREETING + zmtp_frame(READY, COMMAND))
        connection.writable()
        for _ in range(rng.randrange(30, 60)):
            piece = bytes(rng.choice([1, 2]) * BATCH - rng.randrange(2 * HEADER))
            connection.send(rng.randbytes(HEADER), piece)
        time.sleep(rng.choice([0, 0.002]))
        first, second = (connection.close, peer.close) if rng.random() < 0.7 else (peer.close, connection.close)
        first()
        time.sleep(rng.choice([0, 60e-6, 300e-6]) * rng.random())
        second()
        closes += 1
    context.term()
    print(closes)


@pytest.mark.slow
def test_a_connection_can_be_dropped_at_any_instant() -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", f"from tests.chaos.test_close import close_under_attack as f; f({seed})"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for seed in range(3)
    ]  # fmt: skip
    for child in children:
        out, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        assert int(out) >= 20
