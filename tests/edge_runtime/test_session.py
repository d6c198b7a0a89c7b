"""A device's session with a real trainer socket: refusals by name, outages, bytes by the kernel's count."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.served_session import SessionRecord
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.choosing.link import PROBE_BYTES, probe_link
from adc_edge.errors import LinkError, ProtocolError, RefusedError
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import LinkLost, Stopped
from adc_edge.wire.framing import to_frames
from adc_edge.wire.headers import unpack_from_trainer
from adc_edge.wire.link_messages import Ping, Pong
from adc_edge.wire.messages import SEAL_BYTES, VERSION, Hello, Refused, Step
from adc_edge.wire.sockets import check_endpoint
from tests.serving import logged
from tests.stub_device import Device


@pytest.fixture
def device(bundle: Bundle, server: Server) -> Iterator[Device]:
    device = Device(bundle, server.endpoint)
    device.session.open(30)
    yield device
    device.session.close()


def test_a_step_is_answered_with_a_gradient_of_the_same_shape(device: Device) -> None:
    answer, body = device.step(0)
    gradient = np.frombuffer(body, np.float32).reshape(device.shape)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    assert answer.loss > 0
    assert answer.seconds_cloud > 0


def test_a_step_sent_twice_is_applied_once_and_answered_twice_alike(device: Device, training: HeadTraining) -> None:
    first = device.step(0)
    again = device.step(0)
    device.settle()
    assert training.steps == 1
    assert first == again
    device.step(1)
    device.settle()
    assert training.steps == 2


def test_a_step_out_of_order_is_refused(device: Device) -> None:
    with pytest.raises(RefusedError, match=r"order.*step 5"):
        device.step(5)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": VERSION + 1}, "version"),
        ({"bundle": "0" * 64}, "bundle"),
    ],
)
def test_another_version_or_bundle_is_refused_by_name(
    bundle: Bundle, server: Server, change: dict[str, object], code: str
) -> None:
    device = Device(bundle, server.endpoint)
    hello = {"version": VERSION, "bundle": bundle.digest, "session": 1, "incarnation": 1, "device": "x", "next_step": 0}
    hello |= {"durable": 0, "oldest": 0, **change}
    device.session._hello = lambda: Hello(**hello)  # type: ignore[arg-type]
    with pytest.raises(RefusedError) as caught:
        device.session.open(10)
    assert caught.value.code == code
    assert f"({code})" in str(caught.value)
    assert any(f"({code})" in line for line in server.lines)  # type: ignore[attr-defined]
    device.session.close()


def test_a_device_that_sent_no_hello_is_refused_as_unknown(bundle: Bundle, server: Server) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    device = Device(bundle, server.endpoint)
    device.session.close()
    with context, context.socket(zmq.DEALER) as raw:
        raw.connect(server.endpoint)
        for frames in to_frames(*device.message(0)):
            raw.send_multipart(frames)
        assert raw.poll(10_000)
        refused = unpack_from_trainer(raw.recv_multipart()[0][:-SEAL_BYTES])
    assert isinstance(refused, Refused)
    assert refused.code == "unknown-device"


def test_an_oversize_step_is_refused_and_the_next_one_served(device: Device) -> None:
    message, body = device.message(0)
    device.session.submit(
        Step(**{**{n: getattr(message, n) for n in message.__struct_fields__}, "images": 10**6}), body
    )
    with pytest.raises(RefusedError, match="shape"):
        device.session.result()
    device.step(0)


def test_a_label_outside_the_classes_is_refused_by_the_trainer_too(device: Device) -> None:
    message, body = device.message(0)
    bad = np.frombuffer(body[-12 * message.triples :], "<i4").copy()
    bad[1] = 10
    device.session.submit(message, body[: -12 * message.triples] + bad.tobytes())
    with pytest.raises(RefusedError, match="labels from"):
        device.session.result()


def test_activations_that_are_not_finite_are_refused_and_change_nothing(device: Device, training: HeadTraining) -> None:
    message, body = device.message(0)
    device.session.submit(message, np.float32(np.nan).tobytes() + body[4:])
    with pytest.raises(RefusedError, match="nan"):
        device.session.result()
    assert training.steps == 0


def test_garbage_from_unauthenticated_peers_does_not_disturb_a_device_at_work(device: Device, server: Server) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    rng = np.random.default_rng(0)
    host, port = server.endpoint.removeprefix("tcp://").split(":")
    with context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(server.endpoint)
        for step in range(5):
            for _ in range(20):
                peer.send_multipart([rng.bytes(int(rng.integers(0, 200))) for _ in range(int(rng.integers(1, 5)))])
            with socket.create_connection((host, int(port))) as plain:
                plain.sendall(rng.bytes(100))
            device.step(step)


def test_unreadable_answers_end_the_run_after_two_reconnects(device: Device) -> None:
    device.session._dim += 1
    device.session.submit(*device.message(0))
    with pytest.raises(ProtocolError, match="a gradient of"):
        device.session.result()
    assert device.session.outages == 2


def test_a_host_that_does_not_exist_is_one_clear_error(bundle: Bundle) -> None:
    device = Device(bundle, "tcp://no-such-host.invalid:5700")
    with pytest.raises(LinkError, match=r"no-such-host\.invalid"):
        device.session.open(1)
    device.session.close()


@pytest.mark.parametrize("count", [3, 64])
def test_devices_are_served_side_by_side(bundle: Bundle, server: Server, training: HeadTraining, count: int) -> None:
    devices = [Device(bundle, server.endpoint, session) for session in range(count)]
    failures: list[BaseException] = []

    def work(device: Device) -> None:
        try:
            device.session.open(30)
            for step in range(4):
                device.step(step)
            device.session.close_session()
            device.session.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert training.steps == 4 * count
    assert server.sessions.finished() == count


def test_a_trainer_that_is_not_there_is_named_with_the_time_that_was_tried(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    device = Device(bundle, "tcp://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(LinkError, match=r"no trainer at tcp://127\.0\.0\.1:9 after \d+ s"):
        device.session.open(1)
    assert time.monotonic() - start < 10
    assert "waiting for the trainer at tcp://127.0.0.1:9" in caplog.text
    device.session.close()


def test_waiting_ends_when_asked_to_stop(bundle: Bundle) -> None:
    device = Device(bundle, "tcp://127.0.0.1:9")
    threading.Timer(0.5, lambda: setattr(device, "stop", True)).start()
    with pytest.raises(Stopped):
        device.session.open(None)
    device.session.close()


def test_a_trainer_that_dies_and_returns_continues_where_the_device_stands(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    over = threading.Event()
    server = Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(tmp_path))
    endpoint = server.endpoint
    thread = threading.Thread(target=server.serve, args=(over.is_set,))
    thread.start()
    device = Device(bundle, endpoint)
    device.session.open(30)
    device.step(0)
    over.set()
    thread.join()
    server.close()

    again: list[Server] = []
    over.clear()

    def return_later() -> None:
        time.sleep(1.5)
        sessions = SessionRegistry(tmp_path)
        sessions.restore({1: SessionRecord("test", "", 1)})
        again.append(Server(bundle, training, endpoint, sessions))
        again[0].serve(over.is_set)

    thread = threading.Thread(target=return_later)
    thread.start()
    with logged() as lines:
        device.step(1)
        device.settle()
    assert training.steps == 2
    assert device.session.outages == 1
    assert "link lost" in caplog.text
    assert "the trainer is back" in caplog.text
    assert not any("applied here" in line for line in lines)  # both sides agreed on the step
    device.session.close()
    over.set()
    thread.join()
    again[0].close()


def test_after_a_cut_in_mid_message_the_device_reconnects_and_the_step_is_applied_once(
    bundle: Bundle, server: Server, training: HeadTraining, proxy_type: Any
) -> None:
    with proxy_type(server.endpoint) as proxy:
        device = Device(bundle, proxy.endpoint)
        device.shape = (8, 17, bundle.manifest.dim)
        device.session.open(30)
        device.step(0)
        for step in range(1, 6):
            proxy.cut_after(2_000 * step)
            device.step(step)
        device.settle()
        assert training.steps == 6
        assert proxy.cuts == 5
        device.session.close()


def test_bytes_equal_the_count_of_a_proxy_in_between(bundle: Bundle, server: Server, proxy_type: Any) -> None:
    with proxy_type(server.endpoint) as proxy:
        device = Device(bundle, proxy.endpoint)
        device.session.open(30)
        for step in range(20):
            device.step(step)
        device.session.close_session()
        up, down = device.session.channel.totals()
        assert up == pytest.approx(proxy.up, rel=0.005)
        assert down == pytest.approx(proxy.down, rel=0.005)
        device.session.close()
        assert device.session.channel.totals() == (up, down)


def test_the_sum_of_the_frames_is_close_to_the_kernel_count(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.shape = (8, 17, device.bundle.manifest.dim)
    for step in range(10):
        device.step(step)
    kernel = device.session.channel.totals()
    monkeypatch.setattr("adc_edge.wire.channel.KERNEL_COUNTS", False)
    assert device.session.channel.totals() == pytest.approx(kernel, rel=0.01)


def test_ipv6_addresses_work(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    server = Server(
        bundle, training, check_endpoint("tcp://[::1]:0", insecure=False).replace(":0", ":*"), SessionRegistry(tmp_path)
    )
    over = threading.Event()
    thread = threading.Thread(target=server.serve, args=(over.is_set,))
    thread.start()
    device = Device(bundle, server.endpoint)
    device.session.open(10)
    device.step(0)
    device.session.close()
    over.set()
    thread.join()
    server.close()


def test_pings_need_no_session(server: Server) -> None:
    channel = Channel(server.endpoint)
    channel.open(10)
    channel.send(Ping(5, 1000, 3, 5), b"abc")
    answer, body = channel.receive(10_000)
    assert isinstance(answer, Pong)
    assert (answer.nonce, body.nbytes) == (5, 1000)
    with pytest.raises(LinkLost, match="no answer"):
        channel.receive(200)
    channel.close()


def test_a_step_is_not_even_received_before_a_hello(bundle: Bundle, server: Server) -> None:
    device = Device(bundle, server.endpoint)
    message, body = device.message(0)
    device.session.close()
    channel = Channel(server.endpoint)
    channel.open(10)
    channel.send(message, body[:0])  # a header that asks for room, and none of the bytes
    with pytest.raises(LinkLost, match="unknown-device"):
        channel.receive(5_000)
    assert server.sessions.held_bytes() == 0
    channel.close()


def test_a_trainer_that_cannot_create_its_log_refuses_and_the_device_waits(bundle: Bundle, server: Server) -> None:
    place = server.sessions._directory
    place.parent.mkdir(exist_ok=True)
    place.write_text("a file where a directory is wanted")
    device = Device(bundle, server.endpoint)
    with pytest.raises(LinkError, match="busy"):
        device.session.open(1)
    assert any("(busy)" in line for line in server.lines)  # type: ignore[attr-defined]
    place.unlink()
    device.session.open(10)
    device.step(0)
    device.session.close()


def test_the_link_is_measured_without_a_session(bundle: Bundle, server: Server) -> None:
    device = Device(bundle, server.endpoint)
    link = probe_link(device.session.channel, 100_000, 1_000, wait_s=30)
    assert 0 < link.rtt < 5
    assert 0 <= link.up_byte * 100_000 < 5
    assert 0 <= link.down_byte * 1_000 < 5
    up, down = device.session.channel.totals()
    assert up > 3 * PROBE_BYTES > down
    assert not any("device" in line for line in server.lines)  # type: ignore[attr-defined]
    device.session.open(30)
    device.step(0)
    device.session.close()


def test_a_link_that_breaks_while_it_is_measured_is_measured_again(
    bundle: Bundle, server: Server, proxy_type: Any
) -> None:
    with proxy_type(server.endpoint) as proxy:
        device = Device(bundle, proxy.endpoint)
        proxy.cut_after(50_000)
        assert probe_link(device.session.channel, 100_000, 100_000, wait_s=60).rtt > 0
        assert proxy.cuts == 1
        device.session.close()
