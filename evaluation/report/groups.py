"""The group of a setting: adc-edge, the paper's ADC, or one of their rivals."""

from __future__ import annotations

from typing import NamedTuple

from adc_edge.evaluation.study.setting import METHODS, Setting

OURS, PAPER, UNCOMPRESSED = "adc-edge", "ADC, the paper's", "uncompressed"
RIVALS = {"topk": "Top-K", "randtopk": "RandTopK", "c3sl": "C3-SL", "bottlenetpp": "BottleNet++"}
LOW_BITS = " x low bits"
METHOD_GROUPS = (
    OURS,
    PAPER,
    "ADC" + LOW_BITS,
    "ADC, ablations",
    "plain quantization",
    *RIVALS.values(),
    *(name + LOW_BITS for name in RIVALS.values()),
    UNCOMPRESSED,
)


class SettingParts(NamedTuple):
    """The parts of a setting's text. Unlike ``parse_setting``, ``parts_of`` refuses nothing: every run is shown."""

    method: str
    ratio: str  # "" if there is none
    up: str  # precision of activations
    down: str  # precision of gradients

    @property
    def precision(self) -> str:
        """Both precisions as ``up:down``, or one if they are equal."""
        return self.up if self.up == self.down else f"{self.up}:{self.down}"


def parts_of(setting: Setting | str) -> SettingParts:
    """Method, ratio and precisions of ``METHOD[@RATIO][/UP[:DOWN]]``."""
    body, _, travels = str(setting).partition("/")
    method, _, ratio = body.partition("@")
    if method not in METHODS:  # a precision alone
        method, travels = "none", method
    up, _, down = (travels or "fp32").partition(":")
    return SettingParts(method, ratio, up, down or up)


def group_of(setting: Setting | str) -> str:
    """The group of METHOD_GROUPS that a setting belongs to."""
    method, _, up, down = parts_of(setting)
    if up.startswith("pca") or down.startswith("pca"):
        return OURS
    whole = up == down == "fp32"
    if method == "none":
        return UNCOMPRESSED if whole else "plain quantization"
    if method in RIVALS:
        return RIVALS[method] if whole else RIVALS[method] + LOW_BITS
    if not whole:
        return "ADC" + LOW_BITS
    return PAPER if method == "adc" else "ADC, ablations"
