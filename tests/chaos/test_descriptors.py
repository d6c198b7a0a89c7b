"""Unauthenticated peers take all of a trainer's descriptors: its device goes on, and others connect afterwards."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adc_edge.security.keystore import allow, load_public, make_keys, pin
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.connection import ClientKeys
from tests.stub_device import Device


@pytest.mark.slow
def test_a_trainer_without_descriptors_left_keeps_serving_its_device(
    bundle: Bundle, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    for name in ("trainer", "alice", "bob"):
        make_keys(tmp_path / name)
    for name in ("alice", "bob"):
        allow(tmp_path / "trainer", name, load_public(tmp_path / name / "public.key"))
        pin(tmp_path / name, load_public(tmp_path / "trainer" / "public.key"))
    port = free_port()
    command = f"{sys.executable} -m adc_edge trainer --bundle {bundle_dir} --bind tcp://127.0.0.1:{port} --threads 1"
    more = f"--keys {tmp_path / 'trainer'} --run {tmp_path / 'run'} --checkpoint-every 10"
    with (tmp_path / "log").open("w") as log:
        trainer = subprocess.Popen(["bash", "-c", f"ulimit -n 90; exec {command} {more}"], stdout=log, stderr=log)
    devices = [
        Device(bundle, f"tcp://127.0.0.1:{port}", number, ClientKeys.load(tmp_path / name))
        for number, name in enumerate(("alice", "bob"))
    ]
    others: list[socket.socket] = []
    try:
        devices[0].session.open(60)
        devices[0].step(0)
        for _ in range(200):  # more than descriptors and queue together
            others.append(socket.socket())
            others[-1].setblocking(False)
            others[-1].connect_ex(("127.0.0.1", port))
        for step in range(1, 40):
            devices[0].step(step)
            time.sleep(0.05)
        assert devices[0].session.outages == 0
        for other in others:
            other.close()
        devices[1].session.open(30)
        devices[1].step(0)
        assert trainer.poll() is None
    finally:
        for device in devices:
            device.session.close()
        for other in others:
            other.close()
        trainer.terminate()
        assert trainer.wait(20) == 0, (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 41
    assert "may no longer connect" not in (tmp_path / "log").read_text()
