"""The steps that a device told when its store began; they follow from its number of images, and must stay."""

from __future__ import annotations

import msgspec

from adc_edge.errors import ProtocolError
from adc_edge.wire.fleet_messages import SentSteps

BEGUN_FILE = "begun.json"


class BegunStore(msgspec.Struct, frozen=True):
    """Contents of begun.json: the first step that is kept, and the steps after which the device has sent all."""

    first: int
    sent: int

    @property
    def in_words(self) -> str:
        """The steps in words."""
        return f"{self.sent} steps" + (f", with a trunk frozen from step {self.first} on" if self.first else "")

    def check(self, sends: SentSteps) -> None:
        """Raise ProtocolError, code ``order``, if a device tells other steps now."""
        now = BegunStore(sends.first, sends.steps)
        if now != self:
            raise ProtocolError(
                f"a device that sends {now.in_words} (--freeze-after, --send-epochs)",
                f"{self.in_words}, as when its session began: these steps follow from its number of images",
                "restore the images that it had, or start both sides over with --fresh",
                "order",
            )
