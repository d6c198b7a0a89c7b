"""Messages: plain MessagePack that another library reads, and nothing accepted that was not checked."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge import protocol
from adc_edge.errors import ProtocolError
from adc_edge.protocol import Evaluate, Hello, Limits, Step, pack, unpack_from_device, unpack_from_trainer

LIMITS = Limits(tokens=17, prefix=1, dim=32, classes=10, max_images=64)


def step(**changes: Any) -> Step:
    values: dict[str, Any] = {
        "session": 1,
        "step": 0,
        "micro_batch": 0,
        "micro_batches": 1,
        "transfer": 1,
        "images": 8,
        "clusters": 3,
        "kept": 5,
        "triples": 4,
        "precision": "fp32",
        "gradient": True,
    }
    values |= changes
    values.setdefault("body_bytes", 3 * 5 * 32 * 4 + 4 * 12)
    return Step(**values)


MESSAGES = [
    Hello(1, "a" * 64, 2**63 - 1, "orin", 3, 100),
    step(),
    Evaluate(1, 2, 3, 4, 100, 5, "int8"),
    protocol.Ping(9, 0),
    protocol.Bye(1),
    protocol.Chunk(1, 2, 65536),
    protocol.Welcome(1, 5, "0.1.0"),
    protocol.Refused("bundle", "a", "b", "c"),
    protocol.Gradient(1, 2, 0, 3, 8, "fp16", 0.5, 0.25, 0.1, None),
    protocol.Evaluated(1, 2, 3, 4, 2, 1.5, 0.1),
    protocol.Pong(9),
    protocol.ByeAck(1),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_comes_back_as_it_went(message: Any) -> None:
    from_device = isinstance(message, protocol.FromDevice)
    unpack = unpack_from_device if from_device else unpack_from_trainer
    assert unpack(pack(message)) == message
    assert len(pack(message)) <= protocol.HEADER_BYTES


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_headers_are_plain_messagepack_maps_with_a_kind(message: Any) -> None:
    read = msgpack.unpackb(pack(message))
    assert read["kind"] == type(message).__name__.lower()
    assert set(read) - {"kind"} <= set(message.__struct_fields__)


def test_a_hello_of_another_version_is_told_apart_even_if_its_fields_are_unknown() -> None:
    header = msgpack.packb({"kind": "hello", "version": 2, "fields": "of the future"})
    with pytest.raises(ProtocolError, match="protocol version 2") as caught:
        unpack_from_device(header)
    assert caught.value.code == "version"


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 0},
        {"images": 65},
        {"clusters": 0},
        {"clusters": 9},
        {"kept": 18},
        {"triples": 2},
        {"triples": 9},
        {"micro_batch": 1},
        {"body_bytes": 1},
        {"body_bytes": 2**31 - 1},
        {"precision": "fp16"},
    ],
)
def test_a_step_whose_numbers_do_not_fit_the_bundle_is_refused_before_allocation(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        LIMITS.step_bytes(step(**changes))
    assert caught.value.code in ("shape", "size")


def test_exact_sizes_are_accepted() -> None:
    assert LIMITS.step_bytes(step()) == 3 * 5 * 32 * 4 + 4 * 12
    assert LIMITS.evaluate_bytes(Evaluate(1, 0, 0, 1, 2 * 17 * 32 * 4 + 8, 2, "fp32")) == 2 * 17 * 32 * 4 + 8


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_refused_by_name_and_never_crash(header: bytes) -> None:
    for unpack in (unpack_from_device, unpack_from_trainer):
        try:
            unpack(header)
        except ProtocolError as error:
            assert error.code in protocol.REFUSAL_CODES  # noqa: PT017 - it may also be a message by chance


@given(st.sampled_from(MESSAGES), st.integers(0, 300), st.integers(1, 255))
@settings(max_examples=500, deadline=None)
def test_flipped_bytes_are_refused_or_read_as_a_message_within_its_types(message: Any, where: int, flip: int) -> None:
    header = bytearray(pack(message))
    header[where % len(header)] ^= flip
    for unpack in (unpack_from_device, unpack_from_trainer):
        try:
            seen = unpack(bytes(header))
        except ProtocolError:
            continue
        assert isinstance(seen, protocol.Message)


def test_an_oversize_header_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="header of") as caught:
        unpack_from_device(b"\x00" * (protocol.HEADER_BYTES + 1))
    assert caught.value.code == "size"
