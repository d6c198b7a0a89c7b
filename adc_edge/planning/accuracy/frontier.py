"""The accuracy of a setting, and the images that an attacker sees of it, from studies that have measured settings.

`adc-edge evaluate` and `adc-edge privacy` measure settings. Between two of them, one that sends less and one that sends
more, a value is interpolated. Nothing is told of a setting that no two measured ones enclose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import msgspec

from adc_edge.codec.precision import PRECISIONS, component_bits, dct_bits, integer_bits, pca_bits
from adc_edge.defaults import Precision
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Ratio

_TEXT = re.compile(r"(none|adc|adc-batch|adc-tokens)(?:@([\d.e-]+)(?:x([\d.e-]+))?)?(?:/(\w[\w.]*)(?::(\w[\w.]*))?)?")
_NEAR = 3.0  # doublings of what is sent, in all, between two settings that tell what lies between them
_ALIKE = {"accuracy": 1.0, "ssim": 0.02}  # or they differ by no more: then what lies between them does not either
_BY_VALUE = {"fp32": 32.0, "fp16": 16.0, "bf16": 16.0}


class SentSetting(msgspec.Struct, frozen=True):
    """The part of a setting that accuracy depends on: what is sent, and in which precision."""

    batch: float  # T/B
    token: float  # k/N
    precision: Precision
    gradient_precision: Precision

    @classmethod
    def of(cls, ratio: Ratio, precision: Precision, gradient_precision: Precision) -> SentSetting:
        """Return the setting with this ratio; ξ alone is halved between images and tokens, as `Ratio.shape` does."""
        if ratio.xi is not None:
            return cls(math.sqrt(ratio.xi), math.sqrt(ratio.xi), precision, gradient_precision)
        return cls(ratio.batch or 1.0, ratio.token or 1.0, precision, gradient_precision)


class MeasuredPoint(msgspec.Struct, frozen=True):
    """A measured setting."""

    setting: str  # as `evaluate` spells it
    value: float  # points of accuracy above uncompressed training, or SSIM
    spread: float | None = None  # standard error; None: one seed
    seeds: int = 1


class MeasuredStudy(msgspec.Struct, frozen=True):
    """Measured settings of one task."""

    quantity: Literal["accuracy", "ssim"]
    source: str  # the page or file that it was read from
    data: str
    model: str
    tokens: int  # N
    split: int
    batch_size: int
    epochs: float
    reference: float  # accuracy of uncompressed training in %, or SSIM of the mean image
    points: list[MeasuredPoint]


class Estimate(NamedTuple):
    """A value of a setting."""

    value: float
    spread: float | None  # standard error, and at least half of the distance between the two enclosing settings
    settings: tuple[str, ...]  # the measured one, or the two that enclose it: the one that sends less comes first
    source: str

    @property
    def measured(self) -> bool:
        """Whether the setting itself was measured."""
        return len(self.settings) == 1


def read_setting(text: str) -> tuple[Ratio, Precision, Precision] | None:
    """Return ratio and precisions of a setting of `evaluate`; None for a method that `serve` does not have."""
    if text in PRECISIONS:
        text = f"none/{text}"
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    method, first, second, up, down = found.groups()
    up, down = up or "fp32", down or up or "fp32"
    if up not in PRECISIONS or down not in PRECISIONS or (method == "none") == bool(first):
        return None
    try:
        ratio = _ratio(method, float(first or 1.0), None if second is None else float(second)).check()
    except (ValueError, SettingError):
        return None
    return ratio, up, down


def _ratio(method: str, first: float, second: float | None) -> Ratio:
    if method == "adc-batch":
        return Ratio(batch=first, token=1.0)
    if method == "adc-tokens":
        return Ratio(batch=1.0, token=first)
    if second is None:
        return Ratio(xi=first)
    return Ratio(batch=first, token=second)


def nearest_studies(studies: Sequence[MeasuredStudy], model: str, tokens: int) -> list[MeasuredStudy]:
    """Return the studies whose number of tokens is nearest; those of the same model, and with more runs, first."""
    if not studies:
        return []
    nearest = min((abs(math.log(study.tokens / tokens)), study.tokens) for study in studies)[1]
    same = [study for study in studies if study.tokens == nearest]
    return sorted(same, key=lambda study: (study.model != model, -sum(point.seeds for point in study.points)))


def estimate(studies: Sequence[MeasuredStudy], asked: SentSetting) -> Estimate | None:
    """Return the value of a setting from the first study that has it, or else from the one that encloses it closest.

    Two settings that are far apart count only in the first study: a second one, on other data, would tell of settings
    that the first has measured nearby, and both together would make one look better than one that sends more.

    Args:
        studies: of one quantity, the one that counts most first.
        asked: the setting.

    Returns:
        None if no study has measured it, or two settings that enclose it and are near each other or equally good.
    """
    pairs = (_within(study, asked, far=number == 0) for number, study in enumerate(studies))
    found = [pair for pair in pairs if pair is not None]
    return min(found, key=lambda pair: pair[0], default=(0.0, None))[1]


def _within(study: MeasuredStudy, asked: SentSetting, far: bool) -> tuple[float, Estimate] | None:
    """Return the value in one study, and the distance of the two settings that it comes from; 0 if it was measured."""
    here = _place(asked, study.quantity)
    places = [(place, one) for one in study.points if (place := _place_of(one.setting, study.quantity)) is not None]
    for place, point in places:
        if _distance(place, here) < 1e-6 and place.codecs == here.codecs:
            return 0.0, Estimate(point.value, point.spread, (point.setting,), study.source)
    less = [(_distance(place, here), point) for place, point in places if _sends_less(place, here)]
    more = [(_distance(place, here), point) for place, point in places if _sends_less(here, place)]
    if not less or not more:
        return None
    (low, below), (high, above) = (min(side, key=lambda pair: pair[0]) for side in (less, more))
    gap = above.value - below.value
    if low + high > _NEAR and not (far and abs(gap) <= _ALIKE[study.quantity]):
        return None
    value = below.value + gap * (low / (low + high) if low + high else 0.0)
    spread = max(below.spread or 0.0, above.spread or 0.0, abs(gap) / 2)
    return low + high + 1e-9, Estimate(value, spread, (below.setting, above.setting), study.source)


class _Place(NamedTuple):
    """A setting as coordinates: doublings of what is sent."""

    ratios: tuple[float, float]  # log2 of T/B and k/N
    bits: tuple[float, ...]  # log2 of the bits of a value, each way
    codecs: tuple[Precision, ...]


@cache
def _place_of(text: str, quantity: str) -> _Place | None:
    found = read_setting(text)
    return None if found is None else _place(SentSetting.of(*found), quantity)


def _place(setting: SentSetting, quantity: str) -> _Place:
    both: tuple[Precision, ...] = (setting.precision, setting.gradient_precision)
    used = both if quantity == "accuracy" else both[:1]  # an attacker sees what goes up
    bits = tuple(math.log2(_bits(precision)) for precision in used)
    return _Place((math.log2(setting.batch), math.log2(setting.token)), bits, used)


def _bits(precision: Precision) -> float:
    return component_bits(precision) or integer_bits(precision) or _BY_VALUE[precision]


def _sends_less(less: _Place, more: _Place) -> bool:
    """Return whether ``less`` sends at most as much of everything. Two ways to encode compare with fp32 alone."""
    ratios = all(a <= b + 1e-9 for a, b in zip(less.ratios, more.ratios, strict=True))
    codecs = zip(less.codecs, more.codecs, less.bits, more.bits, strict=True)
    return ratios and all(b == "fp32" or (_kind(a) == _kind(b) and bits_a <= bits_b) for a, b, bits_a, bits_b in codecs)


def _kind(precision: Precision) -> tuple[bool, bool]:
    return bool(pca_bits(precision)), bool(dct_bits(precision))


def _distance(a: _Place, b: _Place) -> float:
    return sum(abs(x - y) for x, y in zip(a.ratios + a.bits, b.ratios + b.bits, strict=True))
