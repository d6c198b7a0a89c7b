"""A device or a trainer of version 0.8 works with this version's other side: what is new in a message is optional.

headers.json holds a header of every kind of message with all of its fields, as 0.8 wrote them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import UNSET
from rich.console import Console
from safetensors.torch import load_file

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.wire import framing, messages
from adc_edge.wire.headers import pack_header, unpack_from_device, unpack_from_trainer
from adc_edge.wire.message import Message
from tests.serving import serving

HEADERS = json.loads((Path(__file__).parent / "v0_8" / "headers.json").read_text())
FIELDS: dict[str, set[str]] = {header["fields"]["kind"]: set(header["fields"]) for header in HEADERS}


KINDS: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for side in (messages.FromDevice, messages.FromTrainer) for kind in get_args(side)
}


@pytest.mark.parametrize("recorded", HEADERS, ids=lambda header: str(header["fields"]["kind"]))
def test_a_header_is_read_and_written_with_the_same_fields(recorded: dict[str, Any]) -> None:
    kind, header = KINDS[recorded["fields"]["kind"]], bytes.fromhex(recorded["hex"])
    unpack = unpack_from_trainer if kind in get_args(messages.FromTrainer) else unpack_from_device
    message = unpack(header)
    assert type(message) is kind
    assert msgspec.msgpack.decode(pack_header(message)) == recorded["fields"]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_that_0_8_does_not_know_may_be_left_out(name: str) -> None:
    added = [field for field in msgspec.structs.fields(KINDS[name]) if field.encode_name not in FIELDS[name]]
    assert all(field.default is UNSET for field in added)


def without_new_fields(message: Message) -> bytes:
    """The header as 0.8 writes it, and as 0.8 reads one of this version: what it does not know is not there."""
    fields = msgspec.msgpack.decode(pack_header(message))
    assert fields["kind"] in FIELDS, "a message of a kind that 0.8 does not know"
    return msgspec.msgpack.encode({name: value for name, value in fields.items() if name in FIELDS[fields["kind"]]})


def outcome(bundle: Bundle, where: Path) -> tuple[dict[str, Any], bytes, dict[str, bytes]]:
    """Report, head and trunk of a short run with an evaluation."""
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / HEAD))
    training = HeadTraining(head, OptimizerSettings(lr=1e-3))
    with serving(Server(bundle, training, "tcp://127.0.0.1:*", SessionRegistry(where / "log"))) as server:
        settings = ServeSettings(
            bundle.path, server.endpoint, steps=4, run=where / "run", micro_batches=2, evaluate_images=32, threads=1
        )
        report = Serve(settings, Console(quiet=True), stop=lambda: False).run()
    trunk = load_file(where / "run" / "trunk.safetensors")
    return report, training.safetensors(), {name: value.numpy().tobytes() for name, value in trunk.items()}


def test_a_run_with_a_side_of_0_8_is_the_same_run(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, *expected = outcome(bundle, tmp_path / "new")
    monkeypatch.setattr(framing, "pack_header", without_new_fields)
    old, *found = outcome(bundle, tmp_path / "old")
    assert found == expected
    assert (old["steps"], old["accuracy"], old["loss"]) == (report["steps"], report["accuracy"], report["loss"])
    assert old["up_mbit_s"] is not None
    assert old["down_mbit_s"] is not None


def test_micro_batches_auto_needs_nothing_new_of_a_trainer(
    bundle: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "pack_header", without_new_fields)
    settings = ServeSettings(bundle.path, server.endpoint, steps=1, evaluate_images=16, threads=1)
    assert Serve(settings, Console(quiet=True), stop=lambda: False).run()["steps"] == 1
