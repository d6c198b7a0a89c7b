"""Messages are plain MessagePack that another library reads, and only checked values are accepted."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.errors import ProtocolError, RefusedError
from adc_edge.wire import messages as protocol
from adc_edge.wire.framing import Assembler, sealed, to_frames
from adc_edge.wire.headers import (
    check_foreign,
    check_foreign_refusal,
    pack_header,
    unpack_from_device,
    unpack_from_trainer,
)
from adc_edge.wire.link_messages import Ping
from adc_edge.wire.message import CHUNK_BYTES, Message
from adc_edge.wire.messages import (
    HEADER_BYTES,
    SEAL_BYTES,
    VERSION,
    Bye,
    Evaluate,
    FromDevice,
    FromTrainer,
    Hello,
    Refused,
    Step,
    Welcome,
)

LIMITS = MessageLimits(tokens=17, prefix=1, dim=32, classes=10, max_images=64)
TYPES = sorted({*get_args(FromDevice), *get_args(FromTrainer)}, key=lambda kind: kind.__name__)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """A strategy for every value that a field of this type may hold."""
    if get_origin(hint) is Annotated:
        kind, meta = get_args(hint)
        if kind is float:
            return st.floats(meta.ge if meta.gt is None else meta.gt, meta.le, exclude_min=meta.gt is not None)
        return st.text(max_size=100) if kind is str else st.integers(meta.ge, meta.le)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*map(values, get_args(hint)))
    if get_origin(hint) is list:
        return st.lists(values(*get_args(hint)), max_size=3)
    if get_origin(hint) is tuple:
        return st.tuples(*map(values, get_args(hint)))
    if get_origin(hint) is dict:
        return st.dictionaries(*map(values, get_args(hint)), max_size=2)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return any_of(hint)
    plain: dict[Any, st.SearchStrategy[Any]] = {int: st.just(VERSION), bool: st.booleans(), type(None): st.none()}
    plain |= {msgspec.UnsetType: st.just(msgspec.UNSET), str: st.text(max_size=20)}
    return st.floats(allow_nan=False) if hint is float else plain[hint]


def any_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{name: values(hints[name]) for name in kind.__struct_fields__})


MESSAGES = st.sampled_from(TYPES).flatmap(any_of)


def unpackers(message: Message) -> list[Any]:
    """The decoders that must be able to read the message."""
    sides = ((FromDevice, unpack_from_device), (FromTrainer, unpack_from_trainer))
    return [unpack for union, unpack in sides if isinstance(message, union)]


def fields(message: Message) -> dict[str, Any]:
    names = {field.encode_name: getattr(message, field.name) for field in msgspec.structs.fields(message)}
    names = {key: value if value is msgspec.UNSET else _plain(value) for key, value in names.items()}
    return {"kind": type(message).__name__.lower(), **{k: v for k, v in names.items() if v is not msgspec.UNSET}}


def _plain(value: Any) -> Any:
    """The value as another library reads it: tuples are lists there."""
    plain = msgspec.to_builtins(value)
    return [list(pair) for pair in plain] if isinstance(plain, list) else plain


def step(**changes: Any) -> Step:
    size = 3 * 5 * 32 * 4 + 4 * 12
    return msgspec.structs.replace(Step(1, 0, 0, 1, size, 8, 3, 5, 4, "fp32", "fp32"), **changes)


def device_inbox() -> Assembler[FromTrainer]:
    return Assembler(unpack_from_trainer, lambda message: 0, check_foreign_refusal)


def trainer_inbox() -> Assembler[FromDevice]:
    return Assembler(unpack_from_device, lambda message: 0, check_foreign)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: str(kind.__name__))
@given(st.data())
@settings(deadline=None, max_examples=30)
def test_every_message_is_decoded_as_it_was_encoded(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(any_of(kind))
    for unpack in unpackers(message):
        assert unpack(pack_header(message)) == message
    assert len(pack_header(message)) <= HEADER_BYTES


def test_each_side_reads_its_own_kinds_only() -> None:
    assert {kind.__name__ for kind in get_args(FromDevice)} & {kind.__name__ for kind in get_args(FromTrainer)} == {
        "Chunk",
        "ClassNames",
    }
    for header, unpack in ((Bye(1), unpack_from_trainer), (protocol.ByeAck(1), unpack_from_device)):
        with pytest.raises(ProtocolError):
            unpack(pack_header(header))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: str(kind.__name__))
@given(st.data())
@settings(deadline=None, max_examples=30)
def test_another_library_reads_and_writes_every_header(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(any_of(kind))
    assert msgpack.unpackb(pack_header(message)) == fields(message)
    for unpack in unpackers(message):
        assert unpack(msgpack.packb(fields(message))) == message


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (Hello(VERSION, "b", 1, 2, "orin", 3, 0, 0), {"session": -1}),
        (Hello(VERSION, "b", 1, 2, "orin", 3, 0, 0), {"life": 2**63}),
        (Hello(VERSION, "b", 1, 2, "orin", 3, 0, 0), {"durable": -1}),
        (Hello(VERSION, "b", 1, 2, "orin", 3, 0, 0), {"oldest": 2**31}),
        (Hello(VERSION, "b", 1, 2, "orin", 3, 0, 0), {"device": "x" * 1025}),
        (step(), {"offset": -1}),
        (step(), {"offset": 2**31}),
        (step(), {"images": 0}),
        (step(), {"precision": "fp12"}),
        (step(), {"replay": 1}),
        (protocol.Fetch(1, 2, None, 3), {"part": -1}),
        (protocol.Fetch(1, 2, None, 3), {"offset": 1.5}),
        (Ping(1, 2), {"reply_bytes": CHUNK_BYTES + 1}),
        (Welcome(1, 5, 0, 0, None, 1, 0, 0, "0.1.0"), {"durable": "all"}),
        (Welcome(1, 5, 0, 0, None, 1, 0, 0, "0.1.0"), {"received_bytes": -1}),
        (Refused("key", "a", "b", "c"), {"code": "because"}),
    ],
)
def test_a_field_outside_its_range_is_refused(message: Message, changes: dict[str, Any]) -> None:
    for unpack in unpackers(message):
        assert unpack(msgpack.packb(fields(message))) == message
        with pytest.raises(ProtocolError) as caught:
            unpack(msgpack.packb(fields(message) | changes))
        assert caught.value.code == "malformed"


OLD_HELLO = {"kind": "hello", "version": 1, "bundle": "a" * 64, "session": 5, "device": "x", "next_step": 3, "steps": 9}
NEW_HELLO = {"kind": "hello", "version": VERSION + 1, "fields": "of the future"}


@pytest.mark.parametrize("hello", [OLD_HELLO, NEW_HELLO])
@pytest.mark.parametrize("with_seal", [False, True])
def test_a_hello_of_another_version_is_recognised_whatever_its_fields_and_with_or_without_a_seal(
    hello: dict[str, Any], with_seal: bool
) -> None:
    header = msgpack.packb(hello)
    with pytest.raises(ProtocolError, match=f"protocol version {hello['version']}") as caught:
        trainer_inbox().feed(sealed(header, b"") if with_seal else header, b"")
    assert caught.value.code == "version"
    assert caught.value.expected == f"version {VERSION}"


def test_a_hello_of_another_version_with_the_fields_of_this_version_is_recognised() -> None:
    with pytest.raises(ProtocolError) as caught:
        unpack_from_device(pack_header(Hello(VERSION + 1, "b", 1, 2, "orin", 3, 0, 0)))
    assert caught.value.code == "version"


def test_a_frame_without_a_seal_that_is_no_hello_of_another_version_is_corrupt() -> None:
    for header in (
        pack_header(Hello(VERSION, "b", 1, 2, "orin", 3, 0, 0)),
        pack_header(Bye(1)),
        b"",
        b"\xc1",
        b"x" * 5000,
    ):
        with pytest.raises(ProtocolError) as caught:
            trainer_inbox().feed(header, b"")
        assert caught.value.code == "corrupt"


def test_a_bit_that_changed_in_transit_is_never_taken_for_another_version() -> None:
    """A device ends its run when the versions differ. After damaged bytes it tries again."""
    for message, inbox in (
        (Hello(VERSION, "a" * 64, 2**62, 2**61, "orin", 3, 0, 0), trainer_inbox),
        (Refused("busy", "a", "b", "c"), device_inbox),
    ):
        ((frame, piece),) = to_frames(message)
        for bit in range(8 * len(frame)):
            flipped = bytearray(frame)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ProtocolError) as caught:
                inbox().feed(bytes(flipped), piece)
            assert caught.value.code == "corrupt"


@pytest.mark.parametrize("code", ["version", "malformed"])  # version 1 says malformed of a Hello with a seal
def test_the_refusal_of_an_older_trainer_ends_the_run_with_its_message(code: str) -> None:
    header = msgpack.packb({"kind": "refused", "code": code, "received": "r", "expected": "e", "remedy": "use one"})
    with pytest.raises(RefusedError, match=r"r\n.*e\n.*use one") as caught:
        device_inbox().feed(header, b"")
    assert caught.value.code == code


def test_only_a_refusal_may_come_without_a_seal_so_that_an_older_device_can_read_it() -> None:
    for header in (
        pack_header(Welcome(1, 5, 0, 0, None, 1, 0, 0, "0.1.0")),
        pack_header(protocol.ByeAck(1)),
        b"",
        b"\xc1",
    ):
        with pytest.raises(ProtocolError) as caught:
            device_inbox().feed(header, b"")
        assert caught.value.code == "corrupt"
    refused = Refused("version", "a", "b", "c")
    ((frame, _),) = to_frames(refused)
    assert frame[:-SEAL_BYTES] == pack_header(refused)
    whole = device_inbox().feed(frame, b"")
    assert whole is not None
    assert whole[0] == refused


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 0},
        {"images": 65},
        {"clusters": 0},
        {"clusters": 9},
        {"kept": 0},
        {"kept": 18},
        {"triples": 2},
        {"triples": 9},
        {"body_bytes": 1},
        {"body_bytes": 2**31 - 1},
        {"precision": "fp16"},
    ],
)
def test_a_step_whose_numbers_do_not_fit_the_bundle_is_refused_before_allocation(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        LIMITS.step_bytes(step(**changes))
    assert caught.value.code in ("shape", "size")


@pytest.mark.parametrize("changes", [{"images": 0}, {"images": 65}, {"body_bytes": 1}, {"precision": "int8"}])
def test_an_evaluation_whose_numbers_do_not_fit_is_refused_too(changes: dict[str, Any]) -> None:
    good = Evaluate(1, 0, 0, 1, 2 * 17 * 32 * 4 + 8, 2, "fp32")
    assert LIMITS.evaluate_bytes(good) == good.body_bytes
    with pytest.raises(ProtocolError) as caught:
        LIMITS.evaluate_bytes(msgspec.structs.replace(good, **changes))
    assert caught.value.code in ("shape", "size")


def test_exact_sizes_are_accepted() -> None:
    assert LIMITS.step_bytes(step()) == 3 * 5 * 32 * 4 + 4 * 12


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_refused_by_name_and_never_crash(header: bytes) -> None:
    for unpack in (unpack_from_device, unpack_from_trainer):
        try:
            unpack(header)
        except ProtocolError as error:
            assert error.code in get_args(protocol.RefusalCode)  # noqa: PT017 - it may also be a message by chance


@given(MESSAGES, st.integers(0, 300), st.integers(1, 255))
@settings(max_examples=500, deadline=None)
def test_flipped_bytes_are_refused_or_read_as_a_message_within_its_types(
    message: Message, where: int, flip: int
) -> None:
    header = bytearray(pack_header(message))
    header[where % len(header)] ^= flip
    for unpack in (unpack_from_device, unpack_from_trainer):
        try:
            seen = unpack(bytes(header))
        except ProtocolError:
            continue
        again = unpack(pack_header(seen))
        assert repr(again) == repr(seen)  # a flipped bit may make a NaN, which equals nothing


def test_an_oversize_header_is_refused_unread() -> None:
    for unpack in (unpack_from_device, unpack_from_trainer):
        with pytest.raises(ProtocolError, match="header of") as caught:
            unpack(b"\x00" * (HEADER_BYTES + 1))
        assert caught.value.code == "size"
