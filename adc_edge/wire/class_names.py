"""Class names, with or without counts, <-> the body of a ClassNames message.

They are checked like everything that comes from the other side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from adc_edge.arrays import Body
from adc_edge.errors import DataError, ProtocolError
from adc_edge.wire.message import Count
from adc_edge.wire.messages import NAMES_BYTES

NAME_CHARACTERS = 256
_MOST = 2**16

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARACTERS)]
_Names = Annotated[list[_Name], msgspec.Meta(max_length=_MOST)]
_Counts = Annotated[list[Count], msgspec.Meta(max_length=_MOST)]
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[list[str]] = msgspec.msgpack.Decoder(_Names)
_COUNTED: msgspec.msgpack.Decoder[tuple[list[str], list[int]]] = msgspec.msgpack.Decoder(tuple[_Names, _Counts])


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
    return _each_once(names)


def pack_class_counts(images: Mapping[str, int]) -> bytes | None:
    """Return the body with the number of training images of each class; None if it is too large for a message."""
    body = _ENCODER.encode((list(images), list(images.values())))
    fits = len(body) <= NAMES_BYTES and len(images) <= _MOST
    return body if fits and max(map(len, images), default=1) <= NAME_CHARACTERS else None


def unpack_class_counts(body: Body) -> dict[str, int]:
    """Return the number of training images of each class in a body.

    Raises:
        ProtocolError: code ``malformed``: it is no array of names and one of counts, or a name is there twice.
    """
    try:
        names, images = _COUNTED.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"class counts that are none ({error})", "names and counts", "use one version") from None
    if len(names) != len(images):
        received = f"{len(names)} class names with {len(images)} counts"
        raise ProtocolError(received, "a count for each name", "use one version")
    return dict(zip(_each_once(names), images, strict=True))


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ProtocolError("a class name twice", "each name once", "use one version")
    return names
