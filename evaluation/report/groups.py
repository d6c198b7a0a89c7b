"""The group of a setting: adc-edge, the paper's ADC, or one of their rivals."""

from __future__ import annotations

from typing import NamedTuple

from adc_edge.evaluation.study.setting import FREEZE, METHODS, Setting

OURS, FROZEN, PAPER, UNCOMPRESSED = "adc-edge", "adc-edge, frozen trunk", "ADC, the paper's", "uncompressed"
RIVALS = {"topk": "Top-K", "randtopk": "RandTopK", "c3sl": "C3-SL", "bottlenetpp": "BottleNet++"}
SIZED_RIVALS = {  # their precisions are part of the method
    "aqsgd": "AQ-SGD",
    "aqsgd-direct": "AQ-SGD",
    "tah": "TAH-Quant",
    "lowrank": "low rank (NSC-SL)",
    "lowrank-ef": "low rank (NSC-SL)",
    "fedlite": "FedLite",
    "tsflora": "TSFLora",
}
LOW_BITS, COMPONENTS = " x low bits", " x pca"
METHOD_GROUPS = (
    OURS,
    FROZEN,
    PAPER,
    "ADC" + LOW_BITS,
    "ADC, ablations",
    "plain quantization",
    *RIVALS.values(),
    *(name + LOW_BITS for name in RIVALS.values()),
    *dict.fromkeys(SIZED_RIVALS.values()),
    *(name + COMPONENTS for name in dict.fromkeys(SIZED_RIVALS.values())),
    UNCOMPRESSED,
)


class SettingParts(NamedTuple):
    """The parts of a setting's text. Unlike ``parse_setting``, ``parts_of`` refuses nothing: every run is shown."""

    method: str
    ratio: str  # "" if there is none
    up: str  # precision of activations, or one for each epoch with commas
    down: str  # of gradients
    freeze: str = ""  # epochs, and passes after "x", of a trunk that freezes; "" if it does not

    @property
    def precision(self) -> str:
        """Both precisions as ``up:down``, or one if they are equal."""
        return self.up if self.up == self.down else f"{self.up}:{self.down}"


def parts_of(setting: Setting | str) -> SettingParts:
    """Method, ratio, precisions and freeze of ``METHOD[@RATIO][/UP[:DOWN]][+freezeE[xK]]``."""
    whole, _, freeze = str(setting).partition(FREEZE)
    body, _, travels = whole.partition("/")
    method, _, ratio = body.partition("@")
    if method not in METHODS:  # a precision alone
        method, travels = "none", method
    up, _, down = (travels or "fp32").partition(":")
    return SettingParts(method, ratio, up, down or up, freeze)


def group_of(setting: Setting | str) -> str:
    """The group of METHOD_GROUPS that a setting belongs to."""
    method, _, up, down, freeze = parts_of(setting)
    if freeze:
        return FROZEN
    components = any(precision.startswith(("pca", "dct")) for precision in (*up.split(","), *down.split(",")))
    if method in SIZED_RIVALS:
        return SIZED_RIVALS[method] + (COMPONENTS if components else "")
    if components:
        return OURS
    whole = up == down == "fp32"
    if method == "none":
        return UNCOMPRESSED if whole else "plain quantization"
    if method in RIVALS:
        return RIVALS[method] if whole else RIVALS[method] + LOW_BITS
    if not whole:
        return "ADC" + LOW_BITS
    return PAPER if method == "adc" else "ADC, ablations"
