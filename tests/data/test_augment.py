"""Augmentation, against torchvision's own transforms."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import ColorJitter, InterpolationMode, RandAugment
from torchvision.transforms import functional as reference
from torchvision.transforms.autoaugment import _apply_op

from adc_edge.data.augment import AUGMENTATIONS, OPERATIONS, flip, jitter, parse_augmentation, randaugment
from adc_edge.errors import SettingError

THEIRS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}
SHAPES: list[tuple[int, ...]] = [(37, 52, 3), (52, 37), (64, 64, 3), (64, 64)]


def picture(*shape: int, seed: int = 0) -> Image.Image:
    """Noise on a slope that leaves some contrast to stretch, in colour ("RGB") or grey ("L")."""
    slope = np.linspace(20, 180, shape[1])[None, :, None]
    noise = np.random.default_rng(seed).integers(0, 50, (shape[0], shape[1], 3))
    colour = (slope + noise).astype(np.uint8)
    return Image.fromarray(colour if len(shape) == 3 else colour[:, :, 0])


def torchvisions(image: Image.Image, name: str, bin_of_31: int, sign: int) -> Image.Image:
    magnitudes, signed = RandAugment()._augmentation_space(31, (image.height, image.width))[THEIRS[name]]
    magnitude = float(magnitudes[bin_of_31]) if magnitudes.ndim else 0.0
    changed: Image.Image = _apply_op(
        image, THEIRS[name], sign * magnitude if signed else magnitude, InterpolationMode.NEAREST, None
    )
    return changed


def levels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(image).astype(np.int64)


def test_there_are_the_operations_that_torchvision_draws_from_in_its_order() -> None:
    assert [THEIRS[name] for name in OPERATIONS] == list(RandAugment()._augmentation_space(31, (8, 8)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_torchvisions_pixel_for_pixel_at_the_papers_magnitude(
    name: str, shape: tuple[int, ...]
) -> None:
    image = picture(*shape)
    for sign in (1, -1):
        ours = OPERATIONS[name](image, sign * 9 / 30)
        assert ours.mode == image.mode
        np.testing.assert_array_equal(levels(ours), levels(torchvisions(image, name, 9, sign)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_torchvisions_at_every_magnitude(name: str) -> None:
    image = picture(37, 52, 3)
    for bin_of_31 in range(31):
        for sign in (1, -1):
            difference = levels(OPERATIONS[name](image, sign * bin_of_31 / 30)) - levels(
                torchvisions(image, name, bin_of_31, sign)
            )
            assert np.abs(difference).max() <= 1, (bin_of_31, sign)  # their magnitudes are float32


def test_the_test_image_shows_every_operation() -> None:
    for shape in SHAPES:
        image = picture(*shape)
        same = {name for name in OPERATIONS if (levels(OPERATIONS[name](image, 0.3)) == levels(image)).all()}
        assert same == ({"identity"} if len(shape) == 3 else {"identity", "color"})


def test_randaugment_applies_two_of_torchvisions_operations_at_magnitude_nine() -> None:
    image = picture(24, 24, 3)
    once = {(name, sign): torchvisions(image, name, 9, sign) for name in OPERATIONS for sign in (1, -1)}
    possible = {
        torchvisions(first, name, 9, sign).tobytes()
        for first in once.values()
        for name in OPERATIONS
        for sign in (1, -1)
    }
    drawn = [randaugment(image, np.random.default_rng(seed)).tobytes() for seed in range(300)]
    assert set(drawn) <= possible
    assert len(set(drawn)) > 120


def test_randaugment_draws_operations_and_signs_evenly() -> None:
    image = picture(24, 24, 3)
    single = {(name, sign): OPERATIONS[name](image, sign * 0.3).tobytes() for name in OPERATIONS for sign in (1, -1)}
    drawn = Counter(randaugment(image, np.random.default_rng(seed), operations=1).tobytes() for seed in range(2000))
    per_operation = {name: {single[name, 1], single[name, -1]} for name in OPERATIONS}
    for name, results in per_operation.items():
        count = sum(drawn[result] for result in results)
        assert 80 <= count <= 210, name  # 2000 / 14 = 143
        assert all(drawn[result] >= 35 for result in results), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_jitter_is_torchvisions_adjustments_one_after_another(shape: tuple[int, ...]) -> None:
    adjust = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)
    orders = set()
    for seed in range(20):
        image = picture(*shape, seed=seed)
        ours = jitter(image, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        expected, order = image, rng.permutation(3)
        for kind in order:
            factor = rng.uniform(0.6, 1.4)
            expected = adjust[kind](expected, factor)
        np.testing.assert_array_equal(levels(ours), levels(expected))
        orders.add(tuple(order.tolist()))
    assert len(orders) == 6


def test_jitter_has_the_papers_range() -> None:
    theirs = ColorJitter(0.4, 0.4, 0.4)
    assert theirs.brightness == theirs.contrast == theirs.saturation == (0.6, 1.4)
    grey = Image.new("L", (4, 4), 100)  # of one colour: contrast and saturation leave it as it is
    means = [levels(jitter(grey, np.random.default_rng(seed))).mean() for seed in range(400)]
    assert 59 <= min(means) < 63
    assert 137 < max(means) <= 140


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flip_mirrors_half_of_the_images(shape: tuple[int, ...]) -> None:
    image = picture(*shape)
    kept, mirrored = image.tobytes(), reference.hflip(image).tobytes()
    drawn = Counter(flip(image, np.random.default_rng(seed)).tobytes() for seed in range(400))
    assert drawn.keys() == {kept, mirrored}
    assert 150 <= drawn[kept] <= 250


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_seed_gives_the_same_image_and_leaves_the_original_alone(name: str) -> None:
    image = picture(20, 20, 3)
    before = image.tobytes()
    results = [[AUGMENTATIONS[name](image, np.random.default_rng(s)).tobytes() for s in range(30)] for _ in range(2)]
    assert results[0] == results[1]
    assert len(set(results[0])) > 1
    assert image.tobytes() == before


def test_names_are_read_in_their_order() -> None:
    assert parse_augmentation("flip,jitter") == [flip, jitter]
    assert parse_augmentation("randaugment,flip") == [randaugment, flip]
    assert parse_augmentation("none") == []
    assert parse_augmentation("") == []


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(SettingError, match=r"--augment 'flip,mixup,cut': mixup, cut is unknown[^$]*flip, jitter, rand"):
        parse_augmentation("flip,mixup,cut")
