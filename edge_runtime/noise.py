"""A noisy channel to train through: white Gaussian noise on tensors, bit errors on their encoding.

TCP delivers every bit, so neither happens on a real link. They model an analog or uncoded link, as studies of split
learning over noisy channels do. Nothing here keeps state: all randomness is in the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Body, Float32
from adc_edge.codec.lowrank import coordinates_in
from adc_edge.codec.precision import Precision, dct_bits, decode, encode, integer_bits, pca_bits
from adc_edge.errors import SettingError

_LARGEST_SNR_DB = 200.0  # and its negative; float32 itself has about 150 dB
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_STREAM = {"up": 101, "down": 102}  # far from loader.py's 0, 1, 2: noise must not depend on the order of images
_EXPONENT_BYTES = 4
_HEADED: tuple[Precision, ...] = ("fp16", "int8", "int4", "int3", "int2")


class NoiseSettings(msgspec.Struct, frozen=True):
    """The noise of the channel; the default is none."""

    snr_up_db: float | None = None  # AWGN on activations, as the trainer sees them
    snr_down_db: float | None = None  # AWGN on gradients, as the device sees them
    bit_error_rate: float = 0.0  # for every bit of an encoded tensor, both ways

    @property
    def any(self) -> bool:
        """Whether the channel is noisy at all."""
        return self.snr_up_db is not None or self.snr_down_db is not None or self.bit_error_rate > 0.0

    @property
    def in_words(self) -> str:
        """The noise in words: ``10 dB SNR up, 1e-05 of the bits flipped``."""
        ways = (("up", self.snr_up_db), ("down", self.snr_down_db))
        parts = [f"{snr_db:g} dB SNR {way}" for way, snr_db in ways if snr_db is not None]
        if self.bit_error_rate:
            parts.append(f"{self.bit_error_rate:g} of the bits flipped")
        return ", ".join(parts) or "none"

    def check(self) -> NoiseSettings:
        """Return self; raises SettingError unless ``awgn`` and ``bit_errors`` take these settings."""
        for snr_db in (self.snr_up_db, self.snr_down_db):
            if snr_db is not None:
                _check_snr(snr_db)
        _check_rate(self.bit_error_rate)
        return self

    def check_precisions(self, pairs: Iterable[tuple[Precision, Precision]]) -> None:
        """Raise SettingError if bits would flip in a precision whose values depend on one another.

        Args:
            pairs: precisions of activations and gradients in the run.
        """
        if self.bit_error_rate:
            for precision in chain.from_iterable(pairs):
                _check_independent(precision)


def noise_rng(seed: int, step: int, way: Literal["up", "down"]) -> np.random.Generator:
    """The random generator for the noise of one step in one direction.

    It depends on the arguments alone, so a step that is repeated after a crash gets the same noise.

    Args:
        seed: seed of the run, >= 0.
        step: >= 0.
        way: "up" for activations, "down" for gradients.
    """
    return np.random.default_rng([seed, _STREAM[way], step])


class NoisyCodec:
    """The codec of a training step, with the noise of the channel model if there is any.

    Args:
        settings: the noise.
        seed: of the noise; ``place``, the number of a micro-batch in the run, draws another one for each message.
    """

    def __init__(self, settings: NoiseSettings, seed: int) -> None:
        self._settings, self._seed = settings, seed

    def encode(self, x: Float32, precision: Precision, place: int, tail: bytes) -> Body:
        """Return ``x`` ``[T, k, D]`` as bytes that reach the trainer, and ``tail`` after them, which has no noise."""
        settings = self._settings
        if not settings.any:
            return encode(x, precision, tail)
        rng = noise_rng(self._seed, place, "up")
        clean = encode(awgn(x, settings.snr_up_db, rng), precision)
        return bytes(bit_errors(clean, x.shape, precision, settings.bit_error_rate, rng)) + tail

    def decode(self, data: memoryview, shape: tuple[int, ...], precision: Precision, place: int) -> Float32:
        """Return the gradient ``[T, k, D]`` as it reaches this device."""
        settings = self._settings
        if not settings.any:
            return decode(data, shape, precision)
        rng = noise_rng(self._seed, place, "down")
        noisy = bit_errors(data, shape, precision, settings.bit_error_rate, rng)
        return awgn(decode(noisy, shape, precision), settings.snr_down_db, rng)


def awgn(x: Float32, snr_db: float | None, rng: np.random.Generator) -> Float32:
    """Add white Gaussian noise of power mean(x²) / 10^(snr_db / 10).

    The mean is over the whole tensor, so every element gets the same noise and small tokens suffer most. The result
    is clipped to float32's range. An all-zero tensor stays zero.

    Args:
        x: finite, any shape; not changed.
        snr_db: signal-to-noise ratio in dB, -200 to 200; None for no noise, which returns ``x`` itself.
        rng: draws the noise.

    Raises:
        SettingError: ``snr_db`` is out of range.
    """
    if snr_db is None:
        return x
    _check_snr(snr_db)
    signal = x.astype(np.float64)  # the square of a gradient underflows in float32
    power = np.square(signal).sum() / max(1, x.size)
    noise = rng.standard_normal(x.shape) * math.sqrt(power * 10.0 ** (-snr_db / 10.0))
    noisy: Float32 = np.clip(signal + noise, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)
    return noisy


def bit_errors(
    encoded: bytes | memoryview, shape: tuple[int, ...], precision: Precision, rate: float, rng: np.random.Generator
) -> bytes | memoryview:
    """Flip each bit of an encoded tensor independently with probability ``rate``.

    Errors hit the values, and the scales of int8 and below. They do not hit the exponent at the head of all formats
    but fp32 and bf16, on which a whole tensor depends: any receiver would protect those four bytes. For the same
    reason only the coordinates of pca are hit, not its head, mean and vectors. A value or scale that would decode to
    NaN or infinity, which a receiver can detect, keeps all its bits, so a decodable message stays decodable. This
    lowers the rate a little: in fp32, for values with 1 <= |x| < 2, by up to one part in 32 at low rates. A finite
    value can still be large: one flip in an exponent can turn an fp32 value into 1e38, or one of fp16 into 65504 peaks.

    Args:
        encoded: output of ``encode`` for a tensor of ``shape``, without a tail; not changed.
        shape: shape of the tensor, last axis D.
        precision: precision of ``encoded``.
        rate: bit error rate, in [0, 1); 0 returns ``encoded``.
        rng: draws the errors.

    Returns:
        As many bytes, in memory of their own unless ``rate`` is 0.

    Raises:
        SettingError: ``rate`` is out of range, or ``precision`` is dct: one wrong bit ends a range coder's stream.
    """
    _check_rate(rate)
    if rate == 0.0:
        return encoded
    _check_independent(precision)
    whole = np.frombuffer(encoded, np.uint8)
    message = whole.copy()
    hit = _exposed(whole.data, shape, precision)
    sent, received = whole[hit], message[hit]
    bits = 8 * sent.size
    # The number of errors, then distinct places: the same distribution as bit by bit, at the cost of the errors.
    flipped = rng.choice(bits, rng.binomial(bits, rate), replace=False, shuffle=False)
    np.bitwise_xor.at(received, flipped >> 3, np.left_shift(1, flipped & 7).astype(np.uint8))
    if pca_bits(precision):
        return message.data  # any coordinates are finite
    exponent = int.from_bytes(encoded[: hit.start], "little", signed=True)
    if value_bits := integer_bits(precision):
        _keep_decodable_rows(received, sent, shape, exponent, value_bits)
    else:
        numbers, before = (part.view("<f4" if precision == "fp32" else "<u2") for part in (received, sent))
        lost = _overflows(_as_floats(numbers, precision), exponent)
        numbers[lost] = before[lost]
    return message.data


def _exposed(encoded: memoryview, shape: tuple[int, ...], precision: Precision) -> slice:
    """The bytes of an encoded tensor that errors may hit."""
    if pca_bits(precision):
        return coordinates_in(encoded, math.prod(shape[:-1]), shape[-1])
    return slice(_EXPONENT_BYTES if precision in _HEADED else 0, None)


def _as_floats(numbers: npt.NDArray[Any], precision: Precision) -> npt.NDArray[np.floating]:
    if precision == "bf16":
        return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers.view("<f2") if precision == "fp16" else numbers


def _keep_decodable_rows(
    received: npt.NDArray[np.uint8], sent: npt.NDArray[np.uint8], shape: tuple[int, ...], exponent: int, bits: int
) -> None:
    """Restore scales with which a value could decode to NaN or infinity: flipped values reach -2**(bits-1)."""
    rows, lowest = math.prod(shape[:-1]), 2.0 ** (bits - 1)
    scales = received[: 2 * rows].view("<f2")
    lost = _overflows(scales, exponent, lowest)
    scales[lost] = sent[: 2 * rows].view("<f2")[lost]
    if bits < 8:
        return  # encode uses the lowest level too: with the original scale every value is finite
    # Within 1 % of float32's largest even the original scale is too large for -128: no bit of that row flips.
    lost = _overflows(scales, exponent, lowest)
    values = received[2 * rows :].reshape(rows, shape[-1])
    values[lost] = sent[2 * rows :].reshape(values.shape)[lost]


def _overflows(numbers: npt.NDArray[np.floating], exponent: int, factor: float = 1.0) -> npt.NDArray[np.bool_]:
    """A mask: True where ``factor * numbers * 2**exponent`` is no finite float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        lost: npt.NDArray[np.bool_] = ~np.isfinite(np.ldexp(numbers.astype(np.float32) * np.float32(factor), exponent))
    return lost


def _check_snr(snr_db: float) -> None:
    if not abs(snr_db) <= _LARGEST_SNR_DB:  # written so that it refuses NaN
        raise SettingError(
            f"a signal-to-noise ratio of {snr_db} dB",
            f"{-_LARGEST_SNR_DB:g} to {_LARGEST_SNR_DB:g} dB",
            "for example 10; leave it out for no noise",
        )


def _check_independent(precision: Precision) -> None:
    if dct_bits(precision):
        raise SettingError(
            f"bit errors in {precision}",
            "a precision whose values do not depend on one another: one wrong bit ends a range coder's message",
            f"choose pca{dct_bits(precision):g} or int8, or --snr-up and --snr-down instead of --bit-errors",
        )


def _check_rate(rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise SettingError(
            f"a bit error rate of {rate}", "a probability in [0, 1)", "for example 1e-5; 0 for no errors"
        )
