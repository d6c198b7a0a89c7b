"""The choice of engine and of the messages of a step: those with the shortest predicted step.

`--engine auto` compares ONNX Runtime and PyTorch, `--micro-batches auto` the numbers that divide the batch. Both are
chosen from one measurement. The trainer's time is not known before a run and left out, so several messages are chosen
for the sake of the link alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from adc_edge.defaults import Precision
from adc_edge.edge_runtime.choosing.link import LinkTimes
from adc_edge.edge_runtime.choosing.measuring import DeviceSeconds, FirstBatch, at_size
from adc_edge.method.ratio import Shape
from adc_edge.planning.message_sizes import sizes_of_messages
from adc_edge.planning.micro_batches import CutTime, best_cut
from adc_edge.planning.schedule import Costs, step_seconds
from adc_edge.screen.words import roughly

_ERROR = 1.1  # of the codec's error with one message, at most
_LINK_SECONDS = 0.02  # of a step: less is left alone, since each message costs the two sides a few milliseconds
_LARGE, _SMALL = 4, 16  # the batch is measured in such parts, which cost less time and memory than a step


class OpenChoices(NamedTuple):
    """The choices that a run leaves open."""

    shapes: Mapping[int, Shape]  # of a micro-batch, by number of micro-batches; one: it is settled
    engines: Sequence[str]  # one: it is settled
    window: int  # most micro-batches in flight; 0: open


class StepChoice(NamedTuple):
    """Engine and cut, with predicted seconds of a step and the measured seconds of micro-batches by their size."""

    engine: str
    cut: CutTime
    alone: float | None = None  # seconds of a step of one message; None: it was not predicted
    engines: Mapping[str, float] = {}  # seconds of a step with each
    measured: Mapping[int, DeviceSeconds] = {}

    @property
    def why_engine(self) -> str:
        """The choice of the engine in a few words: ``auto: 115 ms a step, onnxruntime 146 ms``."""
        others = [f"{name} {1e3 * each:.0f} ms" for name, each in self.engines.items() if name != self.engine]
        return f"auto: {', '.join([f'{1e3 * self.engines[self.engine]:.0f} ms a step', *others])}"

    @property
    def why_cut(self) -> str:
        """The choice of the cut in one line."""
        if self.alone is None:
            return "micro-batches 1: the link takes little of a step"
        count, window, seconds = self.cut
        if count == 1:
            return f"micro-batches 1: predicted {roughly(seconds)} a step, and several would gain less than a tenth"
        return (
            f"micro-batches {count}, window {window}: predicted {roughly(seconds)} a step, {roughly(self.alone)} with 1"
        )

    @property
    def details(self) -> str:
        """The measured times, for the log of details."""
        parts = []
        for images, seconds in self.measured.items():
            each = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in seconds._asdict().items() if value)
            parts.append(f"{images} images: {each} ms")
        return f"measured: {'; '.join(parts)}; the time of a step is without the trainer's"


def link_seconds(link: LinkTimes, up_bytes: int, down_bytes: int) -> float:
    """Return the time that a message and its answer take on the link."""
    return link.rtt + link.up_byte * up_bytes + link.down_byte * down_bytes


def choose_step(
    batch: FirstBatch,
    link: LinkTimes,
    still_open: OpenChoices,
    dim: int,
    precisions: tuple[Precision, Precision | None],
) -> StepChoice:
    """Measure the first batch, as far as anything is open that could gain, and choose.

    Args:
        batch: the first batch.
        link: the measured link.
        still_open: what may be chosen.
        dim: channels of an activation.
        precisions: of activations and of gradients; the latter None if none come.
    """
    shapes, engines, window = still_open
    first = min(shapes)
    if len(engines) == 1 and (
        len(shapes) == 1 or link_seconds(link, *sizes_of_messages(shapes[first], dim, precisions)) < _LINK_SECONDS
    ):
        return StepChoice(engines[0], CutTime(first, min(window or first, first), 0.0))
    both = len(engines) > 1
    measured = {shape.images: batch.seconds(shape, with_graph=both) for shape in _measured_shapes(shapes)}

    @cache
    def fits(count: int) -> bool:
        before = batch.codec_errors(shapes[first])
        return all(a <= _ERROR * b for a, b in zip(batch.codec_errors(shapes[count]), before, strict=True))

    cuts, alone = {}, {}
    for name in engines:
        costs: dict[int, Costs] = {}
        for count, shape in shapes.items():
            seconds = at_size(measured, shape.images)
            costs[count] = seconds.costs(link, *sizes_of_messages(shape, dim, precisions), both and name == "torch")
        cuts[name] = best_cut(costs, link.rtt, window, fits)
        alone[name] = step_seconds(costs[first], link.rtt, first, window)
    engine = min(cuts, key=lambda name: cuts[name].seconds)
    steps = {name: cut.seconds for name, cut in cuts.items()}
    return StepChoice(engine, cuts[engine], alone[engine], steps, measured)


def _measured_shapes(shapes: Mapping[int, Shape]) -> list[Shape]:
    """Return the one or two micro-batches whose times tell those of all."""
    if len(shapes) == 1:
        return list(shapes.values())
    several = [count for count in shapes if count > 1]
    return [shapes[min(several, key=lambda count: abs(count - goal))] for goal in (_SMALL, _LARGE)]
