"""The lines before a run: what is trained, what is sent, and how many bytes that will take."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from rich.console import Console

from adc_edge import logs
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.choosing.precisions import with_epochs
from adc_edge.edge_runtime.noise import NoiseSettings
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.screen.banner import banner, kept_in_words, percent, planned_bytes
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.storage.bundle import Bundle
from tests.edge_runtime.choosing.epochs import Epochs

ALL = Ratio(1.0)
LOGGER = logging.getLogger("adc_edge.test")


def lines(bundle: Bundle, ratio: Ratio = ALL, steps: int = 100, **more: Any) -> list[str]:
    settings = ServeSettings(bundle.path, "tcp://cloud.example:5700", batch_size=32, steps=steps, **more)
    return list(banner(settings, bundle.manifest, step_settings(bundle, settings, ratio), 200, "bbr"))


def step_settings(bundle: Bundle, settings: ServeSettings, ratio: Ratio = ALL) -> StepSettings:
    count = 1 if settings.micro_batches == "auto" else settings.micro_batches
    up, down = settings.precisions(bundle.manifest)
    return StepSettings(
        session=1,
        shape=settings.cut(ratio, bundle.manifest, count),
        prefix=bundle.manifest.prefix,
        dim=bundle.manifest.dim,
        classes=bundle.manifest.classes,
        precision=up,
        gradient_precision=down,
        planned_steps=settings.steps or 0,
        micro_batches=count,
        window=count,
        noise=settings.noise,
    )


def test_a_run_says_where_and_what_it_trains_and_nothing_that_is_the_default(bundle: Bundle) -> None:
    found = dict(line.split(maxsplit=1) for line in lines(bundle))
    assert list(found) == ["trainer", "model", "trunk", "sends", "step", "share", "eval", "total"]
    assert found["trainer"] == "tcp://cloud.example:5700, sending by bbr"
    assert found["sends"].startswith("nothing merged or dropped: T=32 images, k=")
    more = lines(bundle, augment="flip,jitter", seed=7, noise=NoiseSettings(10.0, None, 1e-5))
    assert more[-3:] == ["augment  flip, jitter", "seed     7", "noise    10 dB SNR up, 1e-05 of the bits flipped"]


def test_a_run_says_on_which_device_its_trunk_is_trained(bundle: Bundle) -> None:
    def said(device: str, **more: Any) -> str:
        settings = ServeSettings(bundle.path, "tcp://cloud.example:5700", batch_size=32, steps=1, **more)
        step = step_settings(bundle, settings)
        return next(line for line in banner(settings, bundle.manifest, step, 200, None, device) if "trunk" in line)

    assert said("cuda") == "trunk    blocks 1 to 2 trained here, on cuda"
    assert said("cpu", freeze_first=1) == "trunk    blocks 1 to 1 frozen, 2 to 2 trained here, on cpu"
    assert said("cuda", trunk="frozen") == "trunk    frozen"


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (Shape(32, 196, 32, 196), "nothing merged or dropped: T=32 images, k=196 tokens"),
        (Shape(32, 196, 8, 98), "ξ=0.125: 32 images merged to T=8, k=98 of 196 tokens"),
        (Shape(32, 196, 32, 98), "ξ=0.500: all T=32 images, k=98 of 196 tokens"),
        (Shape(32, 196, 8, 196), "ξ=0.250: 32 images merged to T=8, all k=196 tokens"),
    ],
)
def test_xi_clusters_and_tokens_are_one_line_in_words(shape: Shape, text: str) -> None:
    assert kept_in_words(shape) == text


@pytest.mark.parametrize("trunk", ["train", "frozen"])
@pytest.mark.parametrize("every", [0, 3])
def test_the_bytes_said_before_are_those_that_were_sent(
    bundle_dir: Path, bundle: Bundle, server: Server, trunk: Literal["train", "frozen"], every: int
) -> None:
    settings = ServeSettings(
        bundle_dir, server.endpoint, steps=8, trunk=trunk, evaluate_every=every, evaluate_images=64, batch_size=32
    )
    report = Serve(settings, Console(width=200), stop=lambda: False).run()
    planned = planned_bytes(settings, bundle.manifest, step_settings(bundle, settings, bundle.manifest.ratio), 64)
    assert planned.evaluations == len(report["evaluations"])
    for said, sent in (
        (planned.training, report["bytes_up"] + report["bytes_down"]),
        (planned.all_evaluations, report["bytes_evaluation_up"]),
    ):
        assert said == pytest.approx(sent, rel=0.15, abs=4000)
    assert planned.uncompressed == report["bytes_uncompressed_fp32"]


def test_the_bytes_of_a_trunk_that_is_frozen_on_the_way_are_said_before(
    bundle_dir: Path, bundle: Bundle, server: Server
) -> None:
    settings = ServeSettings(
        bundle_dir, server.endpoint, steps=8, freeze_after=3 / 44, evaluate_images=64, batch_size=32, micro_batches=1
    )
    report = Serve(settings, Console(width=200), stop=lambda: False).run()
    step = msgspec.structs.replace(step_settings(bundle, settings, bundle.manifest.ratio), frozen_from=3)
    planned = planned_bytes(settings, bundle.manifest, step, 64)
    assert planned.training == pytest.approx(report["bytes_up"] + report["bytes_down"], rel=0.1)
    assert planned.uncompressed == report["bytes_uncompressed_fp32"]
    assert planned.share == planned.training / report["bytes_uncompressed_fp32"]
    said = list(banner(settings, bundle.manifest, step, 64, None))
    assert "trunk    blocks 1 to 2 trained here, on cpu, until step 3; then frozen" in said
    (first,) = [line for line in said if line.startswith("step")]
    (then,) = [line for line in said if line.startswith("then")]
    assert first.endswith(" down in fp32")
    assert then.endswith(" up in fp32, 350 bytes down, from step 3 on")
    assert f"share    {percent(planned.share)} of the uncompressed bytes" in said


def test_gradients_that_never_come_are_in_no_line(bundle: Bundle) -> None:
    """A list of gradients changes nothing for a frozen trunk, nor for one that is frozen before its second epoch."""

    def said(frozen_from: int | None, trunk: Literal["train", "frozen"]) -> list[str]:
        lists: dict[str, Any] = {"precision": "pca4,pca1", "gradient_precision": "pca1,pca2,pca0.25"}
        settings = ServeSettings(bundle.path, "", batch_size=32, steps=40, trunk=trunk, **lists)
        step = with_epochs(step_settings(bundle, settings), settings.by_epoch(bundle.manifest), Epochs(10))
        step = msgspec.structs.replace(step, frozen_from=frozen_from)
        return [
            line for line in banner(settings, bundle.manifest, step, 200, None) if line.startswith(("step", "then"))
        ]

    learns, late, frozen = said(None, "train"), said(10, "train"), said(None, "frozen")
    assert [line.rpartition(", ")[2] for line in learns[1:]] == ["from epoch 2 on", "from epoch 3 on"]
    assert late[1:] == frozen[1:]
    assert len(frozen) == 2
    assert frozen[1].endswith(" up in pca1, 350 bytes down, from epoch 2 on")
    assert said(15, "train")[-1].endswith(" up in pca1, 350 bytes down, from step 15 on")


def test_the_messages_of_an_evaluation_are_as_large_as_the_device_makes_them(bundle: Bundle) -> None:
    """It takes as many images at once as a micro-batch has, or more: here 27, too few for principal components."""
    manifest, found = msgspec.structs.replace(bundle.manifest, tokens=197, dim=768), {}
    for count in (1, 4):
        settings = ServeSettings(bundle.path, "", batch_size=64, steps=1, micro_batches=count)
        step = msgspec.structs.replace(step_settings(bundle, settings), shape=settings.cut(ALL, manifest, count))
        found[count] = planned_bytes(settings, manifest, step, 60).evaluated
    assert found == {1: "pca4", 4: "int8"}


@pytest.mark.parametrize(("share", "text"), [(1.0, "100 %"), (0.1, "10 %"), (0.0196, "2 %"), (0.0067, "0.67 %")])
def test_shares_have_two_digits(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_of_the_banner_is_too_long_or_broken_inside_a_word(bundle: Bundle, width: int) -> None:
    said = lines(bundle, Ratio(0.3), evaluate_every=100, micro_batches=2, augment="flip,randaugment", seed=3)
    with open("/dev/null", "w", encoding="utf-8") as null:
        console = Console(file=null, force_terminal=True, width=width, color_system=None, record=True)
        logs.configure(console)
        for line in said:
            LOGGER.info(line)
    shown = console.export_text().splitlines()
    assert max(map(len, shown)) <= width
    assert set(" ".join(said).split()) <= {word for line in shown for word in line.split()}
    if width >= 80:
        assert len(shown) == len(said)
