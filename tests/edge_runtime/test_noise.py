"""The noisy channel: the given amount of noise, the same again after a crash, and always decodable messages."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adc_edge.arrays import Float32
from adc_edge.codec.lowrank import coordinates_in
from adc_edge.codec.precision import PRECISIONS, VALUE_PRECISIONS, Precision, dct_bits, decode, encode, pca_bits
from adc_edge.edge_runtime.noise import NoiseSettings, awgn, bit_errors, noise_rng
from adc_edge.errors import SettingError

LARGEST = float(np.finfo(np.float32).max)
VALUES = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-1.0, 1.0, width=32)
TENSORS = arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=VALUES)
SEEDS = st.integers(0, 2**32 - 1)
INDEPENDENT: list[Precision] = [precision for precision in PRECISIONS if not dct_bits(precision)]
PRECISION = st.sampled_from(INDEPENDENT)
HEAD = {precision: 0 if precision in ("fp32", "bf16") else 4 for precision in VALUE_PRECISIONS}  # the exponent
PCA: list[Precision] = [precision for precision in PRECISIONS if pca_bits(precision)]
Message = bytes | memoryview
SCALED: list[Precision] = ["int8", "int4", "int3", "int2"]
NOT_SNR = [math.nan, math.inf, -math.inf, 200.1, -200.1]
NOT_A_RATE = [math.nan, -1e-9, 1.0, 2.0]
SIGMAS = 5.0  # chance alone fails a test once in two million seeds, and the seeds are fixed


def gaussian(*shape: int, size: float = 1.0, seed: int = 0) -> Float32:
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def difference(after: Message, before: Message) -> npt.NDArray[np.bool_]:
    """A mask of the bits that differ, least significant first: ``[bytes, 8]``."""
    bits = [np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little") for data in (after, before)]
    differ: npt.NDArray[np.bool_] = bits[0] != bits[1]
    return differ.reshape(-1, 8)


def numbers(encoded: Message, precision: Precision) -> npt.NDArray[np.unsignedinteger]:
    """Bit patterns of the values in fp32, fp16 or bf16."""
    return np.frombuffer(encoded, "<u4" if precision == "fp32" else "<u2", offset=HEAD[precision])


def exposed(encoded: Message, shape: tuple[int, ...], precision: Precision) -> slice:
    """The bytes that errors may hit."""
    if pca_bits(precision):
        return coordinates_in(memoryview(encoded), math.prod(shape[:-1]), shape[-1])
    return slice(HEAD[precision], len(encoded))


# white Gaussian noise


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 12.5, 40.0])
@pytest.mark.parametrize("size", [1.0, 1e-8, 1e-30, 1e30])
def test_the_signal_to_noise_ratio_is_the_one_asked_for_also_of_tiny_gradients(snr_db: float, size: float) -> None:
    x = gaussian(20, 50, 192, size=size) + np.float32(size)  # its power is that of the mean, too
    signal = x.astype(np.float64)
    noise = awgn(x, snr_db, rng(1)) - signal
    # The power of n Gaussian draws is off by sqrt(2/n) (one sigma); sizes and ratios here leave rounding far below it.
    measured = (signal**2).mean() / (noise**2).mean()
    assert measured == pytest.approx(10 ** (snr_db / 10), rel=SIGMAS * math.sqrt(2 / x.size))


def test_the_noise_is_gaussian_and_white() -> None:
    x = gaussian(20, 50, 192)
    noise = (awgn(x, 0.0, rng(1)) - x.astype(np.float64)).ravel()
    noise /= noise.std()
    off = SIGMAS / math.sqrt(x.size)
    assert abs(noise.mean()) < off
    assert abs((noise * x.ravel()).mean()) < off  # tells nothing of the signal
    assert abs((noise[1:] * noise[:-1]).mean()) < off  # nor of its neighbour
    for sigmas, share in ((1, 0.682689), (2, 0.954500), (3, 0.997300)):
        assert (np.abs(noise) < sigmas).mean() == pytest.approx(share, abs=off * math.sqrt(share * (1 - share)))


def test_every_token_gets_the_same_noise_however_small_it_is() -> None:
    x = gaussian(2, 100_000)
    x[0] *= 1e-3
    noise = awgn(x, 10.0, rng(1)) - x.astype(np.float64)
    quiet, loud = noise.std(axis=1)
    assert quiet == pytest.approx(loud, rel=2 * SIGMAS / math.sqrt(2 * 100_000))


@given(TENSORS, st.floats(-200, 200), SEEDS)
@settings(deadline=None)
def test_noise_gives_a_finite_float32_tensor_of_the_same_shape_and_does_not_change_its_input(
    x: Float32, snr_db: float, seed: int
) -> None:
    before = x.tobytes()
    y = awgn(x, snr_db, rng(seed))
    assert y.shape == x.shape
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
    assert x.tobytes() == before
    assert not np.shares_memory(x, y)


def test_noise_beyond_the_largest_float32_is_clipped() -> None:
    x = np.full((4, 100), np.finfo(np.float32).max)
    y = awgn(x, -200.0, rng())
    assert set(np.abs(y).ravel().tolist()) == {float(np.finfo(np.float32).max)}
    assert (y < 0).any()


@pytest.mark.parametrize("shape", [(3, 4), (0, 4)])
def test_an_all_zero_tensor_stays_zero(shape: tuple[int, ...]) -> None:
    y = awgn(np.zeros(shape, np.float32), 0.0, rng())
    assert y.shape == shape
    assert not y.any()


def test_without_a_ratio_the_tensor_is_not_changed() -> None:
    x, draws = gaussian(3, 4), rng()
    assert awgn(x, None, draws) is x
    assert draws.random() == rng().random()


# bit errors


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
@pytest.mark.parametrize("rate", [1e-4, 1e-2])
@pytest.mark.parametrize("seed", range(4))
def test_the_bit_error_rate_is_the_one_asked_for(precision: Precision, rate: float, seed: int) -> None:
    # Gradients: |x| < 1, so that one flip makes no number infinite. Two in one exponent can, which at 1 % restores
    # 1e-4 of the numbers or fewer: far within the tolerance.
    x = gaussian(8, 100, 192, size=1e-3, seed=seed)
    sent = encode(x, precision)
    flips = difference(bit_errors(sent, x.shape, precision, rate, rng(seed)), sent)[HEAD[precision] :]
    spread = math.sqrt(flips.size * rate * (1 - rate))
    assert flips.sum() == pytest.approx(flips.size * rate, abs=SIGMAS * spread)
    # No bit of a byte and no part of the message is spared.
    for share in (flips.sum(axis=0), np.add.reduceat(flips.sum(axis=1), range(0, len(flips) - 7, len(flips) // 8))[:8]):
        assert share == pytest.approx(np.full(8, flips.size * rate / 8), abs=SIGMAS * spread / math.sqrt(8))


@pytest.mark.parametrize("precision", PCA)
@pytest.mark.parametrize("rate", [1e-3, 1e-1])
def test_in_pca_every_bit_of_the_coordinates_is_hit_at_that_rate_and_no_other_bit(
    precision: Precision, rate: float
) -> None:
    x = (gaussian(8, 300, 64) * 2.0 ** (-np.arange(64) / 6)).astype(np.float32)
    sent = encode(x, precision)
    hit = exposed(sent, x.shape, precision)
    assert 0.4 * len(sent) < hit.stop - hit.start < len(sent)
    flips = difference(bit_errors(sent, x.shape, precision, rate, rng()), sent)
    assert flips.sum() == flips[hit].sum()
    tolerance = SIGMAS * math.sqrt(flips[hit].size * rate * (1 - rate))
    assert flips[hit].sum() == pytest.approx(flips[hit].size * rate, abs=tolerance)
    for half in np.array_split(flips[hit], 2):
        assert half.sum() == pytest.approx(half.size * rate, abs=tolerance)


@pytest.mark.parametrize("precision", ["pca2", "pca0.5"])
def test_in_pca_a_few_errors_spoil_a_few_rows(precision: Precision) -> None:
    x = (gaussian(8, 300, 64) * 2.0 ** (-np.arange(64) / 6)).astype(np.float32)
    sent = encode(x, precision)
    came = bit_errors(sent, x.shape, precision, 1e-3, rng())
    clean, noisy = decode(sent, x.shape, precision), decode(came, x.shape, precision)
    spoiled = (clean != noisy).any(axis=-1).sum()
    assert 0 < spoiled <= difference(came, sent).sum()


@pytest.mark.parametrize("precision", SCALED)
def test_scales_are_hit_like_the_values(precision: Precision) -> None:
    x = gaussian(20_000, 2)
    sent = encode(x, precision)
    flips = difference(bit_errors(sent, x.shape, precision, 0.01, rng()), sent)[4 : 4 + 2 * 20_000]
    assert flips.sum() == pytest.approx(flips.size * 0.01, abs=SIGMAS * math.sqrt(flips.size * 0.01 * 0.99))


def test_errors_are_independent() -> None:
    x = gaussian(100, 1000, size=1e-3)
    sent = encode(x, "int8")
    hits = difference(bit_errors(sent, x.shape, "int8", 0.1, rng()), sent)[204:].sum(axis=1)
    for count in range(4):  # errors in one byte: binomial
        share = math.comb(8, count) * 0.1**count * 0.9 ** (8 - count)
        tolerance = SIGMAS * math.sqrt(share * (1 - share) / hits.size)
        assert (hits == count).mean() == pytest.approx(share, abs=tolerance)


@given(TENSORS, PRECISION, st.floats(0, 0.5), SEEDS)
@settings(deadline=None)
def test_any_message_with_errors_decodes_to_finite_numbers(
    x: Float32, precision: Precision, rate: float, seed: int
) -> None:
    sent = encode(x, precision)
    came = bit_errors(sent, x.shape, precision, rate, rng(seed))
    hit = exposed(sent, x.shape, precision)
    assert came[: hit.start] == sent[: hit.start]
    assert came[hit.stop :] == sent[hit.stop :]
    assert np.isfinite(decode(came, x.shape, precision)).all()


@pytest.mark.parametrize("precision", INDEPENDENT)
@pytest.mark.parametrize("peak", [1.0, 2.0**60, 1e36, 1e38, 3.385e38, float(np.finfo(np.float32).max)])
def test_large_numbers_still_decode_under_heavy_errors(precision: Precision, peak: float) -> None:
    x = gaussian(500, 40)
    x = (x * (peak / np.abs(x).max(axis=1, keepdims=True).astype(np.float64))).astype(np.float32)
    sent = encode(x, precision)
    came = bit_errors(sent, x.shape, precision, 0.5, rng())
    hit = exposed(sent, x.shape, precision)
    assert came[: hit.start] == sent[: hit.start]
    flips = difference(came, sent)[hit]
    assert flips.sum() >= len(flips)  # half of the bits, less what is restored
    assert np.isfinite(decode(came, x.shape, precision)).all()


CAUGHT: list[tuple[Precision, float]] = [("fp32", 1 / 256), ("fp16", 1 / 32), ("bf16", 1 / 256)]


@pytest.mark.parametrize(("precision", "share"), CAUGHT)
def test_only_a_number_that_would_be_nan_or_infinite_keeps_its_bits(precision: Precision, share: float) -> None:
    x = gaussian(100, 1000)
    sent = encode(x, precision)
    came = bit_errors(sent, x.shape, precision, 0.5, rng())  # every bit a coin: 1 of 2**8 or 2**5 exponents is all ones
    kept = (numbers(came, precision) == numbers(sent, precision)).mean()
    by_chance = 2.0 ** -(32 if precision == "fp32" else 16)
    assert kept == pytest.approx(share + by_chance, abs=SIGMAS * math.sqrt(share / x.size))


def test_an_fp32_value_never_gets_the_flip_that_would_make_it_infinite() -> None:
    x = np.ones((100, 1000), np.float32)  # exponent 0111 1111
    came = bit_errors(encode(x, "fp32"), x.shape, "fp32", 0.01, rng())
    flips = difference(came, encode(x, "fp32")).reshape(-1, 32).sum(axis=0)
    assert flips[30] < flips[:30].min() / 5  # only together with another bit of the exponent
    assert flips[:30].min() > 800  # of 1000 expected


@pytest.mark.parametrize("precision", SCALED)
def test_a_scale_that_would_be_nan_or_infinite_keeps_its_bits(precision: Precision) -> None:
    x = np.ones((100_000, 1), np.float32)
    sent = encode(x, precision)
    came = bit_errors(sent, x.shape, precision, 0.5, rng())
    scales = [np.frombuffer(data, "<u2", offset=4, count=len(x)) for data in (sent, came)]
    kept = (scales[0] == scales[1]).mean()
    assert kept == pytest.approx(1 / 32 + 2**-16, abs=SIGMAS * math.sqrt(1 / 32 / len(x)))


@given(TENSORS, PRECISION, SEEDS)
@settings(deadline=None)
def test_a_rate_of_zero_changes_nothing(x: Float32, precision: Precision, seed: int) -> None:
    sent = encode(x, precision)
    assert bit_errors(sent, x.shape, precision, 0.0, rng(seed)) is sent


@pytest.mark.parametrize("precision", [*VALUE_PRECISIONS, "pca2"])
def test_a_read_only_message_is_not_changed_in_any_container(precision: Precision) -> None:
    x = gaussian(6, 50, 7)
    sent = bytes(encode(x, precision))
    held: list[Message] = [sent, memoryview(sent), memoryview(b"!" + sent + b"tail")[1:-4], encode(x, precision)]
    came = [bit_errors(message, x.shape, precision, 0.1, rng()) for message in held]
    assert all(message == sent for message in held)
    assert came[0] != sent
    assert all(message == came[0] and len(message) == len(sent) for message in came)


@pytest.mark.parametrize("precision", INDEPENDENT)
def test_a_tensor_without_rows_has_nothing_to_hit(precision: Precision) -> None:
    sent = encode(np.empty((0, 4), np.float32), precision)
    assert bit_errors(sent, (0, 4), precision, 0.5, rng()) == sent


def test_bit_errors_of_a_range_coder_are_refused_before_a_run_and_noise_is_not() -> None:
    x = gaussian(6, 50, 7)
    with pytest.raises(SettingError, match="bit errors in dct1"):
        bit_errors(encode(x, "dct1"), x.shape, "dct1", 0.1, rng())
    with pytest.raises(SettingError, match=r"choose pca0\.25"):
        NoiseSettings(bit_error_rate=1e-6).check_precisions([("pca1", "dct0.25")])
    NoiseSettings(bit_error_rate=1e-6).check_precisions([("pca1", "int8")])
    NoiseSettings(snr_up_db=20.0).check_precisions([("dct1", "dct0.25")])


# the same again after a crash


def test_a_repeated_step_gets_the_same_noise() -> None:
    x = gaussian(4, 5, 16)
    sent = encode(x, "fp16")
    noisy = [awgn(x, 10.0, noise_rng(3, 17, "up")).tobytes() for _ in range(2)]
    came = [bit_errors(sent, x.shape, "fp16", 0.1, noise_rng(3, 17, "up")) for _ in range(2)]
    assert noisy[0] == noisy[1]
    assert came[0] == came[1]


def test_another_seed_step_or_direction_gets_other_noise() -> None:
    x = np.ones((4, 8), np.float32)
    ways: tuple[Literal["up", "down"], ...] = ("up", "down")
    seen = {
        awgn(x, 0.0, noise_rng(seed, step, way)).tobytes() for seed in range(5) for step in range(40) for way in ways
    }
    assert len(seen) == 5 * 40 * 2


@pytest.mark.parametrize("way", ["up", "down"])
def test_noise_is_independent_of_the_order_and_augmentation_of_images(way: Literal["up", "down"]) -> None:
    mine = {noise_rng(7, step, way).bytes(16) for step in range(50)}
    loaders = {np.random.default_rng([7, stream, step]).bytes(16) for stream in range(16) for step in range(50)}
    assert not mine & loaders


# settings


def test_the_default_channel_has_no_noise() -> None:
    assert not NoiseSettings().check().any


@pytest.mark.parametrize(
    "noisy", [NoiseSettings(snr_up_db=0.0), NoiseSettings(snr_down_db=0.0), NoiseSettings(bit_error_rate=1e-9)]
)
def test_any_one_setting_makes_it_noisy(noisy: NoiseSettings) -> None:
    assert noisy.check().any
    assert msgspec.json.decode(msgspec.json.encode(noisy), type=NoiseSettings) == noisy  # a run's settings are kept


@pytest.mark.parametrize("snr_db", NOT_SNR)
def test_a_ratio_that_makes_no_sense_is_refused(snr_db: float) -> None:
    for bad in (NoiseSettings(snr_up_db=snr_db), NoiseSettings(snr_down_db=snr_db)):
        with pytest.raises(SettingError, match=f"{snr_db} dB"):
            bad.check()
    with pytest.raises(SettingError, match=f"{snr_db} dB"):
        awgn(np.ones((1, 1), np.float32), snr_db, rng())


@pytest.mark.parametrize("rate", NOT_A_RATE)
def test_a_rate_that_is_no_probability_of_an_error_is_refused(rate: float) -> None:
    with pytest.raises(SettingError, match=f"bit error rate of {rate}"):
        NoiseSettings(bit_error_rate=rate).check()
    with pytest.raises(SettingError, match=f"bit error rate of {rate}"):
        bit_errors(encode(np.ones((1, 1), np.float32), "fp32"), (1, 1), "fp32", rate, rng())
