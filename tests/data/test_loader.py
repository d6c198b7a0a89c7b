"""Batches: the same for the same seed whatever happened before, and with broken images replaced."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from adc_edge.data.augment import parse_augmentation
from adc_edge.data.listing import FileSplit
from adc_edge.data.loader import Batch, Loader
from adc_edge.data.preprocessing import Preprocessing, normalise, prepare
from adc_edge.data.sources import ArraySplit
from adc_edge.errors import DataError

COLOUR = Preprocessing((12, 12), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
ALL = parse_augmentation("flip,jitter,randaugment")


def random_images(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)


def numbered(count: int) -> ArraySplit:
    """Noise, each image labelled with its own index."""
    return ArraySplit(random_images(count), np.arange(count, dtype=np.int64))


def same(a: Batch, b: Batch) -> bool:
    return a.images.tobytes() == b.images.tobytes() and a.labels.tolist() == b.labels.tolist()


# order


@pytest.mark.parametrize("workers", [1, 5])
def test_a_batch_is_a_function_of_seed_and_step_whatever_was_asked_before(workers: int) -> None:
    with closing(Loader(numbered(23), COLOUR, 4, seed=7, augment=ALL, workers=2)) as loader:
        in_order = [loader.batch(step) for step in range(12)]
    with closing(Loader(numbered(23), COLOUR, 4, seed=7, augment=ALL, workers=workers)) as loader:
        for step in (11, 3, 3, 4, 5, 0, 11, 7):
            assert same(loader.batch(step), in_order[step]), step
    with closing(Loader(numbered(23), COLOUR, 4, seed=8, augment=ALL)) as loader:
        assert not same(loader.batch(0), in_order[0])


@pytest.mark.parametrize("first", [0, 3, 5, 7])
@pytest.mark.parametrize("augmented", [False, True])
def test_whole_epochs_follow_a_step_with_which_they_begin_anew(first: int, augmented: bool) -> None:
    """Five steps an epoch. What precedes stays as it was, in whatever order it is asked for."""
    with closing(Loader(numbered(20), COLOUR, 4, seed=3, augment=ALL)) as loader:
        usual = [loader.batch(step) for step in range(first)]
        continued = loader.batch(first)
    with closing(Loader(numbered(20), COLOUR, 4, seed=3, augment=ALL)) as loader:
        loader.begin_anew(first, augmented)
        found = [loader.batch(step) for step in range(first + 10)]
        assert all(same(loader.batch(step), found[step]) for step in (first + 9, first, 0))
        assert all(map(same, found, usual))
        for epoch in (found[first : first + 5], found[first + 5 :]):
            labels = [label for batch in epoch for label in batch.labels.tolist()]
            assert sorted(labels) == list(range(20))
        for batch in found[first:]:
            plain = loader.plain(batch.labels)
            order = plain.labels.argsort()[batch.labels.argsort().argsort()]
            assert np.array_equal(plain.images[order], batch.images) is not augmented
    if augmented and first % 5 == 0:
        assert same(continued, found[first]), "a whole number of epochs changes nothing"


def test_an_epoch_is_whole_batches_and_visits_no_image_twice() -> None:
    with closing(Loader(numbered(23), COLOUR, 4, seed=3)) as loader:
        assert loader.steps_per_epoch == 5
        epochs = [np.concatenate([loader.batch(5 * epoch + s).labels for s in range(5)]) for epoch in range(6)]
    for seen in epochs:
        assert len(seen) == 20
        assert len(set(seen.tolist())) == 20
    assert len({tuple(seen.tolist()) for seen in epochs}) == 6  # reshuffled
    assert set(np.concatenate(epochs).tolist()) == set(range(23))  # the remainder is left out at random


def test_each_image_travels_with_its_own_label() -> None:
    split = numbered(23)
    with closing(Loader(split, COLOUR, 6)) as loader:
        batch = loader.batch(2)
    assert batch.images.dtype == np.float32
    for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
        np.testing.assert_array_equal(image, normalise(prepare(split.image(label), COLOUR), COLOUR))


class Watched(ArraySplit):
    """Counts how often each image is read."""

    def __init__(self, count: int) -> None:
        super().__init__(random_images(count), np.arange(count, dtype=np.int64))
        self.reads = Counter[int]()

    def image(self, index: int) -> Image.Image:
        self.reads[index] += 1
        return super().image(index)


def test_the_next_batch_is_decoded_meanwhile_and_no_image_twice() -> None:
    split = Watched(40)
    with closing(Loader(split, COLOUR, 4)) as loader:
        loader.batch(0)
        deadline = time.monotonic() + 60
        while split.reads.total() < 8:
            assert time.monotonic() < deadline, "nobody decodes ahead"
            time.sleep(0.001)
        for step in range(1, 9):
            loader.batch(step)
    assert split.reads.total() <= 40
    assert set(split.reads.values()) == {1}


# augmentation


def test_augmentation_depends_on_seed_epoch_and_image_alone() -> None:
    def epoch_zero(batch_size: int, workers: int, seed: int) -> dict[int, bytes]:
        with closing(Loader(numbered(24), COLOUR, batch_size, seed, ALL, workers)) as loader:
            batches = [loader.batch(step) for step in range(loader.steps_per_epoch)]
        return {int(n): image.tobytes() for b in batches for n, image in zip(b.labels, b.images, strict=True)}

    reference = epoch_zero(4, 1, 5)
    assert reference == epoch_zero(12, 4, 5)
    other_seed = epoch_zero(4, 1, 6)
    assert sum(reference[n] == other_seed[n] for n in range(24)) < 4


def test_augmentation_changes_from_epoch_to_epoch() -> None:
    with closing(Loader(numbered(4), COLOUR, 4, augment=ALL)) as loader:
        epochs = [loader.batch(step) for step in range(5)]
    images = {image.tobytes() for batch in epochs for image in batch.images}
    assert len(images) > 16


def test_evaluation_images_are_not_augmented() -> None:
    with closing(Loader(numbered(8), COLOUR, 4, augment=ALL)) as loader:
        evaluated = loader.plain(np.arange(8))
    with closing(Loader(numbered(8), COLOUR, 4)) as loader:
        assert same(evaluated, loader.plain(np.arange(8)))
    assert evaluated.labels.tolist() == list(range(8))


# broken images


def png(width: int = 9, height: int = 9) -> bytes:
    data = BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def jpeg_cut_short() -> bytes:
    data = BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(data, "JPEG")
    return data.getvalue()[:900]


def png_bomb() -> bytes:
    header = b"IHDR" + struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    return png()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png()[33:]


def png_with_a_wrong_checksum() -> bytes:
    return png()[:29] + b"\0\0\0\0" + png()[33:]


def tiff_with_a_fraction_for_an_offset() -> bytes:
    """Pillow answers this one with a TypeError."""
    data = BytesIO()
    Image.new("RGB", (4, 4)).save(data, "TIFF")
    whole = bytearray(data.getvalue())
    directory = struct.unpack_from("<I", whole, 4)[0]
    entries = struct.unpack_from("<H", whole, directory)[0]
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", whole, entry)[0] == 273:  # where the pixels are
            struct.pack_into("<HII", whole, entry + 2, 5, 1, len(whole))
    return bytes(whole) + struct.pack("<II", 8, 2)


BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": bytes,
    "text": lambda: b"no image at all",
    "JPEG cut short": jpeg_cut_short,
    "PNG cut short": lambda: png()[:80],
    "PNG checksum": png_with_a_wrong_checksum,
    "PNG bomb": png_bomb,
    "TIFF fraction": tiff_with_a_fraction_for_an_offset,
}


def files(directory: Path, count: int, broken: dict[int, bytes]) -> FileSplit:
    paths = [directory / f"{n}.png" for n in range(count)]
    for n, path in enumerate(paths):
        path.write_bytes(broken.get(n, png(9 + n, 9)))
    return FileSplit(paths, np.arange(count, dtype=np.int64))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_replaced_and_counted(tmp_path: Path, kind: str) -> None:
    split = files(tmp_path, 12, {5: BROKEN[kind]()})
    with closing(Loader(split, COLOUR, 4, seed=1)) as loader:
        seen = [n for step in range(3) for n in loader.batch(step).labels.tolist()]
        assert loader.broken.reasons.keys() == {5}
    with closing(Loader(numbered(12), COLOUR, 4, seed=1)) as loader:  # the same order, nothing broken
        order = [n for step in range(3) for n in loader.batch(step).labels.tolist()]
    at = order.index(5)
    order[at] = order[(at + 1) % 12]
    assert seen == order


def test_the_replacement_does_not_depend_on_when_the_break_was_noticed(tmp_path: Path) -> None:
    split = files(tmp_path, 12, {1: b"", 5: b"", 6: b"", 11: b""})
    with closing(Loader(split, COLOUR, 4, seed=1, augment=ALL, workers=3, allow_broken=True)) as loader:
        first = [loader.batch(step) for step in range(6)]
        again = [loader.batch(step) for step in range(6)]  # all four are known by now
        assert loader.broken.reasons.keys() == {1, 5, 6, 11}
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_a_split_of_broken_images_alone_is_refused(tmp_path: Path) -> None:
    split = files(tmp_path, 6, dict.fromkeys(range(6), b"nothing"))
    with closing(Loader(split, COLOUR, 2)) as loader, pytest.raises(DataError, match="all 6 images are broken"):
        loader.batch(0)


def test_broken_images_are_left_out_of_an_evaluation_and_counted(tmp_path: Path) -> None:
    split = files(tmp_path, 6, {2: b"", 3: b""})
    with closing(Loader(split, COLOUR, 2, allow_broken=True)) as loader:
        assert loader.plain(np.array([1, 2, 4])).labels.tolist() == [1, 4]
        nothing = loader.plain(np.array([2, 3]))
        assert nothing.images.shape == (0, 3, 12, 12)
        assert nothing.labels.shape == (0,)
        assert loader.broken.reasons.keys() == {2, 3}


def test_more_than_a_tenth_of_broken_images_ends_a_run_unless_they_are_allowed(tmp_path: Path) -> None:
    split = files(tmp_path, 40, dict.fromkeys(range(0, 40, 8), b"nothing"))
    with closing(Loader(split, COLOUR, 8, seed=1)) as loader:
        with pytest.raises(DataError, match=r"5 of \d+ images are unreadable \(first: .*png: no image\)") as caught:
            list(map(loader.batch, range(5)))
        assert "--allow-broken" in caught.value.remedy
    with closing(Loader(split, COLOUR, 8, seed=1, allow_broken=True)) as loader:
        assert [len(loader.batch(step).labels) for step in range(10)] == [8] * 10
    few = files(tmp_path, 40, dict.fromkeys((3, 9, 20, 33), b"nothing"))  # a tenth
    with closing(Loader(few, COLOUR, 8, seed=1)) as loader:
        assert [len(loader.batch(step).labels) for step in range(10)] == [8] * 10


def test_the_first_broken_image_is_logged_by_its_name_and_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = files(tmp_path, 60, dict.fromkeys(range(12), b""))
    with closing(Loader(split, COLOUR, 30, allow_broken=True)) as loader:
        loader.plain(np.arange(60))
        assert loader.broken.first in loader.broken.reasons.values()
        assert set(loader.broken.reasons.values()) == {f"{tmp_path.name}/{n}.png: empty file" for n in range(12)}
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert warnings[0].endswith(".png: empty file: it is left out")
    assert "10 are unreadable so far" in warnings[1]


def test_fewer_images_than_a_batch_are_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"5 training images[^$]*one batch of 6[^$]*--batch-size"):
        Loader(numbered(5), COLOUR, 6)
    with closing(Loader(numbered(6), COLOUR, 6)) as loader:
        assert sorted(loader.batch(3).labels.tolist()) == list(range(6))


# evaluation and k-means


@pytest.mark.parametrize("limit", [0, 1, 7, 22, 23, 99])
def test_an_evaluation_takes_the_same_images_in_the_same_order_each_time(limit: int) -> None:
    with closing(Loader(numbered(23), COLOUR, 4, seed=1)) as a, closing(Loader(numbered(23), COLOUR, 4, seed=2)) as b:
        batches = a.sample(limit)
        assert [x.tolist() for x in batches] == [x.tolist() for x in b.sample(limit)]
    chosen = np.concatenate(batches).tolist()
    assert len(chosen) == (limit if 0 < limit < 23 else 23)
    assert len(set(chosen)) == len(chosen)
    assert all(0 <= n < 23 for n in chosen)
    assert all(len(batch) == 4 for batch in batches[:-1])


@pytest.mark.parametrize("limit", [0, 60])
def test_every_message_of_an_evaluation_has_the_classes_mixed_also_if_the_split_has_one_after_another(
    limit: int,
) -> None:
    labels = np.repeat(np.arange(3), 30)
    with closing(Loader(ArraySplit(random_images(90), labels), COLOUR, 15)) as loader:
        batches = [labels[indices] for indices in loader.sample(limit)]
    assert all(len(set(batch.tolist())) == 3 for batch in batches)
    assert max(int(np.bincount(batch).max()) for batch in batches) < 12


@pytest.mark.parametrize(
    ("limit", "most", "sizes"), [(0, 10, [8, 8, 7]), (20, 10, [10, 10]), (3, 10, [3]), (0, 99, [23])]
)
def test_a_large_evaluation_is_cut_into_parts_of_nearly_one_size(limit: int, most: int, sizes: list[int]) -> None:
    with closing(Loader(numbered(23), COLOUR, 4)) as loader:
        parts = loader.sample(limit, most)
        assert [len(part) for part in parts] == sizes
        assert np.array_equal(np.concatenate(parts), np.concatenate(loader.sample(limit)))


def test_kmeans_starts_from_distinct_rows_that_change_with_the_step() -> None:
    with closing(Loader(numbered(20), COLOUR, 16, seed=1)) as loader:
        rows = [loader.init_rows(step, 6, loader.batch_size) for step in range(50)]
        assert [r.tolist() for r in rows] == [
            loader.init_rows(step, 6, loader.batch_size).tolist() for step in range(50)
        ]
    for chosen in rows:
        assert len(set(chosen.tolist())) == 6
        assert all(0 <= row < 16 for row in chosen.tolist())
        assert chosen.dtype == np.int64
    assert len({tuple(r.tolist()) for r in rows}) == 50
    assert len(set(np.concatenate(rows).tolist())) == 16
    with closing(Loader(numbered(20), COLOUR, 16, seed=2)) as loader:
        assert loader.init_rows(0, 6, loader.batch_size).tolist() != rows[0].tolist()


def test_closing_lets_every_thread_go() -> None:
    before = set(threading.enumerate())
    loader = Loader(numbered(8), COLOUR, 4, workers=3)
    loader.batch(0)
    assert set(threading.enumerate()) > before
    loader.close()
    assert set(threading.enumerate()) == before
