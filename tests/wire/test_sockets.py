"""Addresses are checked, and a peer that closes its connection does not end the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adc_edge.errors import SettingError
from adc_edge.wire.sockets import check_endpoint


@pytest.mark.parametrize(
    "endpoint", ["tcp://10.0.0.1:5700", "tcp://example.com:1", "tcp://[2001:db8::1]:5", "tcp://*:5"]
)
def test_anything_but_loopback_must_be_asked_for(endpoint: str) -> None:
    with pytest.raises(SettingError, match="loopback"):
        check_endpoint(endpoint, insecure=False)
    assert check_endpoint(endpoint, insecure=True) == endpoint
    assert check_endpoint(endpoint, insecure=False, keys=True) == endpoint


def test_keys_and_insecure_contradict_each_other() -> None:
    with pytest.raises(SettingError, match="leave one out"):
        check_endpoint("tcp://127.0.0.1:5700", insecure=True, keys=True)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5700", "ipc://x", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:port"])
def test_a_malformed_address_is_refused(endpoint: str) -> None:
    with pytest.raises(SettingError, match="tcp://HOST:PORT"):
        check_endpoint(endpoint, insecure=True)


HANG_UP = """
import sys, time, zmq
from adc_edge.wire.sockets import set_socket_options
both = zmq.Context(), zmq.Context()
router, dealer = both[0].socket(zmq.ROUTER), both[1].socket(zmq.DEALER)
for socket in (router, dealer):
    set_socket_options(socket, "tcp://127.0.0.1:0")
    socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
router.bind("tcp://127.0.0.1:*")
dealer.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
for _ in range(2000):
    dealer.send(bytes(20_000))
time.sleep(1.0)
dealer.close(0)
both[1].term()
time.sleep(1.5)
print("alive")
both[0].destroy(linger=0)
"""


def test_a_peer_that_closes_its_connection_while_the_loop_is_busy_does_not_end_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANG_UP], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
