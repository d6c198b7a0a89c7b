"""The codec of a setting."""

from __future__ import annotations

from adc_edge.errors import SettingError
from adc_edge.evaluation.codecs.adc import Adc, AdcBy, cls_token, mean_token
from adc_edge.evaluation.codecs.aqsgd import AqSgd
from adc_edge.evaluation.codecs.base import Codec
from adc_edge.evaluation.codecs.bottleneck import BottleNetPlusPlus
from adc_edge.evaluation.codecs.c3sl import C3sl
from adc_edge.evaluation.codecs.fedlite import FedLite
from adc_edge.evaluation.codecs.lowrank import LowRank
from adc_edge.evaluation.codecs.sparse import TopK
from adc_edge.evaluation.codecs.tah import Tah
from adc_edge.evaluation.codecs.tsflora import TsfLora
from adc_edge.evaluation.study.setting import Setting
from adc_edge.method.ratio import Ratio
from adc_edge.method.spec import TrunkSpec


def make_codec(setting: Setting, spec: TrunkSpec, classes: int, seed: int) -> Codec:
    """Make a setting's codec for a model; ``seed`` is for what a method draws once (keys, its own weights)."""
    travels = (setting.precision, setting.gradient_precision)
    ratio, method = setting.ratio, setting.method
    if method in ("aqsgd", "aqsgd-direct"):
        first = "fp32" if method == "aqsgd" else setting.precision
        return AqSgd(classes, spec.tokens, spec.embed_dim, *travels, first)
    if ratio is None:
        return Codec(classes, *travels)
    if method in ("adc-cls", "adc-mean"):
        return AdcBy(spec, classes, ratio, *travels, cls_token if method == "adc-cls" else mean_token)
    if method == "adc":
        return Adc(spec, classes, ratio, *travels)
    share = ratio.xi
    if share is None:
        raise SettingError(f"setting {setting}", "one ratio for this method", f"for example {method}@0.1")
    if method == "adc-batch":
        return Adc(spec, classes, Ratio(batch=share, token=1.0), *travels)
    if method == "adc-tokens":
        return Adc(spec, classes, Ratio(batch=1.0, token=share), *travels)
    if method == "c3sl":
        return C3sl(classes, share, spec.tokens, spec.embed_dim, *travels, seed=seed)
    if method == "bottlenetpp":
        return BottleNetPlusPlus(classes, share, spec.embed_dim, *travels, seed=seed)
    if method == "tah":
        return Tah(classes, share, spec.embed_dim, *travels, seed=seed)
    if method in ("lowrank", "lowrank-ef"):
        return LowRank(classes, share, spec.embed_dim, *travels, feedback=float(method == "lowrank-ef"))
    if method == "fedlite":
        return FedLite(classes, share, spec.embed_dim, *travels)
    if method == "tsflora":
        return TsfLora(spec, classes, share, *travels, seed=seed)
    outside = 0.1 if method == "randtopk" else 0.0
    return TopK(classes, share, spec.tokens, spec.embed_dim, *travels, outside)
