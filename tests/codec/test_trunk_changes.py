"""The change of a trunk on the wire: order, sizes, precision, refusals, and additions with the same bits."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from adc_edge.arrays import Float32
from adc_edge.codec.precision import encode
from adc_edge.codec.trunk_changes import added, changes_bytes, decode_changes, encode_changes, shapes_of
from adc_edge.defaults import FleetPrecision
from adc_edge.errors import ProtocolError

PRECISIONS: tuple[FleetPrecision, ...] = get_args(FleetPrecision)


def changes(seed: int = 0) -> dict[str, Float32]:
    """Changes as of a trunk: in no order, of one to four axes, of odd sizes, and a single number."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 5, 12),
        "blocks.0.norm1.bias": (7,),
        "patch_embed.proj.weight": (12, 3, 4, 4),
        "blocks.0.attn.qkv.weight": (36, 12),
        "scale": (),
    }
    return {name: np.float32(1e-3) * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_change_comes_back_by_name_and_shape_and_its_size_is_known_before(precision: FleetPrecision) -> None:
    sent = changes()
    body = encode_changes(sent, precision)
    assert len(body) == changes_bytes(shapes_of(sent), precision)
    received = decode_changes(memoryview(b"\0" + body)[1:], shapes_of(sent), precision)  # at an odd address
    assert list(received) == sorted(sent)
    for name, value in sent.items():
        assert received[name].shape == value.shape
        assert received[name].dtype == np.float32
        off = np.abs(received[name] - value).max()
        assert off == 0 if precision == "fp32" else off <= np.abs(value).max() / 127


def test_tensors_lie_in_sorted_order_and_int8_has_a_scale_for_each_row() -> None:
    sent = changes()
    body = encode_changes(sent, "int8")
    qkv = bytes(encode(sent["blocks.0.attn.qkv.weight"], "int8"))
    assert body.startswith(qkv)
    assert len(qkv) == 4 + 36 * 2 + 36 * 12


def test_both_sides_have_the_same_bits_after_many_changes() -> None:
    device = trainer = {name: np.float32(100) * value for name, value in changes(99).items()}
    shapes = shapes_of(device)
    for seed in range(20):
        body = encode_changes(changes(seed), "int8")
        trainer = added(trainer, decode_changes(body, shapes, "int8"))
        device = added(device, decode_changes(bytearray(body), shapes, "int8"))
    assert all(device[name].tobytes() == trainer[name].tobytes() for name in shapes)
    assert all(value.dtype == np.float32 and value.shape == shapes[name] for name, value in device.items())


def test_a_change_of_another_size_and_one_that_is_not_finite_are_refused() -> None:
    sent = changes()
    body = encode_changes(sent, "fp32")
    with pytest.raises(ProtocolError) as size:
        decode_changes(body[:-4], shapes_of(sent), "fp32")
    assert size.value.code == "size"
    sent["pos_embed"][0, 1, 2] = np.nan
    with pytest.raises(ProtocolError) as encoding:
        encode_changes(sent, "int8")
    assert encoding.value.code == "nan"
    spoilt = bytes(encode(np.full(len(body) // 4, np.float32(1)), "fp32"))[:-4] + np.float32(np.inf).tobytes()
    with pytest.raises(ProtocolError) as decoding:
        decode_changes(spoilt, shapes_of(sent), "fp32")
    assert decoding.value.code == "nan"
