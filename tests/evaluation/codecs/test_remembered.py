"""The memory of images that device and trainer share, step by step against a dictionary."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from adc_edge.errors import ProtocolError, SettingError
from adc_edge.evaluation.codecs.remembered import (
    SLOT_BYTES,
    ImageSlots,
    RememberedRows,
    Slots,
    image_keys,
    unpack_slots,
)


def keys(*names: int) -> np.ndarray:
    return np.array(names, np.uint64)


def test_a_key_is_the_hash_of_the_pixels_so_a_flip_is_another_image() -> None:
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = image_keys(torch.cat([images, images[:1], images[:1].flip(3)]))
    assert found.dtype == np.uint64
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 4
    expected = hashlib.blake2b(images[1].numpy().tobytes(), digest_size=8).digest()
    assert found[1] == int.from_bytes(expected, "little")


@pytest.mark.parametrize("capacity", [7, 12, 1000])
def test_both_sides_remember_each_image_from_packed_slots_alone(capacity: int) -> None:
    """Random batches, some images twice in a batch; a dictionary of the last rows is the reference."""
    rng = np.random.default_rng(0)
    table = ImageSlots(capacity)
    device, trainer = (RememberedRows((2, 3), capacity, np.float32) for _ in range(2))
    reference: dict[int, np.ndarray] = {}
    forgotten = 0
    for _ in range(50):
        batch = rng.integers(20, size=5).astype(np.uint64)
        slots = table.look_up(batch)
        packed = slots.packed
        assert len(packed) == SLOT_BYTES * 5
        arrived = unpack_slots(memoryview(packed), 5)
        assert np.array_equal(device.read(slots), trainer.read(arrived))
        for key, new, row in zip(batch.tolist(), slots.new, device.read(slots), strict=True):
            known = key in reference
            forgotten += bool(new and known)
            assert known or new
            assert np.array_equal(row, np.zeros((2, 3)) if new else reference[key])
        rows = rng.standard_normal((5, 2, 3)).astype(np.float32)
        device.write(slots, rows)
        trainer.write(arrived, rows)
        reference |= dict(zip(batch.tolist(), rows, strict=True))
    assert (forgotten > 0) == (capacity < 20)
    assert len(table) == min(capacity, 20)


def test_the_oldest_image_leaves_but_never_one_of_the_batch() -> None:
    table = ImageSlots(3)
    table.look_up(keys(1, 2, 3))
    assert table.look_up(keys(1, 4)).new.tolist() == [False, True]  # 2 leaves: 1 is in the batch
    assert table.look_up(keys(1, 3, 4)).new.tolist() == [False, False, False]
    assert table.look_up(keys(2)).new.tolist() == [True]
    with pytest.raises(SettingError, match="4 images"):
        table.look_up(keys(5, 6, 7, 8))


def test_half_precision_rounds_and_keeps_to_its_range() -> None:
    rows = RememberedRows((2,), 4)
    slots = Slots(np.array([2]), np.array([True]))
    rows.write(slots, np.array([[1e9, 1 / 3]], np.float32))
    known = Slots(slots.numbers, np.array([False]))
    assert rows.read(known).tolist() == [[65504.0, np.float32(np.float16(1 / 3))]]
    assert rows.nbytes == 3 * 2 * 2


def test_state_goes_through_arrays_bit_for_bit() -> None:
    table, rows = ImageSlots(3), RememberedRows((2,), 3)
    for batch in (keys(9, 2**63 + 5), keys(7), keys(8)):
        slots = table.look_up(batch)
        rows.write(slots, np.full((len(batch), 2), batch.astype(np.float32)[:, None] % 100))
    table_again, rows_again = ImageSlots(3), RememberedRows((2,), 3)
    table_again.restore(table.arrays())
    rows_again.restore(rows.arrays())
    for batch in (keys(7, 10), keys(8, 11, 2**63 + 5)):
        slots, again = table.look_up(batch), table_again.look_up(batch)
        assert slots.packed == again.packed
        assert np.array_equal(rows.read(slots), rows_again.read(again))


def test_slots_that_no_device_sends_are_refused() -> None:
    rows = RememberedRows((2,), 4)
    with pytest.raises(ProtocolError, match="slots"):
        rows.read(Slots(np.array([0]), np.array([False])))
    with pytest.raises(ProtocolError, match="slots"):
        rows.write(Slots(np.array([4]), np.array([True])), np.zeros((1, 2), np.float32))
    with pytest.raises(ProtocolError, match="bytes of slots"):
        unpack_slots(memoryview(bytes(7)), 2)
    for capacity in (0, 2**31 + 1):
        with pytest.raises(SettingError, match="memory"):
            ImageSlots(capacity)
