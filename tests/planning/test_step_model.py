"""The model of a step, against arithmetic done by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from adc_edge.codec.precision import PRECISIONS, encode
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Shape
from adc_edge.planning.profile import (
    BlockSeconds,
    CodecSeconds,
    DeviceProfile,
    LastBlockSeconds,
    Line,
    Profile,
    TrainerProfile,
    TrainerShare,
)
from adc_edge.planning.step_model import LinkRates, Prediction, StepPlan, predict, served_seconds
from adc_edge.planning.work import last_work
from adc_edge.wire.framing import chunk_bytes, message_bytes, to_frames
from adc_edge.wire.message import CHUNK_BYTES, Message
from adc_edge.wire.messages import Gradient, Step
from adc_edge.wire.tcp import TcpInfo, frame_bytes

SHAPE = Shape(images=8, tokens=10, clusters=4, kept=5)  # 20 rows
NOTHING = Line(0.0, 0.0)
CODEC: dict[str, CodecSeconds] = {  # 0.3 s to encode 20 rows, 0.2 to decode them
    p: CodecSeconds(Line(0.1, 0.01), Line(0.2, 0.0)) for p in PRECISIONS
}
FAST = LinkRates(rtt_ms=0.0, up_mbit_s=1e9, down_mbit_s=1e9)


def device(**more: Any) -> DeviceProfile:
    block = BlockSeconds(0.1, 0.2, 0.3, 1000)
    settled: dict[str, Any] = {
        "machine": {},
        "bundle": "0" * 64,
        "model": "m",
        "split": 3,
        "tokens": 10,
        "dim": 8,
        "engine": "onnxruntime",
        "compute": "fp32",
        "keeps_graph": False,
        "images": 8,
        "call_seconds": 0.5,
        "embedding": BlockSeconds(0.01, 0.02, 0.03, 10),
        "blocks": [block, block, BlockSeconds(0.05, 0.1, 0.15, 500)],
        "update_seconds": 0.7,
        "data_seconds": 0.0,
        "codec": CODEC,
    }
    return DeviceProfile(**settled | more)


TRAINER = TrainerProfile("cpu", 3, Line(1.0, 0.1), 0.4, CODEC, depth=6)


def predicted(
    profile: DeviceProfile, trainer: TrainerProfile | None = None, link: LinkRates = FAST, **plan: Any
) -> Prediction:
    settled: dict[str, Any] = {"split": 3, "shape": SHAPE, "precision": "fp32", "gradient_precision": "fp32"}
    return predict(StepPlan(**settled | plan), link, Profile(profile, trainer))


def test_one_message_by_hand() -> None:
    found = predicted(device(), TRAINER)
    forward = 0.5 + 8 * (0.01 + 0.1 + 0.1 + 0.05) + 0.3  # call, images, encode
    recompute, backward = 8 * (0.02 + 0.2 + 0.2 + 0.1), 8 * (0.03 + 0.3 + 0.3 + 0.15) + 0.2
    cloud = 1.0 + 20 * 0.1 + 0.2 + 0.3  # head, decode, encode
    assert found.costs[:6] == pytest.approx((forward, recompute, backward, 0.0, cloud, 0.0), abs=1e-4)
    assert found.seconds == pytest.approx(forward + max(recompute, cloud) + backward + 0.7, abs=1e-4)
    assert not found.extrapolated
    assert found.memory_bytes == 8 * (10 + 1000 + 1000 + 500)


def test_a_trainer_that_others_use_adds_its_wait_and_bounds_the_step_by_hand() -> None:
    cloud, update, plan = 3.5, 0.4, StepPlan(3, SHAPE, "fp32", "fp32")

    def shared(share: float, wait_s: float) -> Prediction:
        return predict(plan, FAST, Profile(device(), TRAINER, TrainerShare(share, wait_s, 2)))

    alone = predicted(device(), TRAINER)
    hidden = max(0.0, alone.costs.recompute - cloud)  # of the wait, behind the recomputation
    assert shared(0.8, 2.0).seconds == pytest.approx(alone.seconds + 2.0 - hidden, abs=1e-4)
    assert shared(0.05, 2.0).seconds == pytest.approx((cloud + update) / 0.05 + 0.7, abs=1e-4)
    assert served_seconds(plan, alone.costs, TRAINER) == pytest.approx(cloud + update, abs=1e-4)


def test_a_slow_link_adds_its_bytes_and_the_round_trip() -> None:
    found = predicted(device(), link=LinkRates(500.0, 0.001, 0.002))
    bits_up, bits_down = 8 * found.bytes_up, 8 * found.bytes_down
    assert found.costs.up == pytest.approx(bits_up / 1e3)
    assert found.costs.down == pytest.approx(bits_down / 2e3)
    costs = found.costs
    assert found.seconds == pytest.approx(costs.forward + costs.up + 0.5 + costs.down + costs.backward + 0.7)


def test_an_engine_that_keeps_its_graph_recomputes_nothing() -> None:
    assert predicted(device(keeps_graph=True)).costs.recompute == 0.0


def test_a_frozen_trunk_has_no_way_back() -> None:
    frozen = predicted(device(trains=False), TRAINER, gradient_precision=None)
    assert (frozen.costs.recompute, frozen.costs.backward, frozen.memory_bytes) == (0.0, 0.0, 0)
    assert frozen.costs.cloud == pytest.approx(1.0 + 2.0 + 0.2)  # no gradient to encode
    assert 0 < frozen.bytes_down < 300  # loss, accuracy, times
    with pytest.raises(SettingError, match="a profile of a frozen trunk"):
        predicted(device(trains=False))


def test_frozen_blocks_are_neither_recomputed_nor_held() -> None:
    found = predicted(device(recompute_call_seconds=0.9), freeze_first=2)
    assert found.costs.recompute == pytest.approx(8 * 0.1 + 0.9 / 3)  # one block of three
    assert found.costs.backward == pytest.approx(8 * 0.15 + 0.2)
    assert found.costs.forward == predicted(device()).costs.forward
    assert found.memory_bytes == 8 * 500


def test_micro_batches_overlap_and_a_window_bounds_memory() -> None:
    shape = msgspec.structs.replace(SHAPE, images=2, clusters=2)
    all_of_them = predicted(device(), TRAINER, shape=shape, micro_batches=4)
    two = predicted(device(), TRAINER, shape=shape, micro_batches=4, window=2)
    assert all_of_them.memory_bytes == 2 * two.memory_bytes == 4 * 2 * 2510
    assert all_of_them.bytes_up == two.bytes_up == 4 * predicted(device(), TRAINER, shape=shape).bytes_up
    assert all_of_them.seconds < 4 * predicted(device(), TRAINER, shape=shape).seconds


def test_the_trainer_cannot_take_less_than_its_own_work() -> None:
    slow = msgspec.structs.replace(TRAINER, update_seconds=100.0)
    assert predicted(device(), slow).seconds == pytest.approx(predicted(device(), slow).costs.cloud + 100.0 + 0.7)


def test_another_split_moves_blocks_between_the_sides() -> None:
    earlier, later = predicted(device(), TRAINER, split=2), predicted(device(), TRAINER, split=5)
    assert not earlier.extrapolated
    assert later.extrapolated
    assert earlier.costs.forward == pytest.approx(0.5 + 8 * (0.01 + 0.1 + 0.05) + 0.3)
    assert later.costs.forward == pytest.approx(0.5 + 8 * (0.01 + 4 * 0.1 + 0.05) + 0.3)
    assert earlier.costs.cloud == pytest.approx(3.0 * 4 / 3 + 0.5)  # 4 blocks instead of 3
    assert later.costs.cloud == pytest.approx(3.0 / 3 + 0.5)


def test_the_last_block_takes_what_its_share_of_the_work_takes() -> None:
    lines = LastBlockSeconds(Line(0.01, 1.0), Line(0.02, 2.0), NOTHING)
    work = last_work(SHAPE, 8, 32)
    found = predicted(device(last=lines))
    assert found.costs.forward == pytest.approx(0.5 + 8 * (0.01 + 0.1 + 0.1 + 0.01 + work) + 0.3)
    fewer = predicted(device(last=lines), shape=msgspec.structs.replace(SHAPE, kept=2))
    assert fewer.costs.recompute < found.costs.recompute


def test_decoding_costs_what_the_waits_do_not_hide() -> None:
    hidden = predicted(device(data_seconds=0.1), link=LinkRates(5000.0, 1e9, 1e9))
    assert hidden.seconds == pytest.approx(predicted(device(), link=LinkRates(5000.0, 1e9, 1e9)).seconds)
    shown = predicted(device(data_seconds=0.1, batch_seconds=0.01))
    assert shown.seconds == pytest.approx(predicted(device()).seconds + 8 * 0.11, abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8", "pca1"])
@pytest.mark.parametrize("rate_mbit_s", [5.0, 60.0, 1000.0])
def test_the_bytes_are_those_of_the_frames(precision: Any, rate_mbit_s: float) -> None:
    shape, dim = Shape(images=256, tokens=50, clusters=128, kept=25), 64
    link = TcpInfo(0, 0, 10.0, rate_mbit_s, 0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 25, dim)).astype(np.float32)
    body = bytes(encode(x, precision, bytes(12 * 256)))
    big, ways = 2**61 + 5, {"precision": precision, "gradient": precision}
    step = Step(big, 123, 7, big, len(body), 256, 128, 25, 256, **ways)
    answer = bytes(encode(x, precision))
    gradient = Gradient(big, 123, 7, big, len(answer), precision, 2.3, 0.1, 0.2, 33.3, 122, seconds_codec=0.01)

    size = chunk_bytes(link)
    pairs: tuple[tuple[Message, bytes], ...] = ((step, body), (gradient, answer))
    sent = [sum(frame_bytes(*frames) for frames in to_frames(head, data, size)) for head, data in pairs]
    found = predict(
        StepPlan(3, shape, precision, precision), LinkRates(10.0, rate_mbit_s, rate_mbit_s), Profile(device(dim=dim))
    )
    assert [found.bytes_up, found.bytes_down] == pytest.approx(sent, rel=1e-3)
    assert message_bytes(step, len(body), link) == pytest.approx(sent[0], abs=4 * (1 + len(body) // CHUNK_BYTES))
