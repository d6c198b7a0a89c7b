"""Base class of all messages, the types of their numbers and texts, and the size of a piece."""

from __future__ import annotations

from typing import Annotated

import msgspec

CHUNK_BYTES = 64 * 1024  # takes 5.2 s at 0.1 Mbit/s, less than the heartbeat time-out

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Message(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    """Base class of all messages."""
