"""The settings that a plan chooses from, each with its predicted step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from adc_edge.codec.precision import PRECISIONS, component_bits
from adc_edge.defaults import Precision
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.planning.accuracy.frontier import MeasuredStudy, SentSetting, estimate, read_setting
from adc_edge.planning.choice import Candidate
from adc_edge.planning.micro_batches import possible_cuts
from adc_edge.planning.profile import BlockSeconds, CodecSeconds, DeviceProfile, Line, Profile
from adc_edge.planning.step_model import LinkRates, Prediction, StepPlan, predict
from adc_edge.storage.bundle import Manifest

COUNTS = (1, 2, 4, 8, 16, 32, 64)
ROWS_A_CHANNEL = 4  # rows of a message for each channel, below which principal components describe it worse
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
_SAME_TIME = 0.01
PAIRS: tuple[tuple[Precision, Precision], ...] = (
    ("fp32", "fp32"),
    ("fp16", "fp16"),
    ("int8", "int8"),
    ("int4", "int4"),
    ("int3", "int3"),
    ("int2", "int2"),
    ("pca4", "pca4"),
    ("pca4", "pca2"),
    ("pca3", "pca1"),
    ("pca2", "pca1"),
    ("pca2", "pca0.5"),
    ("pca1.5", "pca0.5"),
    ("pca1", "pca0.5"),
    ("pca1", "pca0.25"),
    ("pca0.75", "pca0.25"),
    ("pca0.5", "pca0.25"),
    ("pca0.5", "pca0.125"),
    ("pca0.25", "pca0.125"),
    ("pca0.125", "pca0.0625"),
)


class Task(NamedTuple):
    """The run that a plan is made for."""

    manifest: Manifest
    batch_size: int
    link: LinkRates
    profile: Profile
    accuracy: Sequence[MeasuredStudy]
    ssim: Sequence[MeasuredStudy]


class _Sent(NamedTuple):
    ratio: Ratio
    precision: Precision
    gradient_precision: Precision


def unknown_profile(manifest: Manifest) -> Profile:
    """Return a profile in which nothing takes time: with it only bytes and the link count."""
    nothing, line = BlockSeconds(0.0, 0.0, 0.0), Line(0.0, 0.0)
    device = DeviceProfile(
        machine={},
        bundle="",
        model=manifest.model,
        split=manifest.split,
        tokens=manifest.tokens,
        dim=manifest.dim,
        engine="",
        compute="",
        keeps_graph=True,
        images=0,
        call_seconds=0.0,
        embedding=nothing,
        blocks=[nothing] * manifest.split,
        update_seconds=0.0,
        data_seconds=0.0,
        codec={precision: CodecSeconds(line, line) for precision in PRECISIONS},
    )
    return Profile(device)


def candidates(task: Task) -> list[Candidate]:
    """Return every setting with a trunk that trains, each with its best number of micro-batches."""
    return [_with_micro_batches(task, sent) for sent in _settings(task)]


def bundle_candidate(task: Task) -> Candidate:
    """Return the bundle's own setting in one message a step, which `serve` takes if it is told nothing."""
    manifest, sent = task.manifest, _default(task.manifest)
    shape = sent.ratio.shape(task.batch_size, manifest.tokens, manifest.prefix)
    plan = StepPlan(manifest.split, shape, sent.precision, sent.gradient_precision)
    return _candidate(task, sent, plan, predict(plan, task.link, task.profile))


def bundle_in_messages(task: Task) -> Candidate:
    """Return the bundle's own setting with the fewest messages that are as fast as any."""
    return _with_micro_batches(task, _default(task.manifest))


def with_frozen_blocks(task: Task, chosen: Iterable[Candidate]) -> list[Candidate]:
    """Return the same settings with blocks 1..K or the whole trunk frozen. No study measures their accuracy."""
    found: dict[StepPlan, Candidate] = {}
    for one in chosen:
        for count in range(1, task.manifest.split):
            found |= _entry(task, one, one.plan._replace(freeze_first=count))
        found |= _entry(task, one, one.plan._replace(gradient_precision=None))
    return list(found.values())


def _entry(task: Task, one: Candidate, plan: StepPlan) -> dict[StepPlan, Candidate]:
    prediction = predict(plan, task.link, task.profile)
    return {plan: one._replace(plan=plan, prediction=prediction, accuracy=None)}


def with_small_window(task: Task, one: Candidate) -> Candidate:
    """Return the candidate with the smallest window that costs no time, because a window bounds memory."""
    window = 1
    while window < one.plan.micro_batches:
        plan = one.plan._replace(window=window)
        prediction = predict(plan, task.link, task.profile)
        if prediction.seconds <= one.prediction.seconds * (1 + _SAME_TIME):
            return one._replace(plan=plan, prediction=prediction)
        window *= 2
    return one


def other_splits(task: Task, one: Candidate) -> list[Candidate]:
    """Return the setting at every other split of the model, fastest first."""
    sent = _Sent(one.ratio, one.plan.precision, one.plan.gradient_precision or one.plan.precision)
    found = [
        _with_micro_batches(task, sent, split)._replace(accuracy=None, ssim=None)
        for split in range(1, task.manifest.depth)
        if split != task.manifest.split
    ]
    return sorted(found, key=lambda best: best.prediction.seconds)


def _settings(task: Task) -> Iterator[_Sent]:
    """Yield what may be sent, each shape and precision once: the bundle's own, what was measured, then a grid."""
    manifest, seen = task.manifest, set[tuple[int, int, Precision, Precision]]()
    known = known_precisions(task.profile)
    for sent in (_default(manifest), *_measured(task), *_grid()):
        shape = sent.ratio.shape(task.batch_size, manifest.tokens, manifest.prefix)
        key = (shape.clusters, shape.kept, sent.precision, sent.gradient_precision)
        if key not in seen and {sent.precision, sent.gradient_precision} <= known:
            seen.add(key)
            yield sent


def known_precisions(profile: Profile) -> set[Precision]:
    """Precisions that every side has been measured with."""
    sides = [profile.device.codec] + ([] if profile.trainer is None else [profile.trainer.codec])
    return {precision for precision in PRECISIONS if all(precision in side for side in sides)}


def _default(manifest: Manifest) -> _Sent:
    return _Sent(manifest.ratio, manifest.precision, manifest.gradient_precision or manifest.precision)


def _measured(task: Task) -> Iterator[_Sent]:
    for study in (*task.accuracy, *task.ssim):
        for point in study.points:
            if found := read_setting(point.setting):
                yield _Sent(*found)


def _grid() -> Iterator[_Sent]:
    for batch in _SHARES:
        for token in _SHARES:
            for up, down in PAIRS:
                yield _Sent(Ratio(batch=batch, token=token), up, down)


def _with_micro_batches(task: Task, sent: _Sent, split: int | None = None) -> Candidate:
    """Return a setting with the fewest micro-batches that are as fast as any."""
    found = []
    for count, shape in _cuts(task, sent).items():
        plan = StepPlan(split or task.manifest.split, shape, sent.precision, sent.gradient_precision, count)
        found.append((plan, predict(plan, task.link, task.profile)))
    least = min(prediction.seconds for _, prediction in found)
    return _candidate(task, sent, *next(one for one in found if one[1].seconds <= least * (1 + _SAME_TIME)))


def _candidate(task: Task, sent: _Sent, plan: StepPlan, prediction: Prediction) -> Candidate:
    asked = SentSetting.of(*sent)
    known = estimate(task.accuracy, asked), estimate(task.ssim, asked)
    few = has_few_rows(plan.shape, task.manifest.dim, (plan.precision, plan.gradient_precision))
    return Candidate(plan, sent.ratio, prediction, *known, few)


def _cuts(task: Task, sent: _Sent) -> dict[int, Shape]:
    """Return the shape of a micro-batch for each M that `serve` would take too, with rows enough for its precisions."""
    manifest, images = task.manifest, task.batch_size
    precisions = sent.precision, sent.gradient_precision

    def shape_of(count: int) -> Shape:
        return sent.ratio.shape(images // count, manifest.tokens, manifest.prefix)

    cuts = possible_cuts(images, shape_of)
    return {
        count: shape
        for count, shape in cuts.items()
        if count == 1 or (count in COUNTS and not has_few_rows(shape, manifest.dim, precisions))
    }


def has_few_rows(shape: Shape, dim: int, precisions: Iterable[Precision | None]) -> bool:
    """Return whether a message of this shape is too small for principal components, and has some."""
    coded = any(component_bits(precision) for precision in precisions if precision is not None)
    return coded and shape.clusters * shape.kept < ROWS_A_CHANNEL * dim
