"""Rotated tiles: the rotation, the budget, and the quantizer by its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adc_edge.errors import ProtocolError, SettingError
from adc_edge.evaluation.codecs.base import CodecBatch
from adc_edge.evaluation.codecs.tah import BITS, Tah, TileCoder, hadamard, tile_size
from tests.method.test_trunk import SPEC, make_trunk

ROWS, DIM = 96, 192


def matrix(outliers: float = 20.0) -> Any:
    """Rows whose energies differ, with a few channels that stick out."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, DIM)) * np.exp(rng.standard_normal((ROWS, 1)))
    x[:, ::50] *= outliers
    return x.astype(np.float32)


def error(share: float, x: Any) -> float:
    coder = TileCoder(DIM, share, 7)
    back = TileCoder(DIM, share, 7).decode(memoryview(coder.encode(x)), ROWS)
    exact = x.astype(np.float64)
    return float(np.square(back - exact).sum() / np.square(exact).sum())


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_the_rotation_keeps_lengths_so_the_error_is_that_of_the_quantizer(size: int) -> None:
    np.testing.assert_allclose(hadamard(size) @ hadamard(size).T, np.eye(size), atol=1e-6)
    assert set(np.abs(hadamard(size)).ravel().round(6)) == {np.float32(size**-0.5).round(6)}
    coder, x = TileCoder(DIM, 0.1, 7), matrix()
    np.testing.assert_allclose(np.linalg.norm(coder.rotate(x)), np.linalg.norm(x), rtol=1e-5)
    np.testing.assert_allclose(coder.turn_back(coder.rotate(x)), x, atol=1e-4)


def test_four_bits_for_all_are_the_quantizer_of_each_rotated_tile() -> None:
    """With room for all: the largest magnitude is the lowest of 16 levels, its scale a float16."""
    x, coder = matrix(), TileCoder(DIM, 1.0, 7)
    tiles = coder.rotate(x).astype(np.float64)
    peaks = np.take_along_axis(tiles, np.abs(tiles).argmax(1)[:, None], 1)
    steps = peaks / -8
    expected = np.clip(np.rint(tiles / steps), -8, 7) * steps
    found = coder.rotate(coder.decode(memoryview(coder.encode(x)), ROWS))
    np.testing.assert_allclose(found, expected, atol=np.abs(steps).max() * 1.01)  # a scale's rounding moves a few
    assert np.abs(found - expected).mean() < 0.01 * np.abs(tiles).mean()


def test_rotation_spreads_outliers() -> None:
    x = matrix(outliers=100.0)
    coder = TileCoder(DIM, 1.0, 7)
    rows = x.reshape(-1, coder.size)
    peak_before = (np.abs(rows).max(1) / rows.std(1)).mean()
    tiles = coder.rotate(x)
    assert (np.abs(tiles).max(1) / tiles.std(1)).mean() < 0.7 * peak_before


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05, 0.08])
def test_the_bytes_fill_the_share_and_more_bytes_leave_less_error(share: float) -> None:
    x = matrix()
    size = len(TileCoder(DIM, share, 7).encode(x))
    assert 0.93 * share * 4 * x.size < size <= share * 4 * x.size
    assert error(share, x) < error(share / 1.5, x)


def test_codes_cost_no_more_than_their_bits() -> None:
    """With room for all: 4 bits a value and a scale of 16 bits a tile, as far as zstd makes them no shorter."""
    x, coder = matrix(), TileCoder(DIM, 1.0, 7)
    tiles = x.size // coder.size
    flags_and_exponent = 5 + 4
    most = x.size * 4 // 8 + tiles * 2 + -(-tiles * 2 // 8) + flags_and_exponent
    assert 0.9 * most < len(coder.encode(x)) <= most


def test_a_share_without_room_for_two_bits_leaves_small_tiles_out() -> None:
    x = matrix()
    coder = TileCoder(DIM, 0.02, 7)
    tiles = coder.rotate(coder.decode(memoryview(coder.encode(x)), ROWS))
    energy, sent = np.square(coder.rotate(x)).sum(1), np.square(tiles).sum(1) > 0
    assert 0 < sent.mean() < 0.5
    assert energy[sent].mean() > 3 * energy[~sent].mean()


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e20])
def test_tiny_gradients_and_zeros_survive(scale: float) -> None:
    x = matrix() * np.float32(scale)
    assert error(0.1, x) == pytest.approx(error(0.1, matrix()), rel=0.05)
    zeros = np.zeros((4, DIM), np.float32)
    coder = TileCoder(DIM, 0.01, 7)
    assert np.array_equal(coder.decode(memoryview(coder.encode(zeros)), 4), zeros)
    with pytest.raises(ProtocolError, match="finite"):
        coder.encode(np.full((4, DIM), np.nan, np.float32))


@pytest.mark.parametrize(("dim", "size"), [(192, 64), (384, 64), (32, 32), (80, 16), (7, 1)])
def test_a_tile_is_a_power_of_two_that_divides_the_channels(dim: int, size: int) -> None:
    assert tile_size(dim) == size


def test_bytes_that_no_encoder_writes_are_refused() -> None:
    coder = TileCoder(DIM, 0.05, 7)
    body = coder.encode(matrix())
    too_large = (150).to_bytes(4, "little") + body[4:]
    for data in (b"", body[:-3], body + b"x", body[:4] + b"x" + body[5:], too_large):
        with pytest.raises(ProtocolError):
            coder.decode(memoryview(data), ROWS)
    with pytest.raises(ProtocolError):
        coder.decode(memoryview(body), ROWS - 1)
    with pytest.raises(ProtocolError):
        coder.decode(memoryview(body), ROWS + 1)


def test_a_step_needs_bytes_alone_and_its_gradient_is_close() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((6, 3, 16, 16)).astype(np.float32))
    batch, trunk = CodecBatch(images, rng.integers(5, size=6), rng), make_trunk()
    device, trainer = (Tah(5, 0.12, SPEC.embed_dim, "fp32", "fp32", seed=3) for _ in range(2))
    sent = device.compress(trunk, batch)
    arrived = trainer.extract(sent.header, memoryview(bytes(sent.body)))
    exact = sent.tensor.detach()
    assert (arrived.features - exact).norm() < 0.3 * exact.norm()
    assert arrived.soft.argmax(1).tolist() == batch.labels.tolist()
    gradient = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    down = trainer.compress_gradient(arrived, gradient)
    assert len(down) <= 0.12 * 4 * exact.numel()
    assert (device.extract_gradient(sent, memoryview(bytes(down))) - gradient).norm() < 0.3 * gradient.norm()


def test_test_activations_pass_as_in_training() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((6, 3, 16, 16)).astype(np.float32))
    batch, trunk = CodecBatch(images, rng.integers(5, size=6), rng), make_trunk()
    codec = Tah(5, 0.05, SPEC.embed_dim, "fp32", "fp32", seed=3)
    sent = codec.compress(trunk, batch)
    arrived = codec.extract(sent.header, memoryview(bytes(sent.body)))
    through = codec.through(sent.tensor.detach())
    assert through is not None
    assert torch.equal(through, arrived.features.detach())
    assert not torch.equal(through, sent.tensor)


def test_only_a_share_is_taken() -> None:
    assert max(BITS) == 4
    with pytest.raises(SettingError, match="a share alone"):
        Tah(5, 0.1, 32, "int8", "fp32", 0)
    with pytest.raises(SettingError, match="share"):
        Tah(5, 0.0, 32, "fp32", "fp32", 0)
