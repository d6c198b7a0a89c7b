"""The model of a step: its time, bytes and memory, from a measured profile and a measured link.

Device and trainer are taken to compute on cores of their own. On one machine they share them, and a step takes longer
than is predicted here.
"""

from __future__ import annotations

from typing import NamedTuple

from adc_edge.codec.precision import encoded_bytes
from adc_edge.defaults import Precision
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Shape
from adc_edge.planning.profile import BlockSeconds, DeviceProfile, Profile, TrainerProfile
from adc_edge.planning.schedule import Costs, step_seconds
from adc_edge.planning.work import last_work
from adc_edge.wire.framing import message_bytes
from adc_edge.wire.messages import TRIPLE_BYTES, Gradient, Step
from adc_edge.wire.tcp import TcpInfo

_ID = 2**62 - 1  # as random numbers in headers are: their size counts


class LinkRates(NamedTuple):
    """A measured link. Rates count what the socket carries, without headers of TCP and IP."""

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
    """The expected time, bytes and memory of a step."""

    seconds: float
    bytes_up: int  # at the socket
    bytes_down: int
    memory_bytes: int  # of the device's graphs in flight; 0: not known
    costs: Costs  # of one micro-batch
    extrapolated: bool = False  # the split needs blocks that the device has not measured


class _DeviceSeconds(NamedTuple):
    """Seconds of a micro-batch on the device, and bytes of its graph."""

    forward: float
    recompute: float
    backward: float
    graph_bytes: int


def predict(plan: StepPlan, link: LinkRates, profile: Profile) -> Prediction:
    """Predict a step.

    Args:
        plan: the settings.
        link: rates and round trip.
        profile: of the device and, if it was asked, of the trainer; without a trainer its computation takes no time.
            With a share, a step is no shorter than its work on the trainer takes in that share of the time.

    Raises:
        SettingError: the trunk is to be trained, and the profile is of a frozen one.
    """
    device, trainer, count = profile.device, profile.trainer, plan.micro_batches
    up, down = _bytes(plan, link, device.dim)
    here = _on_device(plan, device)
    costs = Costs(
        forward=here.forward,
        recompute=here.recompute,
        backward=here.backward,
        up=8e-6 * up / link.up_mbit_s,
        cloud=0.0 if trainer is None else _on_trainer(plan, trainer, device),
        down=8e-6 * down / link.down_mbit_s,
        wait=profile.share.wait_s if profile.share else 0.0,
        share=profile.share.share if profile.share else 1.0,
    )
    seconds = step_seconds(costs, link.rtt_ms / 1e3, count, plan.window)
    if trainer is not None:  # its optimizer works while the device goes on
        seconds = max(seconds, served_seconds(plan, costs, trainer) / costs.share)
    seconds += _data(plan, costs, seconds, device)
    if plan.gradient_precision is not None:
        seconds += device.update_seconds
    memory = min(plan.window or count, count) * here.graph_bytes
    return Prediction(seconds, count * up, count * down, memory, costs, plan.split > len(device.blocks))


def served_seconds(plan: StepPlan, costs: Costs, trainer: TrainerProfile) -> float:
    """Return the seconds that the trainer works for a step."""
    return plan.micro_batches * costs.cloud + trainer.update_seconds


def _data(plan: StepPlan, costs: Costs, seconds: float, device: DeviceProfile) -> float:
    """Seconds that images add to a step. The next batch is decoded while the device waits, and then put together."""
    images = plan.shape.images * plan.micro_batches
    waits = seconds - plan.micro_batches * (costs.forward + costs.recompute + costs.backward)
    return max(0.0, device.data_seconds * images - waits) + device.batch_seconds * images


def _on_device(plan: StepPlan, device: DeviceProfile) -> _DeviceSeconds:
    shape, images = plan.shape, plan.shape.images
    rows = shape.clusters * shape.kept
    blocks = _blocks(plan, device)
    forward = device.call_seconds + images * (device.embedding.forward + sum(block.forward for block in blocks))
    forward += device.codec[plan.precision].encode.seconds(rows)
    if plan.gradient_precision is None:
        return _DeviceSeconds(forward, 0.0, 0.0, 0)
    if not device.trains:
        raise SettingError(
            "a profile of a frozen trunk for a trunk that trains",
            "a profile with recomputation and backward",
            "adc-edge profile without --trunk frozen, or --trunk frozen here too",
        )
    trained = blocks[plan.freeze_first :]
    share = len(trained) / len(device.blocks)  # the fixed part of a call grows with the number of blocks
    if plan.freeze_first == 0:
        trained.append(device.embedding)
    recompute = share * device.recompute_call_seconds + images * sum(block.recompute for block in trained)
    backward = share * device.backward_call_seconds + images * sum(block.backward for block in trained)
    backward += device.codec[plan.gradient_precision].decode.seconds(rows)
    graph = images * sum(block.graph_bytes for block in trained)
    return _DeviceSeconds(forward, 0.0 if device.keeps_graph else recompute, backward, graph)


def _blocks(plan: StepPlan, device: DeviceProfile) -> list[BlockSeconds]:
    """Seconds of blocks 1..split; those that were not measured take as long as the mean of the others."""
    whole, last = device.blocks[:-1], _last(plan.shape, device)
    if not whole:
        whole = [_last_at(1.0, device)]
    measured = device.blocks[:-1][: plan.split - 1]
    return [*measured, *[_mean(whole)] * (plan.split - 1 - len(measured)), last]


def _last(shape: Shape, device: DeviceProfile) -> BlockSeconds:
    return _last_at(last_work(shape, device.dim, device.mlp_dim or 4 * device.dim), device)


def _last_at(work: float, device: DeviceProfile) -> BlockSeconds:
    """The last block, if it has this share of a whole block's work."""
    lines, graph = device.last, device.blocks[-1].graph_bytes
    if lines is None:
        return device.blocks[-1]
    return BlockSeconds(lines.forward.seconds(work), lines.recompute.seconds(work), lines.backward.seconds(work), graph)


def _mean(blocks: list[BlockSeconds]) -> BlockSeconds:
    def mean(name: str) -> float:
        return sum(float(getattr(block, name)) for block in blocks) / len(blocks)

    return BlockSeconds(mean("forward"), mean("recompute"), mean("backward"), round(mean("graph_bytes")))


def _on_trainer(plan: StepPlan, trainer: TrainerProfile, device: DeviceProfile) -> float:
    """Seconds of a micro-batch on the trainer."""
    rows = plan.shape.clusters * plan.shape.kept
    learn = trainer.step.seconds(rows)
    if trainer.depth > trainer.split:
        learn *= (trainer.depth - plan.split) / (trainer.depth - trainer.split)
    learn += trainer.codec[plan.precision].decode.seconds(rows)
    down = plan.gradient_precision
    return learn + (0.0 if down is None else trainer.codec[down].encode.seconds(rows))


def _bytes(plan: StepPlan, link: LinkRates, dim: int) -> tuple[int, int]:
    """Bytes of a micro-batch at the socket, up and down: bodies, headers and frames.

    No cluster is taken to be empty, and no two images of a cluster to have one class: at most so many bytes are sent.
    """
    shape, down = plan.shape, plan.gradient_precision
    sent = (shape.clusters, shape.kept, dim)
    body = encoded_bytes(sent, plan.precision) + TRIPLE_BYTES * shape.images
    step = Step(
        session=_ID,
        step=0,
        micro_batch=0,
        transfer=_ID,
        body_bytes=body,
        images=shape.images,
        clusters=shape.clusters,
        kept=shape.kept,
        triples=shape.images,
        precision=plan.precision,
        gradient=down,
    )
    answer = 0 if down is None else encoded_bytes(sent, down)
    gradient = Gradient(_ID, 0, 0, _ID, answer, down or plan.precision, 0.0, 0.0, 0.0, 0.0, seconds_codec=0.0)
    up, back = (TcpInfo(0, 0, link.rtt_ms, rate, 0) for rate in (link.up_mbit_s, link.down_mbit_s))
    return message_bytes(step, body, up), message_bytes(gradient, answer, back)
