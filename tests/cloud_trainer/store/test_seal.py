"""Records of the store are encrypted with a key of the trainer, and whatever is changed in them is found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.store.seal import StoreSeal
from adc_edge.errors import CheckpointError, SettingError

PATH = Path("00000001-0")
HEADER, BODY = b"header", b"activations of a picture" * 20


def opened(seal: StoreSeal, header: bytes, body: Body) -> tuple[bytes, bytes]:
    found, plain = seal.open(PATH, header, memoryview(body))
    return found, bytes(plain)


def test_a_record_is_read_by_the_key_that_sealed_it_alone() -> None:
    header, body = StoreSeal(b"key" * 10).seal(HEADER, BODY)
    assert b"picture" not in bytes(body)
    assert opened(StoreSeal(b"key" * 10), header, body) == (HEADER, BODY)
    for other in (StoreSeal(b"other"), StoreSeal()):
        with pytest.raises(CheckpointError, match="--keys that it had"):
            other.open(PATH, header, memoryview(body))


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_changed_record_is_found(place: int) -> None:
    seal = StoreSeal(b"key")
    header, body = seal.seal(HEADER, BODY)
    changed = bytearray(body)
    changed[place] ^= 1
    with pytest.raises(CheckpointError, match="changed since"):
        seal.open(PATH, header, memoryview(changed))
    with pytest.raises(CheckpointError, match="changed since"):
        seal.open(PATH, header[:-1] + b"!", memoryview(body))


def test_the_same_record_is_never_sealed_alike() -> None:
    seal = StoreSeal(b"key")
    assert seal.seal(HEADER, BODY)[1] != seal.seal(HEADER, BODY)[1]


def test_a_trainer_without_keys_writes_in_the_clear_and_a_key_given_later_reads_it() -> None:
    header, body = StoreSeal().seal(HEADER, BODY)
    assert bytes(body) == BODY
    assert opened(StoreSeal(b"key"), header, body) == (HEADER, BODY)


def test_a_record_in_the_clear_is_refused_where_all_are_sealed() -> None:
    header, body = StoreSeal().seal(HEADER, BODY)
    with pytest.raises(CheckpointError, match="00000001-0: a record in the clear"):
        StoreSeal(b"key").open(PATH, header, memoryview(body), in_clear=False)


def test_a_fingerprint_tells_keys_apart_and_not_the_key() -> None:
    one, same, other = (StoreSeal(secret) for secret in (b"key", b"key", b"other"))
    one.check(PATH, same.fingerprint)
    one.check(PATH, "")
    for seal, why in ((other, "has another key"), (StoreSeal(), "has no key")):
        with pytest.raises(CheckpointError, match=why):
            seal.check(PATH, one.fingerprint)


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(SettingError, match=r"pip install 'adc-edge\[cloud\]'"):
        StoreSeal(b"key")
