"""Class names <-> the body of a ClassNames message, checked like everything that comes from the other side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from adc_edge.arrays import Body
from adc_edge.errors import DataError, ProtocolError
from adc_edge.wire.messages import NAMES_BYTES

NAME_CHARACTERS = 256
_MOST = 2**16

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARACTERS)]
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[list[str]] = msgspec.msgpack.Decoder(
    Annotated[list[_Name], msgspec.Meta(max_length=_MOST)]
)


def pack_names(names: Sequence[str]) -> bytes:
    """Return the body of a message with these names; raises DataError if they are too many or too long for one."""
    body = _ENCODER.encode(list(names))
    longest = max(map(len, names), default=1)
    if len(body) > NAMES_BYTES or longest > NAME_CHARACTERS or len(names) > _MOST:
        raise DataError(
            f"{len(names)} class names of {len(body)} bytes, the longest of {longest} characters",
            f"at most {_MOST} of {NAMES_BYTES} bytes together, each of 1 to {NAME_CHARACTERS} characters",
            "shorten them, or put them into the bundle: adc-edge export --classes FILE",
        )
    return body


def unpack_names(body: Body) -> list[str]:
    """Return the names in a body.

    Raises:
        ProtocolError: code ``malformed``: it is no array of names, or a name is empty, too long or there twice.
    """
    try:
        names = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"class names that are none ({error})", "an array of names", "use one version") from None
    if len(set(names)) < len(names):
        raise ProtocolError("a class name twice", "each name once", "use one version")
    return names
