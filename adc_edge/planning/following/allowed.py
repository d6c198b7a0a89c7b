"""The settings that a run may take while it follows its link: accurate enough, as far as it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from adc_edge.codec.precision import encoded_bytes, pca_bits
from adc_edge.defaults import Precision
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.planning.accuracy.frontier import MeasuredStudy, SentSetting, estimate
from adc_edge.planning.candidates import COUNTS, PAIRS, has_few_rows
from adc_edge.planning.choice import DEFAULT_LOSS
from adc_edge.planning.following.follow import MessageForm
from adc_edge.planning.micro_batches import possible_cuts
from adc_edge.planning.plan_file import PlanFile, PlannedStep
from adc_edge.storage.bundle import Manifest

_TOKENS = (1.0, 0.75, 0.5)  # k/N; fewer tokens than half cost accuracy in every study that there is
_CUTS = COUNTS[:6]
_Pair = tuple[Precision, Precision]


def allowed_forms(
    manifest: Manifest, images: int, now: MessageForm, studies: Sequence[MeasuredStudy], least: float = DEFAULT_LOSS
) -> list[MessageForm]:
    """Return the forms that lose little accuracy and of which none is sent in fewer bytes as quickly.

    As many images are merged as in ``now``, because merging hides the images from whoever reads what is sent.

    Args:
        manifest: of the bundle.
        images: B.
        now: what the run sends.
        studies: of accuracy.
        least: accuracy in points above uncompressed training, at least.
    """
    merged, kept = now.shape.clusters / now.shape.images, now.shape.kept / manifest.tokens
    sent = [(kept, (now.precision, now.gradient_precision))]  # whoever chose this knows its accuracy
    for tokens in dict.fromkeys((kept, *_TOKENS)):
        for pairs in _kinds():
            near = [pair for pair in pairs if _accuracy(studies, SentSetting(merged, tokens, *pair)) >= least]
            sent += [(tokens, min(near, key=_pair_bytes))] if near else []
    found = [now]
    for tokens, pair in sent:
        ratio = Ratio(batch=merged, token=tokens)
        for count, shape in possible_cuts(images, partial(_shape, manifest, ratio, images)).items():
            form = MessageForm(count, shape, *pair)
            fits = count == 1 or not has_few_rows(shape, manifest.dim, pair)
            if fits and count in (*_CUTS, now.micro_batches):
                found.append(form)
    return list(dict.fromkeys(found))


def planned_forms(plan: PlanFile, manifest: Manifest) -> list[MessageForm]:
    """Return the forms of a plan's front that differ from the chosen setting only in what a step sends."""
    chosen = plan.chosen
    limits = [goal for goal in plan.goals if goal.quantity in ("accuracy", "ssim", "bytes")]
    least = DEFAULT_LOSS if chosen.accuracy is None else min(DEFAULT_LOSS, chosen.accuracy.value)
    found = [planned_form(chosen, manifest)]
    for one in plan.front:
        same = (one.split, one.batch_size, one.trunk, one.freeze_first)
        accurate = one.accuracy is not None and one.accuracy.value >= least
        if same != (chosen.split, chosen.batch_size, chosen.trunk, chosen.freeze_first) or not accurate:
            continue
        if all(_within(one, goal.quantity, goal.limit) for goal in limits):
            found.append(planned_form(one, manifest))
    return list(dict.fromkeys(found))


def planned_form(one: PlannedStep, manifest: Manifest) -> MessageForm:
    """Return what a step of a planned setting sends."""
    shape = Shape(one.batch_size // one.micro_batches, manifest.tokens, one.clusters, one.kept)
    return MessageForm(one.micro_batches, shape, one.precision, one.gradient_precision or one.precision)


def _within(one: PlannedStep, quantity: str, limit: float) -> bool:
    if quantity == "bytes":
        return one.bytes_up + one.bytes_down <= limit
    value = one.accuracy if quantity == "accuracy" else one.ssim
    return value is not None and (value.value >= limit if quantity == "accuracy" else value.value <= limit)


def _kinds() -> list[list[_Pair]]:
    """Pairs of precisions that take about the same time to encode: each value by itself, or principal components."""
    return [[pair for pair in PAIRS if bool(pca_bits(pair[0])) is coded] for coded in (False, True)]


def _pair_bytes(pair: _Pair) -> int:
    size = (1024, 1, 256)
    return sum(encoded_bytes(size, precision) for precision in pair)


def _accuracy(studies: Sequence[MeasuredStudy], asked: SentSetting) -> float:
    found = estimate(studies, asked)
    return float("-inf") if found is None else found.value


def _shape(manifest: Manifest, ratio: Ratio, images: int, count: int) -> Shape:
    return ratio.shape(images // count, manifest.tokens, manifest.prefix)
