"""The bytes in the tables are the bytes on the wire."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.setting import METHODS, WITHOUT_RATIO, parse_setting
from adc_edge.evaluation.study.training import train
from tests.conftest import TINY
from tests.evaluation.study.carrying import counted_as_carried

STUDY = Study("digits", "vit_tiny_patch16_224", model_args=TINY, split=2, batch_size=32, epochs=4 / 44, test_images=32)
TEXTS = [
    "none",
    "fp16",
    "int8",
    "int4",
    "int3",
    "int2",
    "pca1",
    "none/pca0.5:pca0.25",
    *(f"{m}@0.25" for m in METHODS if m not in WITHOUT_RATIO),
    "aqsgd/int2:int4",
    "aqsgd-direct/int3:int8",
    "tah@0.02",
    "lowrank@0.05/int8",
    "fedlite@0.05/fp16:pca0.25",
    "tsflora@0.4/int2:int4",
]


@pytest.mark.parametrize("text", [*TEXTS, "adc@0.5x0.5/int4:int2"])
def test_counted_bytes_are_those_that_the_kernel_carries(text: str) -> None:
    ours, theirs = counted_as_carried(STUDY, parse_setting(text))
    assert ours.step == 4
    assert (ours.loss, ours.accuracy) == (theirs.loss, theirs.accuracy)  # and what arrives is what was sent


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("adc@0.4", 6),
        ("adc@0.4/int8:int4", 6),
        ("adc@1x1/pca4:pca2", 6),
        ("adc@0.4/fp16,pca1:int8,pca2", 30),  # 22 to an epoch
        ("adc@1x1/dct2:dct2", 6),
    ],
)
def test_counted_bytes_are_those_of_a_device_that_serves(
    text: str, steps: int, server: Server, bundle_dir: Path
) -> None:
    """`serve` and a real trainer, over ZeroMQ, by the kernel's counts."""
    setting = parse_setting(text)
    assert setting.ratio is not None
    up, down = setting.by_epoch.texts
    serving = ServeSettings(
        bundle_dir,
        server.endpoint,
        steps=steps,
        batch_size=64,
        ratio=setting.ratio,
        precision=up,
        gradient_precision=down,
        micro_batches=1,
    )
    report = Serve(serving, Console(quiet=True), stop=lambda: False).run()
    study = Study("digits", "vit_tiny_patch16_224", model_args=TINY, split=2, batch_size=64, epochs=steps / 22)
    last = train(study, setting, seed=0).curve[-1]
    assert last.step == report["steps"] == steps
    assert (last.bytes_up, last.bytes_down) == pytest.approx((report["bytes_up"], report["bytes_down"]), rel=0.01)
