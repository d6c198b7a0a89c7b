"""The setting of a run as text: ``METHOD[@RATIO][/UP[:DOWN]][+freezeE[xK]]``, for example ``adc@0.1``,
``adc@0.5x0.2/int4``, ``int8``, ``topk@0.05``, ``none/pca0.5:pca1``, ``none/pca4,pca1:pca0.25+freeze2``.

RATIO is ξ for ADC, or T/B and k/N as ``0.5x0.2``. For Top-K, RandTopK, C3-SL and BottleNet++ it is the share of the
uncompressed bytes that they send in fp32, with their indices. For both ``lowrank`` and ``tah`` it is the share of the
uncompressed bytes that they may send each way, whatever the precision, for ``fedlite`` the same of what goes up; for
``tsflora`` it is k/N. UP and DOWN are the precisions of activations and of gradients, for ``lowrank`` and ``fedlite``
those of factors and codewords. ``none`` and the two of AQ-SGD have no RATIO, and ``tah`` has no precisions. For the
methods of ``SERVED`` each may be a list, as ``pca4,pca1,pca0.5``: one for each epoch, the last one from then on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import msgspec

from adc_edge.codec.by_epoch import PrecisionsByEpoch, parse_precisions
from adc_edge.codec.precision import PRECISIONS, Precision
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Ratio

METHODS = {
    "none": "all activations: plain split learning, or quantization with a lower precision",
    "adc": "merge samples, keep tokens",
    "adc-batch": "half of ADC: merge samples, keep all tokens",
    "adc-tokens": "half of ADC: keep tokens, merge nothing",
    "adc-cls": "ADC clustered by the CLS token instead of its attention",
    "adc-mean": "ADC clustered by the mean token",
    "topk": "Top-K: the entries of largest magnitude",
    "randtopk": "RandTopK: a tenth of them drawn from outside the top",
    "c3sl": "C3-SL: samples bound by circular convolution and summed",
    "bottlenetpp": "BottleNet++: a learned encoder and decoder",
    "aqsgd": "AQ-SGD: an image's activations whole the first time, then their quantized change",
    "aqsgd-direct": "AQ-SGD with an image's first activations quantized as their changes are",
    "tah": "after TAH-Quant: rotated tiles of 0 to 4 bits, squeezed by zstd",
    "lowrank": "after NSC-SL: two thin factors",
    "lowrank-ef": "the same with PowerSGD's error feedback from batch to batch",
    "fedlite": "FedLite: vector quantization with a codebook a batch, and gradient correction",
    "tsflora": "after TSFLora: chosen tokens, the others merged into one, and LoRA on the trunk",
}
WITHOUT_RATIO = ("none", "aqsgd", "aqsgd-direct")
WITHOUT_PRECISION = ("tah",)
_SPLIT_RATIO = {"adc", "adc-cls", "adc-mean"}
SERVED = ("none", "adc", "adc-batch", "adc-tokens")  # methods that `serve` has too
FREEZE = "+freeze"
_SYNTAX = "METHOD[@RATIO][/UP[:DOWN]][+freezeE[xK]]"
_MOST_CHARACTERS = 200  # of a setting, which is part of the name of a file
_EXAMPLE = "for example none, int8, topk@0.05, adc@0.1/int4 or adc@0.5x0.2/int4:int2"


class Setting(msgspec.Struct, frozen=True):
    """A method at one ratio and precision; ``str`` gives the text that ``parse_setting`` reads."""

    method: str
    ratio: Ratio | None = None
    precision: Precision = "fp32"  # of activations, in the first epoch if there are later ones
    gradient_precision: Precision = "fp32"
    freeze: float | None = None  # epochs after which the trunk is frozen and images are sent once more; None: never
    passes: int = 1  # how often each image is sent then; more than once: as augmented views
    later: tuple[Precision, ...] = ()  # precisions of activations from the second epoch on
    gradient_later: tuple[Precision, ...] = ()

    @property
    def by_epoch(self) -> PrecisionsByEpoch:
        """The precisions of every epoch."""
        return PrecisionsByEpoch((self.precision, *self.later), (self.gradient_precision, *self.gradient_later))

    def __str__(self) -> str:
        """The shortest text of the setting."""
        if self.freeze is None:
            return self._travelling()
        return f"{self._travelling()}{FREEZE}{self.freeze:g}" + ("" if self.passes == 1 else f"x{self.passes}")

    def alone_from(self, steps_per_epoch: int) -> float:
        """The step from which on the trainer is alone with what a frozen trunk has sent; infinite if it never is."""
        return self.frozen_from(steps_per_epoch) + self.passes * steps_per_epoch

    def frozen_from(self, steps_per_epoch: int) -> float:
        """The step from which on the trunk is frozen; infinite if it never is."""
        return math.inf if self.freeze is None else round(self.freeze * steps_per_epoch)

    def _travelling(self) -> str:
        up, down = self.by_epoch.texts
        travels = up if up == down else f"{up}:{down}"
        if self.method == "none" and up == down:
            return "none" if up == "fp32" else up
        return self.method + self._at() + ("" if travels == "fp32" else f"/{travels}")

    def _at(self) -> str:
        if self.ratio is None:
            return ""
        return f"@{self.ratio.xi:g}" if self.ratio.xi is not None else f"@{self.ratio.batch:g}x{self.ratio.token:g}"


def parse_setting(text: str) -> Setting:
    """Read one setting.

    Raises:
        SettingError: the method or precision is unknown, the ratio is missing, superfluous or outside (0, 1], or the
            trunk cannot freeze.
    """
    what, freezes, epochs = text.strip().partition(FREEZE)
    body, slash, precisions = what.partition("/")
    method, at, ratio = body.partition("@")
    if method.partition(",")[0] in PRECISIONS and not at and not slash:
        method, body, precisions = "none", "none", method
    if method not in METHODS:
        raise _unreadable(text)
    if (method in WITHOUT_RATIO) == bool(at):
        raise SettingError(f"setting {text!r}", f"@RATIO for every method but {', '.join(WITHOUT_RATIO)}", _EXAMPLE)
    up, down = _precisions(text, body, precisions)
    freeze, passes = _freeze(text, method, epochs) if freezes else (None, 1)
    return Setting(
        method, _ratio(text, method, ratio) if at else None, up[0], down[0], freeze, passes, up[1:], down[1:]
    )


def _unreadable(text: str) -> SettingError:
    return SettingError(
        f"setting {text!r}",
        f"{_SYNTAX}, METHOD one of {', '.join(METHODS)} or a precision, UP and DOWN of {', '.join(PRECISIONS)}",
        _EXAMPLE,
    )


def _precisions(text: str, head: str, precisions: str) -> tuple[tuple[Precision, ...], tuple[Precision, ...]]:
    """Precisions up and down by epoch of a setting that begins with ``head``: method and ratio."""
    method = head.partition("@")[0]
    first, colon, second = precisions.partition(":")
    try:
        up = parse_precisions(first or "fp32")
        down = parse_precisions(second) if colon else up
    except SettingError as error:
        raise SettingError(f"setting {text!r}: {error.received}", error.expected, error.remedy) from None
    if PrecisionsByEpoch(up, down).changes and method not in SERVED:
        raise SettingError(
            f"setting {text!r}",
            f"precisions that change by epoch for {', '.join(SERVED)} alone: {method} has one each way",
            f"for example {head}/{up[-1]}:{down[-1]}, or none/{precisions}",
        )
    if len(text) > _MOST_CHARACTERS:
        raise SettingError(
            f"a setting of {len(text)} characters",
            f"at most {_MOST_CHARACTERS}, since files are named after it",
            "list fewer precisions: the last one holds from its epoch on",
        )
    return up, down


def _freeze(text: str, method: str, epochs: str) -> tuple[float, int]:
    """Epochs until the trunk freezes, and the passes after that."""
    first, cross, second = epochs.partition("x")
    try:
        number, passes = float(first), int(second) if cross else 1
    except ValueError:
        number, passes = math.nan, 1
    if not (0 <= number < math.inf) or passes < 1 or method not in SERVED:
        raise SettingError(
            f"setting {text!r}",
            f"{FREEZE}E or {FREEZE}ExK, E epochs, 0 or more, and K passes, for {', '.join(SERVED)} or a precision",
            "for example none/pca1:pca0.25+freeze2",
        )
    return number, passes


def _ratio(text: str, method: str, ratio: str) -> Ratio:
    first, cross, second = ratio.partition("x")
    try:
        if cross and method not in _SPLIT_RATIO:
            raise ValueError("only ADC has two ratios")
        parts = [float(first), float(second)] if cross else [float(first)]
    except ValueError as error:
        raise SettingError(f"setting {text!r}: {error}", "a ratio as 0.1 or 0.5x0.2", _EXAMPLE) from None
    return (Ratio(batch=parts[0], token=parts[1]) if cross else Ratio(xi=parts[0])).check()


def product(methods: Sequence[str], ratios: Sequence[str], precisions: Sequence[str]) -> list[Setting]:
    """Every method at every ratio and precision, each setting once, in this order.

    ``none`` and AQ-SGD have no ratio, ``tah`` no precision; a method named after a precision (``int8``) has neither.
    """
    texts: list[str] = []
    for method in methods:
        if method in PRECISIONS:
            texts.append(method)
        elif method in WITHOUT_RATIO:
            texts += [f"{method}/{precision}" for precision in precisions]
        elif method in WITHOUT_PRECISION:
            texts += [f"{method}@{ratio}" for ratio in ratios]
        else:
            texts += [f"{method}@{ratio}/{precision}" for ratio, precision in itertools.product(ratios, precisions)]
    return unique(parse_setting(text) for text in texts)


def unique(settings: Iterable[Setting]) -> list[Setting]:
    """Each setting once, in the order of first occurrence."""
    return list(dict.fromkeys(settings))
