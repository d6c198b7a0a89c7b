"""Low rank: against the singular value decomposition, its bytes, and its error feedback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adc_edge.codec.precision import Precision, decode, encoded_bytes
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.evaluation.codecs.base import CodecBatch
from adc_edge.evaluation.codecs.lowrank import FactorCoder, LowRank, factor_bytes, rank_of
from tests.method.test_trunk import SPEC, make_trunk

ROWS, DIM = 200, 48


def matrix(seed: int = 0) -> Any:
    """Singular values that fall by a fifth each."""
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.standard_normal((ROWS, DIM)), full_matrices=False)
    return (left * 100 * 0.8 ** np.arange(DIM) @ right).astype(np.float32)


def coder(share: float, precision: Precision = "fp32", feedback: float = 0.0) -> FactorCoder:
    return FactorCoder(DIM, share, precision, feedback)


def error(x: Any, y: Any) -> float:
    return float(np.square(x - y).sum())


@pytest.mark.parametrize(
    ("share", "precision", "worst"),
    [(0.05, "fp32", 1.03), (0.2, "fp32", 1.03), (0.05, "fp16", 1.03), (0.2, "fp16", 1.03), (0.05, "int8", 1.2)],
)
def test_the_error_is_nearly_the_least_that_the_rank_allows(share: float, precision: Precision, worst: float) -> None:
    x, sender = matrix(), coder(share, precision)
    rank = rank_of(ROWS, DIM, share, precision)
    least = float(np.square(np.linalg.svd(x, compute_uv=False)[rank:]).sum())
    for _ in range(3):  # it starts from the last basis
        body = sender.encode(x)
    found = error(coder(share, precision).decode(memoryview(body), ROWS), x)
    assert least * 0.999 < found < worst * least


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.5])
def test_the_rank_is_the_largest_that_fits_the_share(share: float, precision: Precision) -> None:
    rank, budget = rank_of(ROWS, DIM, share, precision), share * 4 * ROWS * DIM
    assert len(coder(share, precision).encode(matrix())) == factor_bytes(ROWS, DIM, rank, precision) <= budget
    assert rank == DIM or factor_bytes(ROWS, DIM, rank + 1, precision) > budget
    assert rank_of(ROWS, DIM, 1e-9, precision) == 1


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_second_factor_makes_up_for_the_rounding_of_the_first(precision: Precision) -> None:
    """No other second factor would do much better with the first as it arrives."""
    x, sender = matrix(), coder(0.05, precision)
    rank, body = rank_of(ROWS, DIM, 0.05, precision), memoryview(sender.encode(x))
    left = decode(body[: encoded_bytes((rank, ROWS), precision)], (rank, ROWS), precision)
    best = left.T @ np.linalg.lstsq(left.T, x, rcond=None)[0]
    assert error(sender.decode(body, ROWS), x) < 1.02 * error(best, x)


def test_feedback_sends_what_was_missed_so_the_mean_of_many_steps_is_exact() -> None:
    x = matrix()
    means = []
    for feedback in (0.0, 1.0):
        sender = coder(0.1, "fp32", feedback)
        arrived = [sender.decode(memoryview(sender.encode(x)), ROWS) for _ in range(30)]
        means.append(error(np.mean(arrived, 0), x))
    assert means[1] < 0.05 * means[0]


def test_state_goes_through_arrays_and_the_same_bytes_follow() -> None:
    codec = LowRank(5, 0.2, SPEC.embed_dim, "int8", "fp16", 1.0)
    again = LowRank(5, 0.2, SPEC.embed_dim, "int8", "fp16", 1.0)
    trunk, rng = make_trunk(), np.random.default_rng(0)
    for restored in (False, True):
        if restored:
            again.restore_state(codec.arrays())
        images = torch.from_numpy(rng.standard_normal((6, 3, 16, 16)).astype(np.float32))
        batch = CodecBatch(images, rng.integers(5, size=6), rng)
        sent = codec.compress(trunk, batch)
        arrived = codec.extract(sent.header, memoryview(bytes(sent.body)))
        down = codec.compress_gradient(arrived, arrived.features.detach() * 1e-6)
        if restored:
            assert bytes(again.compress(trunk, batch).body) == bytes(sent.body)
            assert bytes(again.compress_gradient(arrived, arrived.features.detach() * 1e-6)) == bytes(down)
    fresh = LowRank(5, 0.2, SPEC.embed_dim, "int8", "fp16")
    assert torch.equal(fresh.extract(sent.header, sent.body).features, arrived.features)  # from bytes alone
    assert torch.equal(fresh.extract_gradient(sent, down), codec.extract_gradient(sent, down))


def test_wrong_settings_and_lengths_are_refused() -> None:
    with pytest.raises(SettingError, match="pca1"):
        LowRank(5, 0.1, 32, "pca1", "fp16")
    with pytest.raises(SettingError, match="share"):
        LowRank(5, 1.5, 32, "fp16", "fp16")
    with pytest.raises(ProtocolError):
        coder(0.1).decode(memoryview(coder(0.1).encode(matrix()))[:-1], ROWS)
