"""A CSV of image files: columns, separators and splits as people write them; every fault names its line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adc_edge.data.sources import Dataset, load_dataset
from adc_edge.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty small images, each of its own grey level, in a directory with the CSV that a test writes."""
    (tmp_path / "img").mkdir()
    for number in range(40):
        Image.new("L", (3, 2), number).save(tmp_path / "img" / f"{number}.png")
    return tmp_path


def opened(photos: Path, text: str | bytes) -> Dataset:
    (photos / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_dataset(f"csv:{photos / 't.csv'}")


def refused(photos: Path, text: str) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(photos, text)
    return caught.value


def rows(separator: str = ",", names: str = "cat dog eel") -> str:
    kinds = names.split()
    return "".join(f"img/{number}.png{separator}{kinds[number % len(kinds)]}\n" for number in range(40))


def grey_levels(dataset: Dataset) -> list[int]:
    splits = (dataset.train, dataset.test)
    return [np.asarray(split.image(i))[0, 0].item() for split in splits for i in range(len(split.labels))]


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        ("path,label", ","),
        ("File;Class", ";"),
        ("IMAGE\tLabel", "\t"),
        ('"filename","class"', ","),
        ("path, label", ","),
    ],
)
def test_paths_and_labels_are_read_whatever_the_columns_are_called(photos: Path, header: str, separator: str) -> None:
    dataset = opened(photos, f"\ufeff{header}\r\n{rows(separator)}\n")
    assert list(dataset.classes) == ["cat", "dog", "eel"]
    levels = grey_levels(dataset)
    assert sorted(levels) == list(range(40))
    assert [*dataset.train.labels, *dataset.test.labels] == [level % 3 for level in levels]
    assert 0 < len(dataset.test.labels) < 12


def test_the_same_files_are_held_out_after_others_were_added(photos: Path) -> None:
    whole = opened(photos, "path,label\n" + rows())
    half = opened(photos, "path,label\n" + "".join(rows().splitlines(keepends=True)[:20]))
    held = grey_levels(whole)[len(whole.train.labels) :]
    assert grey_levels(half)[len(half.train.labels) :] == [level for level in held if level < 20]


def test_a_split_column_decides(photos: Path) -> None:
    text = "label,split,path\n" + "".join(
        f"c,{s},img/{n}.png\n" for n, s in enumerate(["Train", "val", "TEST", "train"])
    )
    dataset = opened(photos, text)
    assert grey_levels(dataset) == [0, 3, 2]
    dataset = opened(photos, text.replace("TEST", "valid"))
    assert grey_levels(dataset) == [0, 3, 1, 2]


def test_classes_that_are_numbers_keep_their_order(photos: Path) -> None:
    assert list(opened(photos, "path,label\n" + rows(names="10 9 2")).classes) == ["2", "9", "10"]


def test_quoted_cells_and_absolute_paths(photos: Path) -> None:
    Image.new("L", (3, 2), 7).save(photos / "a, b.png")
    text = f'path,label\n"a, b.png","cat, large"\n{photos}/img/1.png,"cat, large"\n' + rows(names="dog").replace(
        "img/1.png,dog\n", ""
    )
    assert list(opened(photos, text).classes) == ["cat, large", "dog"]


def test_names_that_are_not_utf8_are_read(photos: Path) -> None:
    name = b"\xff.png"
    (photos / "img" / "1.png").rename(photos / "img" / name.decode("utf-8", "surrogateescape"))
    dataset = opened(photos, b"path,label\n" + rows().encode().replace(b"1.png", name, 1))
    assert sorted(grey_levels(dataset)) == list(range(40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1: nothing", "path,label"]),
        ("img/0.png,cat\n", ["line 1: img/0.png, cat", "path,label"]),
        ("path,file,label\n", ["the columns path and file", "one column of path"]),
        ("path,label\n", ["lists no image"]),
        ("path,label\nimg/0.png,cat\nimg/99.png,cat\n", ["line 3: img/99.png: no such file", "relative to"]),
        ("path,label\n\nimg/0.png\n", ["line 3: no label"]),
        ("path,label\n,cat\n", ["line 2: no path"]),
        ("path,label,split\nimg/0.png,cat,later\n", ["line 2: split 'later'", "train, test or val"]),
        ("path,label,split\nimg/0.png,cat,train\nimg/1.png,dog,test\n", ["the test split has the classes dog"]),
        ("path,label,split\nimg/0.png,cat,test\n", ["the test split has the classes cat"]),
        ("path,label,split\nimg/0.png,cat,train\n", ["the test split is empty", "add images to", "t.csv"]),
        ("path,label\nimg/0.png,cat\nimg/1.png,cat, grey\n", ["line 3: 3 cells", "2, as in the header", "in quotes"]),
        ("path,label\nimg/0.png,cat\nimg/1.png,cat\n./img/0.png,dog\n", ["lines 2 and 4:", "0.png is cat and dog"]),
    ],
)
def test_a_fault_names_its_line(photos: Path, text: str, words: list[str]) -> None:
    error = str(refused(photos, text))
    for word in words:
        assert word in error


@pytest.mark.parametrize("content", [("path,label\n" + rows()).encode("utf-16"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_table_that_is_not_utf8_text_is_refused(photos: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="is not UTF-8 text"):
        opened(photos, content)


def test_empty_cells_at_the_end_of_a_row_are_no_fault(photos: Path) -> None:
    assert list(opened(photos, "path,label\n" + rows().replace("\n", ",,\n")).classes) == ["cat", "dog", "eel"]


def test_validation_rows_beside_test_rows_are_said_to_be_unused(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    splits = ["train", "val", "test", "val"]
    opened(photos, "path,label,split\n" + "".join(f"img/{n}.png,c,{split}\n" for n, split in enumerate(splits)))
    assert "2 rows of the split val are not used" in caplog.text


def test_a_class_whose_images_are_all_held_out_is_named(photos: Path) -> None:
    whole = opened(photos, "path,label\n" + rows())
    held = grey_levels(whole)[-1]
    text = "path,label\n" + rows(names="cat").replace(f"img/{held}.png,cat", f"img/{held}.png,yak")
    error = refused(photos, text)
    assert "yak: all images of it are in the tenth that is held out" in error.received
    assert "a column split" in error.remedy


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"csv:.*absent.csv: No such file"):
        load_dataset(f"csv:{tmp_path / 'absent.csv'}")
