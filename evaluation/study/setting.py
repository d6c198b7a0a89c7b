"""The setting of a run as text: ``METHOD[@RATIO][/UP[:DOWN]]``, for example ``adc@0.1``, ``adc@0.5x0.2/int4``,
``int8``, ``topk@0.05``, ``none/pca0.5:pca1``.

RATIO is ξ for ADC, or T/B and k/N as ``0.5x0.2``. For its rivals it is the share of the uncompressed bytes that they
send in fp32, with their indices. UP and DOWN are the precisions of activations and of gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import msgspec

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
}
_SPLIT_RATIO = {"adc", "adc-cls", "adc-mean"}
_SYNTAX = "METHOD[@RATIO][/UP[:DOWN]]"
_EXAMPLE = "for example none, int8, topk@0.05, adc@0.1/int4 or adc@0.5x0.2/int4:int2"


class Setting(msgspec.Struct, frozen=True, order=True):
    """A method at one ratio and precision; ``str`` gives the text that ``parse_setting`` reads."""

    method: str
    ratio: Ratio | None = None
    precision: Precision = "fp32"
    gradient_precision: Precision = "fp32"

    def __str__(self) -> str:
        """The shortest text of the setting."""
        up, down = self.precision, self.gradient_precision
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
        SettingError: the method or precision is unknown, or the ratio is missing, superfluous or outside (0, 1].
    """
    body, slash, precisions = text.strip().partition("/")
    method, at, ratio = body.partition("@")
    if method in PRECISIONS and not at and not slash:
        method, precisions = "none", method
    up, colon, down = precisions.partition(":")
    up = up or "fp32"
    down = down if colon else up
    if method not in METHODS or up not in PRECISIONS or down not in PRECISIONS:
        raise SettingError(
            f"setting {text!r}",
            f"{_SYNTAX}, METHOD one of {', '.join(METHODS)} or a precision, UP and DOWN of {', '.join(PRECISIONS)}",
            _EXAMPLE,
        )
    if (method == "none") == bool(at):
        raise SettingError(f"setting {text!r}", "@RATIO for every method but none", _EXAMPLE)
    return Setting(method, _ratio(text, method, ratio) if at else None, up, down)


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

    ``none`` has no ratio; a method named after a precision (``int8``) has neither.
    """
    texts: list[str] = []
    for method in methods:
        if method in PRECISIONS:
            texts.append(method)
        elif method == "none":
            texts += [f"none/{precision}" for precision in precisions]
        else:
            texts += [f"{method}@{ratio}/{precision}" for ratio, precision in itertools.product(ratios, precisions)]
    return unique(parse_setting(text) for text in texts)


def unique(settings: Iterable[Setting]) -> list[Setting]:
    """Each setting once, in the order of first occurrence."""
    return list(dict.fromkeys(settings))
