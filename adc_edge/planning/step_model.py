"""The model of a step: its time, bytes and memory, from a measured profile and a measured link."""

from __future__ import annotations

from typing import NamedTuple

from adc_edge.codec.precision import encoded_bytes
from adc_edge.defaults import Precision
from adc_edge.method.ratio import Shape
from adc_edge.planning.profile import BlockSeconds, Profile
from adc_edge.planning.schedule import Costs, step_seconds
from adc_edge.wire.messages import TRIPLE_BYTES


class LinkRates(NamedTuple):
    """A measured link."""

    rtt_ms: float
    up_mbit_s: float
    down_mbit_s: float


class StepPlan(NamedTuple):
    """The settings of a step that a plan may choose."""

    split: int
    shape: Shape  # of one micro-batch
    precision: Precision
    gradient_precision: Precision | None  # None: the trunk is frozen, and no gradient comes down
    micro_batches: int = 1
    window: int = 0  # 0: all micro-batches
    freeze_first: int = 0  # K: blocks 1..K are not trained


class Prediction(NamedTuple):
    """What a step is expected to take."""

    seconds: float
    bytes_up: int
    bytes_down: int
    memory_bytes: int  # of the device's graphs in flight; 0: not known
    costs: Costs  # of one micro-batch
    extrapolated: bool = False  # the split needs blocks that the device has not measured


def predict(plan: StepPlan, link: LinkRates, profile: Profile) -> Prediction:
    """Predict a step.

    Args:
        plan: the settings.
        link: rates and round trip.
        profile: of the device and, if it was asked, of the trainer.
    """
    device, trainer = profile.device, profile.trainer
    images, rows = plan.shape.images, plan.shape.clusters * plan.shape.kept
    blocks = [*device.blocks[: plan.split]]
    blocks += [device.blocks[-1]] * (plan.split - len(blocks))
    trained = [] if plan.gradient_precision is None else blocks[plan.freeze_first :]
    if trained and plan.freeze_first == 0:
        trained.append(device.embedding)
    sent = (plan.shape.clusters, plan.shape.kept, device.dim)
    up = encoded_bytes(sent, plan.precision) + TRIPLE_BYTES * images
    down = 0 if plan.gradient_precision is None else encoded_bytes(sent, plan.gradient_precision)
    forward = device.call_seconds + images * _sum(blocks, "forward") + images * device.embedding.forward
    forward += device.codec[plan.precision].encode.seconds(rows)
    backward = images * _sum(trained, "backward")
    cloud = 0.0
    if trainer is not None:
        cloud = trainer.step.seconds(rows) + trainer.codec[plan.precision].decode.seconds(rows)
    if plan.gradient_precision is not None:
        backward += device.codec[plan.gradient_precision].decode.seconds(rows)
        cloud += 0.0 if trainer is None else trainer.codec[plan.gradient_precision].encode.seconds(rows)
    costs = Costs(
        forward=forward,
        recompute=0.0 if device.keeps_graph else images * _sum(trained, "recompute"),
        backward=backward,
        up=up * 8e-6 / link.up_mbit_s,
        cloud=cloud,
        down=down * 8e-6 / link.down_mbit_s,
    )
    seconds = step_seconds(costs, link.rtt_ms / 1e3, plan.micro_batches, plan.window)
    seconds += device.update_seconds + device.data_seconds * images * plan.micro_batches
    return Prediction(
        seconds, plan.micro_batches * up, plan.micro_batches * down, 0, costs, plan.split > len(device.blocks)
    )


def _sum(blocks: list[BlockSeconds], phase: str) -> float:
    return sum(float(getattr(block, phase)) for block in blocks)
