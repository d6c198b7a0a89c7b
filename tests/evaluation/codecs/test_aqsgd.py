"""AQ-SGD: the closed loop, its memory on both sides, and the bytes of a body."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from adc_edge.codec.precision import Precision, encoded_bytes
from adc_edge.errors import ProtocolError
from adc_edge.evaluation.codecs.aqsgd import AqSgd
from adc_edge.evaluation.codecs.base import CodecBatch
from adc_edge.wire.messages import TRIPLE_BYTES
from tests.method.test_trunk import SPEC, make_trunk

CLASSES, TOKENS, DIM = 5, SPEC.tokens, SPEC.embed_dim


def aqsgd(precision: Precision = "int2", first: Precision = "fp32", capacity: int | None = None) -> AqSgd:
    return AqSgd(CLASSES, TOKENS, DIM, precision, "int4", first, capacity)


def a_batch(images: int = 6, seed: int = 0) -> CodecBatch:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.standard_normal((images, 3, 16, 16)).astype(np.float32))
    return CodecBatch(pixels, rng.integers(CLASSES, size=images), rng)


def through(codec: AqSgd, other: AqSgd, trunk: torch.nn.Module, batch: CodecBatch) -> tuple[Tensor, Tensor, int]:
    """Activations, what ``other`` decodes of the bytes of ``codec``, and the bytes."""
    sent = codec.compress(trunk, batch)  # type: ignore[arg-type]
    arrived = other.extract(sent.header, memoryview(bytes(sent.body)))
    return sent.tensor.detach(), arrived.features.detach(), len(sent.body)


@pytest.mark.parametrize("first", ["fp32", "int2"])
def test_the_error_of_activations_that_stay_goes_to_zero_over_visits(first: Precision) -> None:
    device, trainer, trunk, batch = aqsgd(first=first), aqsgd(first=first), make_trunk(), a_batch()
    errors = []
    for _ in range(8):
        exact, arrived, _ = through(device, trainer, trunk, batch)
        errors.append(((arrived - exact).norm() / exact.norm()).item())
    assert errors[0] == 0.0 if first == "fp32" else errors[0] > 0.3
    assert errors[-1] < 1e-3  # the memory is fp16
    direct = aqsgd("int2", "int2")
    assert ((through(direct, direct, trunk, batch)[1] - exact).norm() / exact.norm()).item() > 0.3


def test_a_change_is_quantized_where_the_activation_itself_would_be_coarse() -> None:
    """After small updates of the trunk two bits of change leave a tenth of the error of two bits of activation."""
    device, trainer, trunk, batch = aqsgd(), aqsgd(), make_trunk(), a_batch()
    through(device, trainer, trunk, batch)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.001 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    exact, arrived, _ = through(device, trainer, trunk, batch)
    direct = aqsgd("int2", "int2")
    _, coarse, _ = through(direct, direct, trunk, batch)
    assert 0 < (arrived - exact).norm() < 0.1 * (coarse - exact).norm()


def test_new_images_are_sent_whole_and_known_ones_as_changes() -> None:
    codec, trunk, batch = aqsgd(), make_trunk(), a_batch(6)
    slots, labels = 4 * 6, TRIPLE_BYTES * 6
    assert through(codec, codec, trunk, batch)[2] == slots + encoded_bytes((6, TOKENS, DIM), "fp32") + labels
    assert through(codec, codec, trunk, batch)[2] == slots + encoded_bytes((6, TOKENS, DIM), "int2") + labels
    flipped = torch.cat([batch.images[:2], batch.images[2:].flip(3)])
    sizes = encoded_bytes((4, TOKENS, DIM), "fp32") + encoded_bytes((2, TOKENS, DIM), "int2")
    assert through(codec, codec, trunk, batch._replace(images=flipped))[2] == slots + sizes + labels


def test_state_goes_through_arrays_and_the_same_bytes_follow() -> None:
    codec, trunk = aqsgd(capacity=8), make_trunk()
    for seed in range(3):
        through(codec, codec, trunk, a_batch(6, seed % 2))
    again = aqsgd(capacity=8)
    again.restore_state(codec.arrays())
    for seed in (1, 2, 0):
        one, other = (side.compress(trunk, a_batch(6, seed)) for side in (codec, again))
        assert bytes(one.body) == bytes(other.body)
        theirs = again.extract(other.header, other.body)
        assert torch.equal(codec.extract(one.header, one.body).features, theirs.features)


def test_a_trainer_that_lacks_the_memory_refuses_a_change() -> None:
    device, trunk = aqsgd(), make_trunk()
    through(device, aqsgd(), trunk, a_batch())
    sent = device.compress(trunk, a_batch())
    with pytest.raises(ProtocolError, match="slots"):
        aqsgd().extract(sent.header, sent.body)
