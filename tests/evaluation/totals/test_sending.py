"""Evaluations and first weights cost in a table what they cost in the product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.precision import encode
from adc_edge.data.loader import Loader
from adc_edge.data.sources import load_dataset
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.split_model import make_split_model
from adc_edge.evaluation.totals.sending import StudyTrunk, evaluation_bytes, study_trunk
from adc_edge.storage.bundle import TRUNK
from adc_edge.wire.framing import to_frames
from adc_edge.wire.messages import Evaluate, Evaluated
from adc_edge.wire.tcp import frame_bytes
from tests.conftest import TINY

STUDY = Study("digits", "vit_tiny_patch16_224", model_args=TINY, crop_pct="model", split=2, batch_size=32)


@pytest.fixture(scope="module")
def trunk() -> StudyTrunk:
    return study_trunk(STUDY)


def test_the_weights_are_as_many_bytes_as_the_file_of_a_bundle(trunk: StudyTrunk, bundle_dir: Path) -> None:
    assert (trunk.tokens, trunk.dim) == (17, 32)
    assert trunk.bytes_weights == (bundle_dir / TRUNK).stat().st_size


def test_the_crop_of_the_study_decides_the_preprocessing(trunk: StudyTrunk) -> None:
    assert (trunk.preprocessing.size, trunk.preprocessing.crop_pct) == ((16, 16), 0.9)


@pytest.mark.parametrize(
    ("asked", "images", "trains_in", "precision"),
    [
        (None, 200, "fp32", "pca4"),
        (None, 200, "pca0.5", "pca1"),
        ("fp32", 0, "fp32", "fp32"),
        ("pca1", 360, "fp32", "pca1"),
    ],
)
def test_an_evaluation_costs_what_a_device_that_serves_sends(
    asked: Any, images: int, trains_in: Any, precision: str, trunk: StudyTrunk, server: Server, bundle_dir: Path
) -> None:
    """`serve` and a real trainer, over ZeroMQ, by the kernel's counts."""
    serving = ServeSettings(
        bundle_dir,
        server.endpoint,
        steps=1,
        batch_size=32,
        precision=trains_in,
        evaluate_images=images,
        evaluate_precision=asked,
    )
    report = Serve(serving, Console(quiet=True), stop=lambda: False).run()
    found = evaluation_bytes(trunk, images or 360, 32, asked or "auto", trains_in)
    assert found.precision == precision == report["evaluations"][-1]["precision"]
    assert found.up == pytest.approx(report["bytes_evaluation_up"], rel=0.01)
    assert found.down == pytest.approx(report["bytes_evaluation_down"], abs=60)


@pytest.mark.parametrize("precision", ["auto", "int8", "pca2"])
def test_the_bytes_are_those_of_real_activations_in_real_frames(precision: Any, trunk: StudyTrunk) -> None:
    """The encoder, the messages and the frames of the wire, on a trunk's outputs for test images."""
    parts, preparation = make_split_model(STUDY, parse_setting("none"), 0, 10)
    loader = Loader(load_dataset("digits").test, preparation, 32)
    found = evaluation_bytes(trunk, 300, 32, precision)
    assert found.precision is not None
    up = down = 0
    groups = loader.sample(300, 360)
    assert len(groups) == found.messages
    for part, indices in enumerate(groups):
        batch = loader.plain(indices)
        with torch.no_grad():
            outputs = parts.trunk(torch.from_numpy(batch.images)).numpy()
        body = encode(outputs, found.precision, batch.labels.astype("<i4").tobytes())
        message = Evaluate(2**62 + 5, 0, part, 2**61, len(body), len(indices), found.precision)
        up += sum(frame_bytes(*frames) for frames in to_frames(message, body))
        answer = Evaluated(2**62 + 5, 0, part, len(indices), 30, 2.5, 0.25)
        down += sum(frame_bytes(*frames) for frames in to_frames(answer))
    loader.close()
    assert found.up == pytest.approx(up, abs=8)  # numbers in headers take one to nine bytes
    assert found.down == pytest.approx(down, abs=8)


def test_many_images_travel_in_messages_of_nearly_one_size() -> None:
    large = StudyTrunk(197, 192, 0, study_trunk(STUDY).preprocessing)
    found = evaluation_bytes(large, 1000, 32)
    assert found.messages == int(np.ceil(1000 / (16_384 // 197)))
    assert found.up == pytest.approx(1000 * 197 * 192 * 4 / 8, rel=0.01)


def test_few_tokens_go_in_int8_and_a_central_evaluation_costs_nothing(trunk: StudyTrunk) -> None:
    assert evaluation_bytes(trunk, 14, 32).precision == "int8"  # 238 rows of 32 channels
    assert evaluation_bytes(trunk, 16, 32).precision == "pca4"
    central = evaluation_bytes(trunk, 300, 32, "central")
    assert (central.messages, central.up, central.down, central.precision) == (0, 0, 0, None)
