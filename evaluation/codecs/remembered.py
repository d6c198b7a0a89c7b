"""Rows of numbers that device and trainer remember of each image, for methods that send only a change.

An image's key is a hash of its pixels as the trunk sees them, so a flipped image is another image. The device gives
each key a slot, and sends the slots; the trainer never sees a key. Both sides keep the rows of all slots and write the
same rows into them in each step. Where the memory is full, the slots that were given first are given again.

    device   slots = memory.look_up(image_keys(images))     slots.packed goes up
    trainer  slots = unpack_slots(packed)
    both     before = rows.read(slots)                      zeros for an image that is new
    both     rows.write(slots, after)                       the same numbers on both sides

Letters: B images.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from adc_edge.arrays import Array, Arrays, Float32, Int64
from adc_edge.errors import ProtocolError, SettingError

UInt64 = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]
KEY_BYTES = 8
SLOT_BYTES = 4
MOST_SLOTS = 2**31  # the highest bit of a packed slot marks a new image
_NEW = np.uint32(MOST_SLOTS)


def image_keys(images: Tensor) -> UInt64:
    """Return a 64-bit BLAKE2b hash of each image's pixels: ``[B, 3, H, W]`` as the trunk sees them -> ``[B]``."""
    pixels = np.ascontiguousarray(images.detach().float().cpu().numpy())
    digests = b"".join(hashlib.blake2b(image.tobytes(), digest_size=KEY_BYTES).digest() for image in pixels)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


class Slots(NamedTuple):
    """The slots of a batch's images."""

    numbers: Int64  # [B]
    new: BoolArray  # [B], True: nothing is remembered of the image

    @property
    def packed(self) -> bytes:
        """The slots as they are sent: ``SLOT_BYTES`` for each image."""
        return (self.numbers.astype(np.uint32) | self.new * _NEW).astype("<u4").tobytes()


def unpack_slots(data: memoryview, images: int) -> Slots:
    """Read the slots of ``images`` images back.

    Raises:
        ProtocolError: the length is wrong.
    """
    if len(data) != SLOT_BYTES * images:
        raise ProtocolError(
            f"{len(data)} bytes of slots",
            f"{SLOT_BYTES * images} bytes",
            "install the same version of adc-edge on both sides",
            "size",
        )
    packed = np.frombuffer(data, "<u4")
    return Slots((packed & ~_NEW).astype(np.int64), packed >= _NEW)


class ImageSlots:
    """The device's table of keys and slots. One slot holds one image; images of equal pixels share it.

    Args:
        capacity: number of slots; at least the images of a batch.

    Raises:
        SettingError: ``capacity`` is not in 1 .. 2**31.
    """

    def __init__(self, capacity: int) -> None:
        if not 1 <= capacity <= MOST_SLOTS:
            raise SettingError(f"memory for {capacity} images", f"1 to {MOST_SLOTS}", "choose another number")
        self.capacity = capacity
        self._slots: OrderedDict[int, int] = OrderedDict()  # slot of each key, the oldest first

    def __len__(self) -> int:
        """Number of images that have a slot."""
        return len(self._slots)

    def look_up(self, keys: UInt64) -> Slots:
        """Return the slots of a batch's keys ``[B]``, and give a slot to each new key.

        A new image never takes the slot of another image of the batch.

        Raises:
            SettingError: the batch has more different images than there are slots.
        """
        batch = [int(key) for key in keys]
        if len(set(batch)) > self.capacity:
            raise SettingError(
                f"a batch of {len(set(batch))} images", f"at most {self.capacity}, the memory", "enlarge the memory"
            )
        new = np.array([key not in self._slots for key in batch], np.bool_)
        needed, held = [key for key in dict.fromkeys(batch) if key not in self._slots], set(batch)
        for key in needed:
            self._slots[key] = len(self._slots) if len(self._slots) < self.capacity else self._free(held)
        return Slots(np.array([self._slots[key] for key in batch], np.int64), new)

    def _free(self, held: set[int]) -> int:
        """Take the oldest slot from an image that is not in the batch."""
        return self._slots.pop(next(key for key in self._slots if key not in held))

    def arrays(self) -> dict[str, Any]:
        """Return the table as arrays, the oldest key first."""
        return {
            "keys": np.array(list(self._slots), np.uint64),
            "slots": np.array(list(self._slots.values()), np.int64),
        }

    def restore(self, arrays: Arrays) -> None:
        """Restore the table that ``arrays`` returned."""
        self._slots = OrderedDict(zip(arrays["keys"].tolist(), arrays["slots"].tolist(), strict=True))


class RememberedRows:
    """One side's rows by slot: zeros until they are written.

    Args:
        shape: shape of an image's row, for example ``(N, D)``.
        capacity: number of slots, as on the other side.
        dtype: number format in which rows are kept; float16 rounds, and values beyond its range become its largest.
    """

    def __init__(self, shape: tuple[int, ...], capacity: int, dtype: npt.DTypeLike = np.float16) -> None:
        self.shape, self.capacity = shape, capacity
        self._rows: Array = np.zeros((0, *shape), dtype)  # grows by doubling

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take in memory now."""
        return self._rows.nbytes

    def read(self, slots: Slots) -> Float32:
        """Return the rows ``[B, *shape]`` of a batch; zeros for new images.

        Raises:
            ProtocolError: a slot is out of range, or was never written and is not new.
        """
        self._check(slots, len(self._rows))
        found = np.zeros((len(slots.numbers), *self.shape), np.float32)
        found[~slots.new] = self._rows[slots.numbers[~slots.new]]
        return found

    def write(self, slots: Slots, rows: Float32) -> None:
        """Remember the rows ``[B, *shape]`` of a batch; of images in one slot the last remains.

        Raises:
            ProtocolError: a slot is out of range.
        """
        self._check(slots, self.capacity)
        self._grow(int(slots.numbers.max(initial=-1)) + 1)
        if self._rows.dtype == np.float16:
            largest = float(np.finfo(np.float16).max)
            rows = np.clip(rows, -largest, largest)
        self._rows[slots.numbers] = rows

    def _check(self, slots: Slots, known: int) -> None:
        numbers, limit = slots.numbers, np.where(slots.new, self.capacity, known)
        if (numbers >= limit).any() or (numbers < 0).any():
            raise ProtocolError(
                f"slots up to {numbers.max()} of {known}",
                "slots that were written before",
                "start both sides from the same checkpoint",
                "size",
            )

    def _grow(self, needed: int) -> None:
        if needed > len(self._rows):
            size = min(self.capacity, max(needed, 2 * len(self._rows)))
            more = np.zeros((size - len(self._rows), *self.shape), self._rows.dtype)
            self._rows = np.concatenate([self._rows, more])

    def arrays(self) -> dict[str, Any]:
        """Return the rows as an array."""
        return {"rows": self._rows}

    def restore(self, arrays: Arrays) -> None:
        """Restore the rows that ``arrays`` returned."""
        self._rows = np.array(arrays["rows"])
