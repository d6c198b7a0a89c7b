"""Folders of images: the files found, their classes, the images held out, and refused layouts."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adc_edge.data.listing import FileSplit
from adc_edge.data.sources import ArraySplit, Dataset, Split, load_dataset
from adc_edge.data.unreadable import check_images
from adc_edge.errors import DataError


def put(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def many(folder: str, count: int = 30, suffix: str = ".jpg") -> list[str]:
    return [f"{folder}/{n:02d}{suffix}" for n in range(count)]


def load(root: Path) -> Dataset:
    return load_dataset(f"folder:{root}")


def names(split: Split, root: Path) -> set[str]:
    assert isinstance(split, FileSplit)
    return {path.relative_to(root).as_posix() for path in split.paths}


def everything(dataset: Dataset, root: Path) -> set[str]:
    return names(dataset.train, root) | names(dataset.test, root)


# splits


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("held_out", ["test", "Testing", "eval", "val", "VALID", "validation", "dev"])
def test_a_folder_with_train_and_test_is_read_as_it_stands(tmp_path: Path, train: str, held_out: str) -> None:
    put(tmp_path, *(f"{train}/{name}" for name in ("cat/1.jpg", "cat/2.JPEG", "cat/more/3.png", "ant/1.webp")))
    put(tmp_path, f"{held_out}/cat/9.jpg", f"{train}/.cache/1.jpg", f"{train}/ant/no.txt", "labels/names.txt")
    dataset = load(tmp_path)
    assert dataset.classes == ["ant", "cat"]
    assert names(dataset.train, tmp_path) == {
        f"{train}/{name}" for name in ("cat/1.jpg", "cat/2.JPEG", "cat/more/3.png", "ant/1.webp")
    }
    assert sorted(dataset.train.labels.tolist()) == [0, 1, 1, 1]
    assert names(dataset.test, tmp_path) == {f"{held_out}/cat/9.jpg"}
    assert dataset.test.labels.tolist() == [1]


def test_beside_train_and_test_a_validation_split_is_named_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg", "test/cat/3.jpg")
    with caplog.at_level(logging.INFO):
        assert everything(load(tmp_path), tmp_path) == {"train/cat/1.jpg", "test/cat/3.jpg"}
    assert "val is not used: test is the test split" in caplog.text


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["train/cat/1.jpg"], "train/"),
        (["Testing/cat/1.jpg"], "Testing/"),
        (["train/1.jpg", "test/1.jpg", "cat/1.jpg"], "train/, test/, cat/"),
        (["train/cat/1.jpg", "test/cat/1.jpg", "dog/1.jpg"], "train/, test/, dog/"),
        (["train/cat/1.jpg", "dog/1.jpg"], "train/, dog/"),
        (["train/cat/1.jpg", "Training/cat/1.jpg", "test/cat/1.jpg"], "train/, test/"),
    ],
)
def test_a_split_that_is_not_whole_is_an_error_and_no_class(tmp_path: Path, files: list[str], found: str) -> None:
    put(tmp_path, *files)
    with pytest.raises(DataError, match=r"a split that is not whole[^$]*PATH/train/CLASS[^$]*PATH/CLASS") as caught:
        load(tmp_path)
    for name in found.split(", "):
        assert name in caught.value.received


def test_the_way_to_use_train_alone_is_told_and_holds_out_the_images_of_before(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}" for name in many("cat", 100) + many("dog", 100)))
    with pytest.raises(DataError, match=rf"folder:{tmp_path}/train, of which a tenth"):
        load(tmp_path)
    dataset = load(tmp_path / "train")
    assert dataset.classes == ["cat", "dog"]
    expected = {name for name in many("cat", 100) + many("dog", 100) if hashlib.sha256(name.encode()).digest()[0] < 26}
    assert names(dataset.test, tmp_path / "train") == expected


@pytest.mark.parametrize("name", ["train", "Test", "dev"])
def test_a_class_may_be_called_as_a_split_is(tmp_path: Path, name: str) -> None:
    put(tmp_path, *many("bus", 100), *many(name, 100))
    assert load(tmp_path).classes == sorted(["bus", name])


def test_splits_inside_classes_and_a_folder_around_all_are_told(tmp_path: Path) -> None:
    put(tmp_path, *many("a/cat/train"), *many("a/cat/test"), *many("a/dog/train"), *many("a/dog/test"))
    with pytest.raises(DataError, match=r"cat holds test/, train/[^$]*above the classes"):
        load(tmp_path / "a")
    put(
        tmp_path,
        *many("b/flowers/rose"),
        *many("b/flowers/tulip"),
        *many("c/flowers/train/x"),
        *many("c/flowers/val/x"),
    )
    for name in "bc":
        with pytest.raises(DataError, match=rf"folder:{tmp_path}/{name}/flowers"):
            load(tmp_path / name)


def test_without_a_split_a_tenth_is_held_out_and_new_files_never_move_an_old_one(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{n}.jpg" for kind in ("cat", "dog") for n in range(400)))
    before = load(tmp_path)
    train, test = names(before.train, tmp_path), names(before.test, tmp_path)
    assert len(train | test) == 800
    assert not train & test
    assert 50 <= len(test) <= 120
    assert before.classes == ["cat", "dog"]
    put(tmp_path, *(f"{kind}/new{n}.jpg" for kind in ("ant", "cat", "dog") for n in range(100)))
    after = load(tmp_path)
    assert train < names(after.train, tmp_path)
    assert test < names(after.test, tmp_path)
    assert after.classes == ["ant", "cat", "dog"]


def test_the_order_is_that_of_the_names_part_by_part_whatever_the_file_system_says(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path, *(f"{split}/cat/{name}.jpg" for name in ("b/1", "b", "b-1", "a/z", "10", "9", "B")))
    dataset = load(tmp_path)
    assert isinstance(dataset.train, FileSplit)
    root = tmp_path / "train/cat"
    assert dataset.train.paths == sorted(path for path in root.rglob("*") if path.suffix == ".jpg")  # as in 0.6


@pytest.mark.parametrize(
    "splits",
    [
        ("train2017", "val2017"),
        ("train_set", "test_set"),
        ("Train Data", "Validation Data"),
        ("training_data", "test_data"),
        ("trn", "tst"),
        ("part1", "part2"),
    ],
)
def test_splits_that_are_spelled_otherwise_are_no_classes(tmp_path: Path, splits: tuple[str, str]) -> None:
    put(tmp_path, *(name for split in splits for kind in ("cat", "dog") for name in many(f"{split}/{kind}")))
    with pytest.raises(DataError, match=r"a split that is not whole|looks like splits[^$]*PATH/train/CLASS") as caught:
        load(tmp_path)
    assert all(split in caught.value.received for split in splits)


def test_splits_in_other_words_that_hold_images_alone_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, *many("train2017"), *many("val2017"))
    with pytest.raises(DataError, match=r"train2017/, val2017/: a split that is not whole"):
        load(tmp_path)


def test_a_folder_between_splits_and_classes_is_no_class(tmp_path: Path) -> None:
    put(tmp_path, *(name for split in ("train", "test") for kind in "ab" for name in many(f"{split}/images/{kind}")))
    with pytest.raises(DataError, match=r"train/images holds a/, b/: looks like[^$]*train/CLASS"):
        load(tmp_path)


def test_classes_may_have_names_that_begin_like_a_split(tmp_path: Path) -> None:
    put(tmp_path, *many("trains/old"), *many("testing_rig"), *many("device"), *many("bus/red"), *many("bus/blue"))
    assert load(tmp_path).classes == ["bus", "device", "testing_rig", "trains"]


# files


def test_the_images_of_a_folder_are_its_files(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "test/a/0.png")
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "test/a/0.png")
    np.testing.assert_array_equal(np.asarray(load(tmp_path).test.image(0)), image)


def test_every_suffix_that_pillow_draws_is_listed(tmp_path: Path) -> None:
    good = [f"cat/{n}{suffix}" for n in range(20) for suffix in (".jfif", ".jpe", ".tga", ".ppm", ".pgm", ".JPG")]
    put(tmp_path, *good, *many("cat", 30, ".txt"), "cat/data.h5", "cat/film.mpg")
    dataset = load(tmp_path)
    assert everything(dataset, tmp_path) == set(good)
    assert isinstance(dataset.train, FileSplit)
    assert dataset.train.skipped == {"other": 32}


def test_hidden_files_and_folders_of_systems_and_storage_are_skipped_and_counted(tmp_path: Path) -> None:
    good = many("cat", 60) + many("dog", 60)
    put(tmp_path, *good, *many("@eaDir/cat"), *many("__MACOSX/cat"), *many(".ipynb_checkpoints"), *many("#recycle"))
    put(tmp_path, *many("cat/@eaDir"), "cat/._01.jpg", "cat/.x.jpg", "dog/Thumbs.db", "dog/.DS_Store", "desktop.ini")
    dataset = load(tmp_path)
    assert dataset.classes == ["cat", "dog"]
    assert everything(dataset, tmp_path) == set(good)
    assert isinstance(dataset.train, FileSplit)
    assert dataset.train.skipped == {"hidden": 4 + 1 + 1 + 2 + 2}


def test_a_folder_called_like_an_image_is_walked_and_a_dead_link_is_named(tmp_path: Path) -> None:
    put(tmp_path, *many("cat", 60), "cat/x.jpg/1.jpg")
    (tmp_path / "cat/dead.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "cat/pipe.jpg")  # would hang whoever opens it
    found = everything(load(tmp_path), tmp_path)
    assert {"cat/x.jpg/1.jpg", "cat/dead.jpg"} <= found
    assert not {"cat/x.jpg", "cat/pipe.jpg"} & found


def test_links_are_followed_and_loops_of_links_end(tmp_path: Path) -> None:
    put(tmp_path, *many("set/cat", 60), *many("elsewhere/dog", 60), *many("elsewhere/more", 3))
    (tmp_path / "set/dog").symlink_to(tmp_path / "elsewhere/dog")
    (tmp_path / "set/cat/more").symlink_to(tmp_path / "elsewhere/more")
    (tmp_path / "set/cat/self").symlink_to("self")
    (tmp_path / "elsewhere/more/up").symlink_to(tmp_path / "set/cat")
    (tmp_path / "set/cat/a_again").symlink_to(tmp_path / "set/cat")
    dataset = load(tmp_path / "set")
    assert dataset.classes == ["cat", "dog"]
    assert everything(dataset, tmp_path / "set") == {*many("cat", 60), *many("cat/more", 3), *many("dog", 60)}


@pytest.mark.parametrize(
    ("link", "target", "same"),
    [
        ("kitty", "cat", ("cat", "kitty")),
        ("cat/up", "..", ("set", "set/cat/up")),
        ("cat/more", "../dog", ("set/cat/more", "set/dog")),
        ("dog/more", "../cat/sub", ("set/cat/sub", "set/dog/more")),
        ("dog/x.jpg", "../cat/sub/1.jpg", ("set/cat/sub/1.jpg", "set/dog/x.jpg")),
        ("cat/x.jpg", "../dog/01.jpg", ("set/cat/x.jpg", "set/dog/01.jpg")),
    ],
)
def test_a_link_that_puts_a_file_into_two_classes_is_refused_with_both_paths(
    tmp_path: Path, link: str, target: str, same: tuple[str, str]
) -> None:
    put(tmp_path / "set", *many("cat", 60), *many("dog", 60), "cat/sub/1.jpg")
    (tmp_path / "set" / link).symlink_to(target)
    with pytest.raises(DataError, match=rf"{same[0]} and .*{same[1]} are the same"):
        load(tmp_path / "set")


@pytest.mark.parametrize(("link", "target"), [("test", "train"), ("test/cat", "../train/cat"), ("test/cat/1.jpg", "")])
def test_a_link_that_puts_a_file_into_train_and_test_is_refused(tmp_path: Path, link: str, target: str) -> None:
    put(tmp_path, *many("train/cat"), *many("train/dog"))
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(target or tmp_path / "train/cat/01.jpg")
    with pytest.raises(DataError, match=r"train.* and .*test.* are the same"):
        load(tmp_path)


def test_a_file_that_a_class_reaches_twice_is_listed_once(tmp_path: Path) -> None:
    put(tmp_path, *many("set/cat", 60), "pool/1.jpg", "set/loose.jpg")
    for name, target in (("a", "01.jpg"), ("b", "../../pool/1.jpg"), ("c", "../../pool/1.jpg"), ("d", "../loose.jpg")):
        (tmp_path / f"set/cat/{name}.jpg").symlink_to(target)
    assert everything(load(tmp_path / "set"), tmp_path / "set") == {*many("cat", 60), "cat/b.jpg", "cat/d.jpg"}


@pytest.mark.parametrize("place", ["", "train/"])
def test_a_dead_link_among_the_classes_is_refused_by_name(tmp_path: Path, place: str) -> None:
    put(tmp_path, *many(f"{place}cat"), *(["test/cat/1.jpg"] if place else []))
    for target in ("/nowhere/dog", "dog"):  # absent, and a link to itself
        (tmp_path / f"{place}dog").symlink_to(target)
        with pytest.raises(DataError, match=rf"{place}dog is a link to {target}, which cannot be opened"):
            load(tmp_path)
        (tmp_path / f"{place}dog").unlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_link_to_a_class_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, *many("set/cat"), *many("closed/dog"))
    (tmp_path / "set/dog").symlink_to(tmp_path / "closed/dog")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(DataError, match=r"set/dog is a link to .*closed/dog, which cannot be opened"):
            load(tmp_path / "set")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_dead_link_inside_a_class_is_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, *many("cat"))
    (tmp_path / "cat/more").symlink_to("/nowhere")
    (tmp_path / "notes.txt").symlink_to("/nowhere")
    dataset = load(tmp_path)
    assert isinstance(dataset.train, FileSplit)
    assert dataset.train.skipped == {"other": 2}
    assert "cat/more is a link that leads nowhere" in caplog.text


def test_a_link_to_a_pipe_is_no_image(tmp_path: Path) -> None:
    put(tmp_path, *many("cat", 60))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "cat/pipe.png").symlink_to("../pipe")
    (tmp_path / "cat/zero.png").symlink_to("/dev/zero")
    assert everything(load(tmp_path), tmp_path) == set(many("cat", 60))


def test_a_name_that_is_no_text_neither_crashes_nor_moves_others(tmp_path: Path) -> None:
    put(tmp_path, *many("cat", 200))
    before = names(load(tmp_path).test, tmp_path)
    try:
        put(tmp_path, *(f"cat/\udcff{n}.jpg" for n in range(100)))
    except OSError:
        pytest.skip("a file system of Unicode names")
    after = load(tmp_path)
    assert names(after.test, tmp_path) & set(many("cat", 200)) == before
    assert len(everything(after, tmp_path)) == 300
    check_images(after, allow_broken=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, *many("cat"), *many("cat/closed"))
    (tmp_path / "cat/closed").chmod(0)
    try:
        with pytest.raises(DataError, match=r"cat/closed cannot be listed: Permission denied"):
            load(tmp_path)
    finally:
        (tmp_path / "cat/closed").chmod(0o700)


# refused layouts


def test_a_class_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "test/cat/1.jpg", "test/dog/1.jpg")
    with pytest.raises(DataError, match=r"test has the classes dog"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.jpg", "b.jpg", "notes.txt"], r"no image in a class folder: 2 loose images and 1 other files"),
        (["train/a.jpg", "test/b.jpg"], r"train holds no image in a class folder: 1 loose images"),
        (
            ["cat/a.jpg", "cat/b.jpg", "cat/c.jpg", "dog/a.jpg", "dog/b.jpg", "dog/c.jpg"],
            r"6 images in 2 classes, too few",
        ),
        ([*many("cat"), "dog/notes.txt"], r"no image in dog/: 30 images in 2 class folders, 1 other"),
        ([*many("train/cat"), "train/dog/notes.txt", "test/cat/1.jpg"], r"train holds no image in dog/"),
        (["cat/notes.txt"], r"holds no image: 0 images in 1 class folders, 1 other"),
        (["train/cat/1.jpg", "test/cat/readme"], r"test: the test split is empty"),
        ([], r"holds no image in a class folder: 0 loose images"),
    ],
)
def test_a_layout_that_is_none_is_told_with_what_was_found_and_what_is_wanted(
    tmp_path: Path, files: list[str], words: str
) -> None:
    put(tmp_path, *files)
    with pytest.raises(DataError, match=rf"{words}[^$]*PATH/train/CLASS/\*\.jpg[^$]*\n  +or PATH/CLASS/\*\.jpg"):
        load(tmp_path)


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "file")
    for name in ("absent", "file"):
        with pytest.raises(DataError, match=f"{name} is no directory"):
            load(tmp_path / name)


# the check at the start


def pictures(root: Path, count: int, broken: int = 0) -> Path:
    """Write ``count`` images into each of train and test; the first ``broken`` of train are cut short."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8))
    for split in ("train", "test"):
        (root / split / "cat").mkdir(parents=True)
        for n in range(count):
            path = root / split / "cat" / f"{n:03d}.png"
            noise.save(path)
            if split == "train" and n < broken:
                path.write_bytes(path.read_bytes()[:-200])
    return root


def test_one_line_tells_how_many_images_there_are_and_what_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, numbers = (
        load(pictures(tmp_path, 200, 3)),
        ArraySplit(np.zeros((1437, 8, 8), np.uint8), np.zeros(1437, int)),
    )
    put(tmp_path, "train/cat/._001.png", "test/cat/notes.txt", ".DS_Store")
    for source, line in (  # after what is skipped
        (
            dataset,
            "data     200 train, 200 test images, 1 class; skipped 3 unreadable (first: cat/000.png: truncated)",
        ),
        (load(tmp_path), "; skipped 2 hidden, 1 other, 3 unreadable (first: cat/000.png: truncated)"),
        (Dataset(numbers, numbers, ["a"]), "data     1,437 train, 1,437 test images, 1 class"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            check_images(source)
        (record,) = caplog.records
        assert record.getMessage().endswith(line), record.getMessage()
        assert record.levelname == ("WARNING" if "unreadable" in line else "INFO")


def test_more_than_a_tenth_of_unreadable_files_is_refused_at_the_start_unless_allowed(tmp_path: Path) -> None:
    dataset = load(pictures(tmp_path, 40, 5))
    with pytest.raises(DataError, match=r"5 of 40 images are unreadable \(first: cat/000.png: truncated\)") as caught:
        check_images(dataset)
    assert "--allow-broken" in caught.value.remedy
    check_images(dataset, allow_broken=True)
    check_images(load(pictures(tmp_path / "fine", 40, 4)))


def test_float_images_are_refused_at_the_start_with_the_remedy(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name / "cat").mkdir(parents=True)
        for n in range(3):
            Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / name / "cat" / f"{n}.tif")
    with pytest.raises(DataError, match=r"3 of 3 images are unreadable \(first: cat/0.tif: float pixels\)[^$]*np\.ptp"):
        check_images(load(tmp_path))


def test_a_tenth_that_is_held_out_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "adc_edge")
    for number in range(60):
        put(tmp_path, f"{number % 2}/{number}.png")
    np.savez(tmp_path / "one.npz", x=np.zeros((40, 8, 8), np.uint8) + 200, y=np.arange(40) % 2)
    (tmp_path / "one.csv").write_text("path,label\n" + "".join(f"{n % 2}/{n}.png,{n % 2}\n" for n in range(60)))
    for source in (f"folder:{tmp_path}", f"npz:{tmp_path}/one.npz", f"csv:{tmp_path}/one.csv"):
        caplog.clear()
        load_dataset(source)
        assert [record.getMessage() for record in caplog.records] == [
            "data     there is no test split: a tenth is held out"
        ]
