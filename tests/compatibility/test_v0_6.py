"""Bundles, run directories and messages of version 0.6 are read as they were written.

The files were made by adc-edge 0.6.0: a bundle of a tiny model, both sides of a run whose processes were killed after
step 18 of 40, the weights with which version 0.6.0 itself finished that run, and a header of every kind of message.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from msgspec import UNSET
from safetensors.numpy import load_file

from adc_edge.arrays import Float32
from adc_edge.storage.bundle import HEAD, TRUNK, Bundle
from adc_edge.wire import messages
from adc_edge.wire.headers import pack_header, unpack_from_device, unpack_from_trainer

HERE = Path(__file__).parent / "v0_6"
HEADERS = json.loads((HERE / "headers.json").read_text())
OPTIONS = "--threads 1 --checkpoint-every 8".split()


@pytest.mark.parametrize("recorded", HEADERS, ids=lambda header: str(header["fields"]["kind"]))
def test_a_header_is_read_and_written_with_the_same_fields(recorded: dict[str, object]) -> None:
    header, fields = bytes.fromhex(str(recorded["hex"])), dict(recorded["fields"])  # type: ignore[call-overload]
    kind = next(k for k in vars(messages).values() if getattr(k, "__name__", "").lower() == fields["kind"])
    unpack = unpack_from_trainer if kind in get_args(messages.FromTrainer) else unpack_from_device
    message = unpack(header)
    assert type(message) is kind
    values = [getattr(message, name) for name in message.__struct_fields__]
    assert [value for value in values if value is not UNSET] == list(fields.values())[1:]
    assert msgspec.msgpack.decode(pack_header(message)) == recorded["fields"]


def distance(ours: Mapping[str, Float32], theirs: Mapping[str, Float32]) -> float:
    """Mean difference of two sets of weights."""
    return float(np.concatenate([np.abs(ours[name] - theirs[name]).ravel() for name in theirs]).mean())


def test_the_bundle_opens_with_its_digests() -> None:
    bundle = Bundle.load(HERE / "bundle", (HEAD, TRUNK, "client.onnx", "golden.safetensors"))
    assert (bundle.manifest.split, bundle.manifest.precision, bundle.manifest.classes) == (1, "pca2", 10)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    for side in ("device", "trainer"):
        shutil.copytree(HERE / side, tmp_path / side)
    command = [sys.executable, "-m", "adc_edge"]
    bind = f"trainer --bundle {HERE / 'bundle'} --bind tcp://127.0.0.1:* --run {tmp_path / 'trainer'} --devices 1"
    with (tmp_path / "log").open("w") as log:
        trainer = subprocess.Popen([*command, *bind.split(), *OPTIONS], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "trainer" / "endpoint").exists():
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert trainer.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        endpoint = (tmp_path / "trainer" / "endpoint").read_text()
        where = f"serve --bundle {HERE / 'bundle'} --trainer {endpoint} --run {tmp_path / 'device'}"
        steps = "--steps 40 --micro-batches 2 --eval-every 0 --eval-images 8 --engine onnxruntime"
        words = [*command, *where.split(), *steps.split(), *OPTIONS]
        device = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
        assert device.returncode == 0, device.stdout + device.stderr
        assert trainer.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        trainer.kill()
        trainer.wait()
    for side, file in (("device", TRUNK), ("trainer", HEAD)):
        lines = [json.loads(line) for line in (tmp_path / side / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(40))
        exported, ours, theirs = (load_file(at / file) for at in (HERE / "bundle", tmp_path / side, HERE / "final"))
        assert ours.keys() == theirs.keys()
        assert distance(ours, theirs) < 0.1 * distance(exported, theirs)  # another processor may break a tie otherwise
