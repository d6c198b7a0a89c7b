"""The room that a trainer has for new devices, and what one of them wants: what admission goes by, as numbers."""

from __future__ import annotations

import msgspec

from adc_edge.wire.messages import Hello


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """The needs of a new device, as far as it tells them; 0: it does not."""

    message_bytes: int = 0  # of its largest message
    messages_per_s: float = 0.0

    @classmethod
    def by(cls, hello: Hello) -> Wanted:
        """Return the needs that a Hello tells."""
        if not (needs := hello.needs):
            return cls()
        return cls(needs.largest_bytes, hello.micro_batches / needs.step_seconds if needs.step_seconds else 0.0)


class Room(msgspec.Struct, frozen=True, array_like=True):
    """The room for new devices; without arguments there is room for any."""

    devices: int | None = None  # so many more; None: any number
    message_bytes: int | None = None  # of one device's messages; None: any size
    part: float = 1.0  # of the head's time
    message_s: float = 0.0  # seconds of the head for one message

    def fits(self, wanted: Wanted) -> bool:
        """Return whether a new device would be admitted."""
        if self.devices is not None and self.devices <= 0:
            return False
        if self.message_bytes is not None and 0 < wanted.message_bytes > self.message_bytes:
            return False
        return wanted.messages_per_s * self.message_s <= self.part

    def less(self, wanted: Wanted) -> Room:
        """Return the room that is left once a device has come."""
        return Room(
            None if self.devices is None else self.devices - 1,
            None if self.message_bytes is None else self.message_bytes - wanted.message_bytes,
            max(0.0, self.part - wanted.messages_per_s * self.message_s),
            self.message_s,
        )
