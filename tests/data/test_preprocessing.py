"""Preprocessing: resize and crop are timm's, pixel for pixel; bundles of before keep their pixels."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_model_data_config
from timm.models.vision_transformer import default_cfgs
from torchvision import transforms

from adc_edge.data.decoding import decode_image
from adc_edge.data.preprocessing import CropMode, Interpolation, Preprocessing, normalise, prepare
from adc_edge.method.split import create_vit, preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOUR = Preprocessing((12, 12), MEAN, STD, "bicubic")
GREY = Preprocessing((8, 8), (0.5,), (0.25,), "bilinear")
PICTURES = [(500, 375), (375, 500), (33, 77), (10, 10), (257, 256), (1, 3), (300, 31), (224, 224), (51, 52)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def timms(image: Image.Image, how: Preprocessing) -> npt.NDArray[np.uint8]:
    transform = create_transform(
        input_size=(3, *how.size),
        is_training=False,
        interpolation=how.interpolation,
        mean=how.mean,
        std=how.std,
        crop_pct=how.crop_pct,
        crop_mode=how.crop_mode,
        normalize=False,
    )
    pixels: npt.NDArray[np.uint8] = transform(image).numpy().transpose(1, 2, 0)
    return pixels


@pytest.mark.parametrize("mode", get_args(CropMode))
@pytest.mark.parametrize("size", [(224, 224), (33, 33), (24, 40), (40, 24)])
def test_resize_and_crop_are_timms_pixel_for_pixel(size: tuple[int, int], mode: CropMode) -> None:
    for crop_pct in (1.0, 0.95, 0.9, 0.875, 0.5):
        for interpolation in get_args(Interpolation):
            how = Preprocessing(size, MEAN, STD, interpolation, crop_pct, mode)
            for picture in PICTURES:
                image = noise(*picture)
                same = np.array_equal(np.asarray(prepare(image, how)), timms(image, how))
                assert same, (crop_pct, interpolation, picture)


def test_every_crop_and_interpolation_of_timms_vision_transformers_can_be_told() -> None:
    configs = [config for default in default_cfgs.values() for config in default.cfgs.values()]
    assert len(configs) > 100
    for config in configs:
        assert config.crop_mode in get_args(CropMode)
        assert config.interpolation in get_args(Interpolation)
        assert 0 < config.crop_pct <= 1


@pytest.mark.parametrize("model", ["deit_tiny_patch16_224", "vit_base_patch16_clip_224.openai", "vit_tiny_patch16_384"])
def test_a_model_brings_the_crop_that_timm_evaluates_it_with(model: str) -> None:
    vit = create_vit(model, {"depth": 1, "embed_dim": 12, "num_heads": 1, "img_size": 64}, 2)
    theirs = create_transform(**resolve_model_data_config(vit) | {"input_size": (3, 64, 64)}, is_training=False)
    how, image = preprocessing(vit), noise(150, 99)
    np.testing.assert_allclose(normalise(prepare(image, how), how), theirs(image).numpy(), rtol=1e-5, atol=1e-6)
    assert preprocessing(vit, 1.0).crop_pct == 1.0


def test_a_crop_of_all_gives_a_square_picture_the_pixels_of_before() -> None:
    for side in (7, 8, 32, 100, 224, 500):
        for interpolation in get_args(Interpolation):
            whole = Preprocessing((24, 24), MEAN, STD, interpolation, 1.0)
            before = msgspec.structs.replace(whole, crop_pct=None)
            image = noise(side, side)
            assert prepare(image, whole).tobytes() == prepare(image, before).tobytes(), (side, interpolation)


def test_without_a_crop_in_the_manifest_the_pixels_are_those_of_before() -> None:
    for picture in PICTURES:
        image = noise(*picture)
        expected = ImageOps.fit(image, (12, 12), Image.Resampling.BICUBIC)
        assert prepare(image, COLOUR).tobytes() == expected.tobytes()
    assert b"crop" not in msgspec.json.encode(COLOUR)
    assert msgspec.json.decode(msgspec.json.encode(COLOUR), type=Preprocessing) == COLOUR


def test_the_crop_survives_the_manifest_and_is_refused_out_of_range() -> None:
    how = Preprocessing((12, 12), MEAN, STD, "bicubic", 0.95, "squash")
    assert msgspec.json.decode(msgspec.json.encode(how), type=Preprocessing) == how
    for wrong in (b"0", b"1.5", b'"all"'):
        text = msgspec.json.encode(how).replace(b"0.95", wrong)
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=Preprocessing)


@pytest.mark.parametrize("how", [COLOUR, GREY], ids=["RGB", "L"])
def test_normalising_is_torchvisions(how: Preprocessing) -> None:
    shape = (*how.size, 3) if len(how.mean) == 3 else how.size
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(how.mean, how.std)])
    np.testing.assert_allclose(normalise(image, how), theirs(image).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_of_any_mode_become_the_models_channels(mode: str) -> None:
    image = Image.new("RGB", (30, 20), (250, 10, 10)).convert(mode)
    for how in (COLOUR, GREY, msgspec.structs.replace(GREY, crop_pct=0.9, crop_mode="border")):
        assert normalise(prepare(image, how), how).shape == (len(how.mean), *how.size)


@pytest.mark.slow
@torch.no_grad()
def test_deit_tiny_decides_as_in_timms_own_evaluation(shared_data: Path, tmp_path: Path) -> None:
    weights = shared_data / "deit_tiny_patch16_224.safetensors"
    vit = create_vit("deit_tiny_patch16_224", {}, None, weights).eval()
    how, theirs = preprocessing(vit), create_transform(**resolve_model_data_config(vit), is_training=False)
    with tarfile.open(shared_data / "imagenet_sample_300.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    files = sorted(path for path in tmp_path.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    labels = np.array([int(path.name.partition("_")[0]) for path in files])
    ours = np.stack([normalise(prepare(decode_image(path), how), how) for path in files])
    timm_images = torch.stack([theirs(Image.open(path).convert("RGB")) for path in files])
    mine, timm_says = (vit(images).argmax(1).numpy() for images in (torch.from_numpy(ours), timm_images))
    agreement, top1, timm_top1 = (mine == timm_says).mean(), (mine == labels).mean(), (timm_says == labels).mean()
    print(f"{len(files)} images: agreement {agreement:.1%}, top-1 {top1:.1%}, timm's {timm_top1:.1%}")
    assert len(files) == 300
    assert agreement == 1
    assert top1 == timm_top1 > 0.78
