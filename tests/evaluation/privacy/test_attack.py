"""The attack of a curious trainer: it sees only the data sent, and its scores follow their definitions."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from numpy.lib.stride_tricks import sliding_window_view
from rich.console import Console
from torch import Tensor, nn

from adc_edge.arrays import Float32
from adc_edge.cli import COMMANDS, main
from adc_edge.codec.precision import decode, encode
from adc_edge.data.sources import load_dataset
from adc_edge.errors import DataError
from adc_edge.evaluation.codecs.base import Codec, CodecBatch, Header
from adc_edge.evaluation.codecs.factory import make_codec
from adc_edge.evaluation.privacy import attack as privacy
from adc_edge.evaluation.privacy.attack import Examples, Inverter, Leak, View, invert, look, score
from adc_edge.evaluation.privacy.command import _check_one_precision, _nothing_learned, _table
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.samples import sampled
from adc_edge.evaluation.study.setting import parse_setting
from tests.conftest import TINY
from tests.method.test_trunk import SPEC, make_trunk

IMAGES, CLASSES = 12, 5
STUDY = Study(
    "digits",
    "vit_tiny_patch16_224",
    model_args=TINY,
    split=2,
    batch_size=32,
    train_images=256,
    test_images=64,
    augment="none",
)
TASK = (
    "--data digits --model vit_tiny_patch16_224 --img-size 16 --model-arg patch_size=4 --model-arg embed_dim=32 "
    "--model-arg num_heads=2 --model-arg depth=4 --split 2 --batch-size 32 --epochs 0.25 --train-images 256 "
    "--test-images 50 --device cpu"
).split()


def make_batch() -> CodecBatch:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((IMAGES, SPEC.channels, *SPEC.image_size), np.float32))
    return CodecBatch(images, rng.integers(0, CLASSES, IMAGES), np.random.default_rng(1))


def make(text: str) -> Codec:
    return make_codec(parse_setting(text), SPEC, CLASSES, 0)


def make_inverter(view: View) -> Inverter:
    """An inverter with weights far from their initial values."""
    torch.manual_seed(0)
    inverter = Inverter(SPEC, view, torch.full((16, 16, 3), 0.5), 0.3).eval()
    nn.init.normal_(inverter.leave.weight, std=0.1)
    return inverter


def mean_image() -> Float32:
    """The mean of the study's training images as the model gets them: 8x8 digits, resized."""
    split = sampled(load_dataset("digits"), STUDY).train
    images = [split.image(i).convert("RGB").resize((16, 16), 3) for i in range(256)]  # 3: bicubic
    mean: Float32 = np.mean([np.asarray(image, np.float64) / 255 for image in images], axis=0).astype(np.float32)
    return mean


@functools.cache
def attack(text: str) -> tuple[Leak, Examples]:
    """The result of an attack with a short training."""
    return invert(STUDY, parse_setting(text), 0, 3.0)


@pytest.mark.parametrize("text", ["none", "topk@0.2", "adc@0.4", "adc-batch@0.5", "adc-tokens@0.5"])
def test_a_reconstruction_depends_on_no_image_outside_its_row(text: str) -> None:
    trunk, codec, batch = make_trunk(), make(text), make_batch()
    images = batch.images.clone()
    images[3] += 1e-3 * torch.randn(images[3].shape, generator=torch.Generator().manual_seed(0))
    before = look(codec, trunk, batch)
    after = look(codec, trunk, make_batch()._replace(images=images))
    assert torch.equal(before.rows, after.rows)
    inverter = make_inverter(before)
    one, other = (inverter(view.features)[0][view.rows] for view in (before, after))
    same = (one - other).abs().amax((1, 2, 3)) < 1e-6
    assert same.tolist() == (before.rows != before.rows[3]).tolist()


@pytest.mark.parametrize("text", ["none", "none/int4", "topk@0.2/int8", "adc@0.4/int8", "adc-cls@0.4", "c3sl@0.25"])
def test_header_and_bytes_alone_give_another_trainer_the_same_features(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, came = make(text), list[tuple[Header, bytes]]()
    extract = codec.extract

    def spy(header: Header, body: memoryview) -> Any:
        came.append((header, bytes(body)))
        return extract(header, body)

    monkeypatch.setattr(codec, "extract", spy)
    view = look(codec, make_trunk(), make_batch())
    ((header, body),) = came
    assert torch.equal(make(text).extract(header, memoryview(body)).features.detach(), view.features)
    assert view.bytes_up == len(body)


@pytest.mark.parametrize("text", ["adc@0.4", "adc@0.2", "adc-mean@0.4", "adc-batch@0.5", "adc-tokens@0.3"])
def test_rows_and_places_name_the_images_and_tokens_of_each_row(text: str) -> None:
    trunk, batch = make_trunk(), make_batch()
    view = look(make(text), trunk, batch)
    assert view.places is not None
    assert sorted(set(view.rows.tolist())) == list(range(len(view.features)))
    whole = trunk(batch.images).detach()
    for row, (tokens, places) in enumerate(zip(view.features, view.places, strict=True)):
        members = whole[view.rows == row]
        torch.testing.assert_close(tokens, members[:, places].mean(0), rtol=1e-4, atol=1e-5)


def test_the_values_have_been_through_the_encoders_of_the_wire() -> None:
    sent, exact = (
        look(make(text), make_trunk(), make_batch()).features.numpy() for text in ("adc@0.4/int2", "adc@0.4")
    )
    np.testing.assert_array_equal(sent, decode(encode(exact, "int2"), exact.shape, "int2"))
    assert np.abs(sent - exact).max() > 0.1


def structural_similarity(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Wang et al. (2004) with windows of 7x7 that all count alike, over each colour."""
    x, y = (sliding_window_view(image.astype(np.float64), (7, 7), (0, 1)).reshape(-1, 49) for image in (a, b))
    covariance = ((x - x.mean(1, keepdims=True)) * (y - y.mean(1, keepdims=True))).sum(1) / 48
    means, variances = (x.mean(1), y.mean(1)), (x.var(1, ddof=1), y.var(1, ddof=1))
    alike = (2 * means[0] * means[1] + 0.01**2) * (2 * covariance + 0.03**2)
    energy = (means[0] ** 2 + means[1] ** 2 + 0.01**2) * (sum(variances) + 0.03**2)
    return float((alike / energy).mean())


def test_psnr_and_ssim_are_what_their_definitions_say() -> None:
    rng = np.random.default_rng(0)
    originals = rng.random((3, 16, 12, 3), np.float32)
    made = (
        (originals + rng.normal(0, [[[[0.01]]], [[[0.1]]], [[[0.3]]]], originals.shape)).clip(0, 1).astype(np.float32)
    )
    expected = [
        (-10 * np.log10(np.square(a.astype(np.float64) - b).mean()), structural_similarity(a, b))
        for a, b in zip(originals, made, strict=True)
    ]
    np.testing.assert_allclose(score(originals, made), expected, rtol=1e-4)
    assert score(originals[:, :5, :4], originals[:, :5, :4]).tolist() == [[privacy.BEST_DB, 1.0]] * 3  # tiny, exact


def test_a_constant_prediction_scores_as_the_mean_training_image_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "_LEARNING_RATE", 0.0)  # an inverter that has learnt nothing gives the mean image
    leak, examples = invert(STUDY, parse_setting("none"), 0, 0.01)
    assert leak.psnr_db == pytest.approx(leak.psnr_db_mean_image)
    assert leak.ssim == pytest.approx(leak.ssim_mean_image)
    assert not leak.learned
    mean = mean_image()
    np.testing.assert_allclose(examples.reconstructions, np.broadcast_to(255 * mean, (8, 16, 16, 3)), atol=0.51)
    split = sampled(load_dataset("digits"), STUDY).test
    images = [np.asarray(split.image(i).convert("RGB").resize((16, 16), 3), np.float64) / 255 for i in range(64)]
    psnr_db = np.mean([-10 * np.log10(np.square(image - mean).mean()) for image in images])
    assert leak.psnr_db_mean_image == pytest.approx(psnr_db, rel=1e-4)
    assert leak.ssim_mean_image == pytest.approx(
        np.mean([structural_similarity(image, mean) for image in images]), rel=1e-3
    )


@pytest.mark.slow
def test_full_activations_reveal_images_and_few_of_adcs_less() -> None:
    whole, few = attack("none")[0], attack("adc@0.1")[0]
    assert whole.psnr_db > whole.psnr_db_mean_image + 3
    assert whole.learned
    assert whole.ssim > whole.ssim_mean_image + 0.2
    assert few.psnr_db < whole.psnr_db - 2
    assert few.ssim < whole.ssim - 0.1
    assert few.images == whole.images == 64
    assert whole.images_a_row == 1.0 < few.images_a_row
    assert whole.share_up == 1.0
    assert few.share_up == pytest.approx(few.ratio, rel=0.1)


@pytest.mark.slow
def test_examples_are_the_same_images_for_each_setting() -> None:
    whole, few = attack("none")[1], attack("adc@0.1")[1]
    assert whole.originals.shape == whole.reconstructions.shape == (8, 16, 16, 3)
    np.testing.assert_array_equal(whole.originals, few.originals)
    distance = [np.abs(x.reconstructions.astype(float) - x.originals).mean() for x in (whole, few)]
    assert distance[0] < distance[1]


def test_an_attack_is_a_function_of_its_seed_and_leaves_the_global_generator_of_the_inverter_alone() -> None:
    short = msgspec.structs.replace(STUDY, train_images=64)
    first, again, other = (invert(short, parse_setting("adc@0.3/int4"), seed, 1.0)[0] for seed in (0, 0, 1))
    assert first == again
    assert first.psnr_db != other.psnr_db


def test_gradients_that_change_by_epoch_change_no_attack() -> None:
    short = msgspec.structs.replace(STUDY, train_images=64)
    listed, plain = parse_setting("adc@0.3/int4:pca1,int8"), parse_setting("adc@0.3/int4")
    _check_one_precision([listed])
    found, alone = (invert(short, setting, 0, 1.0)[0] for setting in (listed, plain))
    assert msgspec.structs.replace(found, setting=alone.setting) == alone


def test_a_split_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match="20 images in the test split"):
        invert(msgspec.structs.replace(STUDY, test_images=20), parse_setting("none"), 0, 1.0)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "privacy", "adc_edge.evaluation.privacy.command")


@pytest.mark.usefixtures("known")
def test_one_command_gives_table_figure_and_data_and_says_that_it_is_no_guarantee(tmp_path: Path) -> None:
    settings = ["none", "topk@0.1", "adc@0.3/int4"]
    asked = [
        "privacy",
        *TASK,
        *(word for text in settings for word in ("--setting", text)),
        "-o",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert all(text in result.output for text in [*settings, "mean image", "not a guarantee"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"privacy.json", "privacy.csv", "privacy.png"}
    table = pd.read_csv(tmp_path / "out" / "privacy.csv")
    assert table["setting"].tolist() == settings
    assert table["share_up"].tolist() == pytest.approx([1.0, 0.118, 0.3 * 4.5 / 32], rel=0.15)  # values, bits, scales
    found = json.loads((tmp_path / "out" / "privacy.json").read_text())
    assert [leak["psnr_db"] for leak in found["settings"]] == pytest.approx(table["psnr_db"].tolist())
    assert found["study"]["batch_size"] == 32
    assert "not a guarantee" in found["note"]
    assert (tmp_path / "out" / "privacy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--setting", "adcc@0.1"], "METHOD"),
        (["--setting", "adc@2"], "0, 1"),
        (["--setting", "none/pca4,int8:pca1"], "attack each of them: --setting pca4 --setting int8"),
        (["--setting", "adc@0.1/pca4,pca1,pca4"], "attack each of them: --setting adc@0.1/pca4 --setting adc@0.1/pca1"),
        (["--epochs", "0"], "--epochs"),
        (["--data", "nothing"], "digits, folder:PATH"),
        (["--split", "9"], "--split 9"),
        (["--batch-size", "60"], "test split"),
        (["--augment", "blur"], "blur"),
    ],
)
def test_wrong_use_ends_with_exit_code_2_and_says_what_was_expected(
    wrong: list[str], told: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(main, ["privacy", *TASK, *wrong, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_the_loss_counts_each_image_against_its_row_and_each_token_against_its_place() -> None:
    view = look(make("adc@0.4"), make_trunk(), make_batch())
    assert view.places is not None
    inverter, images = make_inverter(view), torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made, logits = inverter(view.features)
        loss = inverter.loss(view, images).item()
    pixels = np.mean([(made[row] - image).square().mean().item() for row, image in zip(view.rows, images, strict=True)])
    chances: Tensor = logits.softmax(-1).gather(2, view.places[:, :, None]).log()
    assert loss == pytest.approx(pixels / 0.3**2 - chances.mean().item(), rel=1e-5)


@pytest.mark.parametrize("width", [80, 120])
def test_an_attack_that_learned_nothing_is_no_sign_of_privacy_and_the_table_breaks_no_word(width: int) -> None:
    leaks = [
        Leak(setting, 0, 0.1, 0.5, 14.1, 0.4, 14.0, 0.4, 64, 8.0, gain_sem_db=0.2)
        for setting in ("none", "adc-batch@0.125/pca0.5:pca0.75")
    ]
    screen = io.StringIO()
    console = Console(file=screen, width=width)
    console.print(_table(leaks))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = screen.getvalue().split()
    assert {"none", "adc-batch@0.125/pca0.5:pca0.75", "share", "merged", "PSNR", "SSIM", "14.10"} <= set(words)
    assert "The attack has learned nothing yet: 14.10 dB at best" in " ".join(words)
    learned = msgspec.structs.replace(leaks[0], psnr_db=14.6)
    assert _nothing_learned([learned, leaks[1]]) == ""
