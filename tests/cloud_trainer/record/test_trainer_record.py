"""The record of a real trainer socket: who is connected, what was refused, what was judged."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.record import use
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.precision import encode
from adc_edge.errors import RefusedError
from adc_edge.security.keystore import allow, load_public, make_keys, pin, revoke
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.connection import ClientKeys
from adc_edge.wire.messages import Evaluate
from tests.serving import serving
from tests.stub_device import Device

Wait = Callable[[Callable[[], bool]], None]
ROOT = Path(__file__).parents[3]
DEVICE = """
import itertools, os, sys, time
from pathlib import Path
from adc_edge.storage.bundle import Bundle
from tests import stub_device
stub_device.NUMBERS = itertools.count(1000 * os.getpid())  # a journal that no other device has
device = stub_device.Device(Bundle.load(Path(sys.argv[1]), ()), sys.argv[2], session=int(sys.argv[3]))
device.session.open(30)
for step in range(int(sys.argv[4])):
    device.step(step)
print("ready", flush=True)
time.sleep(600)
"""


class Watched:
    """A trainer at work, and the lines that it writes."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server, self.path = server, path

    def lines(self, name: str) -> list[dict[str, Any]]:
        file = self.path / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [line for line in self.lines("events.jsonl") if line["kind"] in kinds]

    def kinds(self) -> str:
        """The deeds of devices, without refusals: a peer of an earlier test may knock at a port that is used again."""
        return " ".join(line["kind"] for line in self.events("joined", "away", "done"))


@pytest.fixture
def watched(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> Iterator[Watched]:
    with closing(RunDir(tmp_path / "run", {}, {})) as run_dir:
        sessions = SessionRegistry(run_dir.journal)
        checkpoints = TrainerCheckpoints(training, sessions, run_dir)
        with serving(Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints)) as server:
            yield Watched(server, tmp_path / "run")


@pytest.fixture
def device(bundle: Bundle, watched: Watched) -> Iterator[Device]:
    device = Device(bundle, watched.server.endpoint, session=0xAB)
    with closing(device.session):
        device.session.open(30)
        yield device


def judge(device: Device, step: int, part: int, images: int = 12) -> None:
    manifest, rng = device.bundle.manifest, np.random.default_rng(part)
    whole = rng.standard_normal((images, manifest.tokens, manifest.dim)).astype(np.float32)
    body = bytes(encode(whole, "fp32", rng.integers(0, 10, images).astype("<i4").tobytes()))
    device.session.submit(Evaluate(device.number, step, part, 1000 + part, len(body), images, "fp32"), body)
    device.session.result(30)


def test_a_step_tells_its_session_its_settings_and_its_link(device: Device, watched: Watched) -> None:
    device.step(0)
    device.settle()
    (line,) = watched.lines("metrics.jsonl")
    told = {name: line[name] for name in ("kind", "session", "device", "step", "head_step", "kept", "micro_batches")}
    assert told == {
        "kind": "step",
        "session": "00000000000000ab",
        "device": "test",
        "step": 0,
        "head_step": 1,
        "kept": 7,
        "micro_batches": 1,
    }
    assert (line["precision"], line["gradient_precision"]) == ("fp32", "fp32")
    assert line["down_mbit_s"] > 0
    assert line["rtt_ms"] > 0
    assert {"up_mbit_s", "time", "loss", "accuracy", "seconds_cloud", "body_bytes_up"} <= line.keys()


def test_an_evaluation_is_one_line_before_the_next_step_or_the_end(device: Device, watched: Watched) -> None:
    device.step(0)
    judge(device, 1, 0)
    judge(device, 1, 1)
    device.settle()
    assert len(watched.lines("metrics.jsonl")) == 1
    device.step(1)
    judge(device, 2, 0)
    device.session.close_session()
    lines = watched.lines("metrics.jsonl")
    assert [(line["kind"], line["step"], line["head_step"]) for line in lines] == [
        ("step", 0, 1),
        ("evaluation", 1, 1),
        ("step", 1, 2),
        ("evaluation", 2, 2),
    ]
    assert [line["images"] for line in lines if line["kind"] == "evaluation"] == [24, 12]
    assert {line["session"] for line in lines} == {"00000000000000ab"}


def test_a_session_joins_and_is_done(device: Device, watched: Watched, eventually: Wait) -> None:
    device.step(0)
    device.session.close_session()
    device.session.close()
    joined, done = watched.events("joined", "away", "done")
    assert (joined["kind"], joined["session"], joined["device"], joined["step"]) == (
        "joined",
        "00000000000000ab",
        "test",
        0,
    )
    assert (done["kind"], done["step"]) == ("done", 1)
    eventually(lambda: watched.server._guard.count() == 0)
    assert watched.kinds() == "joined done"  # no word about the end of its connection


def test_a_link_that_is_cut_and_comes_back_is_away_and_joined(
    device: Device, watched: Watched, eventually: Wait
) -> None:
    device.step(0)
    device.session.channel.disconnect()
    eventually(lambda: watched.kinds() == "joined away")
    device.step(1)
    assert watched.kinds() == "joined away joined"
    assert watched.events("joined")[-1]["step"] == 1


@pytest.mark.parametrize("busy", [False, True])
def test_a_device_that_is_killed_is_away_within_ten_seconds_and_no_other_one(
    bundle: Bundle, watched: Watched, eventually: Wait, busy: bool
) -> None:
    arguments = [str(bundle.path), watched.server.endpoint, "205", "2"]
    victim = subprocess.Popen([sys.executable, "-c", DEVICE, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        other = Device(bundle, watched.server.endpoint, session=206)
        with closing(other.session):
            other.session.open(30)
            start = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            step = 0
            while not watched.events("away"):
                assert time.monotonic() - start < 10
                if busy:
                    other.step(step)
                    step += 1
            assert [line["session"] for line in watched.events("away")] == [f"{205:016x}"]
            late = socket.create_connection(("127.0.0.1", int(watched.server.endpoint.rpartition(":")[2])))
            eventually(lambda: watched.server._guard.count() == 2)  # it has the descriptor's number now
            late.close()
            eventually(lambda: watched.server._guard.count() == 1)
            other.step(step)
        assert [line["session"] for line in watched.events("away")][:1] == [f"{205:016x}"]
        assert watched.kinds().startswith("joined joined away")
    finally:
        victim.kill()
        victim.communicate()


def rejected_stranger(bundle: Bundle, watched: Watched, session: int) -> dict[str, Any]:
    """The event of a device that asks for ``session`` with another bundle."""
    stranger = Device(bundle, watched.server.endpoint, session=session)
    hello = msgspec.structs.replace(stranger.hello(), bundle="0" * 64)
    stranger.session._hello = lambda: hello
    with closing(stranger.session), pytest.raises(RefusedError, match="bundle"):
        stranger.session.open(30)
    (told,) = watched.events("rejected")
    return told


def test_a_refused_device_is_named_with_the_session_that_it_asked_for(bundle: Bundle, watched: Watched) -> None:
    told = rejected_stranger(bundle, watched, 0xCD)
    assert (told["code"], told["session"], told["device"]) == ("bundle", "00000000000000cd", "test")
    assert "refused a peer without a session (bundle)" in told["text"]


def test_a_stranger_that_names_a_connected_session_does_not_make_it_look_refused(
    device: Device, bundle: Bundle, watched: Watched
) -> None:
    told = rejected_stranger(bundle, watched, 0xAB)
    assert "session" not in told
    device.step(0)


def test_what_the_trainer_uses_is_told_while_it_works(
    device: Device, watched: Watched, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use, "USE_EVERY_S", 0.05)
    for step in range(5):
        device.step(step)
        time.sleep(0.02)
    eventually(lambda: bool(watched.events("use")))
    told = watched.events("use")[-1]
    assert told["seconds_head"] > 0
    assert told["seconds_update"] > 0
    assert told["memory_mb"] > 0
    assert told["connections"] == 1
    time.sleep(0.3)
    before = len(watched.events("use"))
    time.sleep(0.3)
    assert len(watched.events("use")) == before  # idle


def test_a_device_whose_key_is_revoked_or_begins_another_session_is_away(
    bundle: Bundle, training: HeadTraining, tmp_path: Path, eventually: Wait
) -> None:
    cloud, orin = tmp_path / "cloud", tmp_path / "orin"
    make_keys(cloud)
    make_keys(orin)
    pin(orin, load_public(cloud / "public.key"))
    allow(cloud, "orin", load_public(orin / "public.key"))
    with closing(RunDir(tmp_path / "run", {}, {})) as run_dir, ExitStack() as stack:
        sessions = SessionRegistry(run_dir.journal)
        checkpoints = TrainerCheckpoints(training, sessions, run_dir)
        server = Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints, Access(cloud))
        watched = Watched(stack.enter_context(serving(server)), tmp_path / "run")
        for number in (1, 2):
            device = Device(bundle, server.endpoint, number, ClientKeys.load(orin))
            stack.enter_context(closing(device.session))
            device.session.open(30)
        assert watched.kinds() == "joined away joined"
        assert [line["session"] for line in watched.events("away")] == [f"{1:016x}"]
        revoke(cloud, "orin")
        eventually(lambda: f"{2:016x}" in [line["session"] for line in watched.events("away")])
