"""The stores of several devices: the room that they leave to each other, and what a restart deletes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from adc_edge.cloud_trainer.store.session_store import WholeStore
from adc_edge.cloud_trainer.store.stores import ActivationStores
from adc_edge.errors import ProtocolError
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.fleet_messages import SentSteps
from adc_edge.wire.messages import VERSION, Hello
from tests.cloud_trainer.store.messages import step


def hello(session: int, told_bytes: int) -> Hello:
    return Hello(VERSION, "", session, session, "orin", 0, 0, 0, sends=SentSteps(3, told_bytes))


def test_the_disk_is_promised_once(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that others have told and not yet sent are not free; those that they have sent are not counted twice."""
    stores, free = ActivationStores(tmp_path / "store", 1e12), 100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    stores.check(hello(1, 70_000))
    store = stores.begin(hello(1, 70_000))
    stores.check(hello(2, 30_000))
    with pytest.raises(ProtocolError, match=r"about 30\.0 kB to be kept"):
        stores.check(hello(2, 30_030))
    message, body = step(bundle, 0)
    store.keep_step(message, body)
    free -= store.held_bytes
    stores.check(hello(2, 30_000))
    stores.check(hello(1, 70_000))


def test_a_restart_deletes_what_no_checkpoint_knows_and_is_not_whole(bundle: Bundle, tmp_path: Path) -> None:
    stores = ActivationStores(tmp_path / "store", 1e9)
    for session in (1, 2, 3):
        store = stores.begin(hello(session, 0))
        store.keep_step(*step(bundle, 0))
        if session == 2:
            store.complete(WholeStore("orin", "", 1, 9, 0), lambda step: 1)
    again = ActivationStores(tmp_path / "store", 1e9)
    again.delete_others({3})
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [f"{session:016x}" for session in (2, 3)]
    assert [session for session, _ in again.whole()] == [2]
    assert again.known(1, 1) is None
