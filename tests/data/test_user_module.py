"""A user's own Python function as a data source: what it may return, and each failure by its name."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from adc_edge.data.sources import Dataset, load_dataset
from adc_edge.errors import DataError

HEAD = "import numpy as np\nfrom PIL import Image\n"
PAIRS = "[(np.full((2, 3, 3), n, np.uint8), n % 3) for n in range(9)]"
numbers = itertools.count()


def named(train: str, test: str = "None") -> str:
    """The text of a module whose splits have these classes."""
    return f"class Named(list): pass\ndef make():\n    train, test = Named({PAIRS}), Named({PAIRS})\n" + (
        f"    train.classes, test.classes = {train}, {test}\n    return train, test"
    )


def own_dataset(labels: str, classes: str) -> str:
    """The text of a module that returns a Dataset."""
    return f"""
from adc_edge.data.sources import ArraySplit, Dataset
x, y = np.stack([x for x, _ in {PAIRS}]), np.array([y for _, y in {PAIRS}])
def make(): return Dataset(ArraySplit(x, {labels}), ArraySplit(x, {labels}), {classes})"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, from which modules are imported; what was imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    return tmp_path


def opened(made: Path, body: str) -> Dataset:
    name = f"mydata{next(numbers)}"
    (made / f"{name}.py").write_text(f"{HEAD}\n{body}\n")
    return load_dataset(f"{name}:make")


@pytest.mark.parametrize(
    "body",
    [
        f"def make(): return {PAIRS}, {PAIRS}[:2]",
        f"def make(): return [[(Image.fromarray(x), np.int32(y)) for x, y in {PAIRS}], {PAIRS}[:2]]",
        f"""
class Lazy:
    labels, classes = [n % 3 for n in range(9)], ["a", "b", "c"]
    def __len__(self): return 9
    def __getitem__(self, n): return {PAIRS}[n]
def make(): return Lazy(), {PAIRS}[:2]""",
        f"""
from adc_edge.data.sources import ArraySplit, Dataset
x, y = np.stack([x for x, _ in {PAIRS}]), np.array([y for _, y in {PAIRS}])
def make(): return Dataset(ArraySplit(x, y), ArraySplit(x[:2], y[:2]), ["0", "1", "2"])""",
    ],
    ids=["arrays", "images", "lazy", "Dataset"],
)
def test_pairs_or_a_dataset_are_taken(made: Path, body: str) -> None:
    dataset = opened(made, body)
    assert dataset.train.labels.tolist() == [n % 3 for n in range(9)]
    assert dataset.test.labels.tolist() == [0, 1]
    assert len(dataset.classes) == 3
    image = np.asarray(dataset.train.image(4))
    assert image.shape == (2, 3, 3)
    assert (image == 4).all()


@pytest.mark.parametrize(
    "body",
    [
        named("np.array(['c', 'a', 'b'])", "['c', 'a', 'b']"),
        named("np.array([b'c', b'a', b'b'])"),
        named("{'a': 1, 'b': 2, 'c': 0}"),
        named("None", "('c', 'a', 'b')"),
        own_dataset("y", "np.array(['c', 'a', 'b'])"),
        own_dataset("y", "{'a': 1, 'b': 2, 'c': 0}"),
    ],
)
def test_class_names_may_be_an_array_or_a_mapping_to_labels(made: Path, body: str) -> None:
    dataset = opened(made, body)
    assert list(dataset.classes) == ["c", "a", "b"]
    assert dataset.named


def test_a_module_in_a_package_is_found(made: Path) -> None:
    (made / "mypkg").mkdir()
    (made / "mypkg" / "flowers.py").write_text(
        f"{HEAD}class Sets:\n    @staticmethod\n    def make(): return {PAIRS}, {PAIRS}\n"
    )
    assert len(load_dataset("mypkg.flowers:Sets.make").train.labels) == 9


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("make = 3", ["is of type int", "a function without arguments"]),
        ("def other(): pass", ["has no attribute 'make'"]),
        ("import nowhere_at_all", ["No module named 'nowhere_at_all'", "line 4"]),
        ("def make(", ["SyntaxError"]),
        ("def make(path): pass", ["make(path) takes arguments", "a function without arguments"]),
        ("def make():\n    return 1 / 0", ["ZeroDivisionError", "line 5", "mend that line"]),
        ("def make(): pass", ["returned is None", "a pair (train, test)"]),
        ("def make(): return 1, 2", ["train is of type int", "a sequence of (image, label)"]),
        ("def make(): return [1, 2], [3]", ["train is of type list"]),
        (f"def make(): return {PAIRS}, []", ["the test split is empty", "let make return images"]),
        ("def make(): return [('a.jpg', 0)], [('a.jpg', 0)]", ["train[0] is of type str", "a PIL image"]),
        ("def make(): return [(np.zeros((3, 8, 8)), 0)], []", ["an array float64 [3, 8, 8]", "uint8 [H, W]"]),
        (f"def make(): return [(x, 'cat') for x, _ in {PAIRS}], []", ["train[0] has the label 'cat'"]),
        (f"def make(): return [(x, 2**63) for x, _ in {PAIRS}], []", ["the label 9223372036854775808"]),
        (
            "from adc_edge.data.sources import Dataset\ndef make(): return Dataset([1], [2], [])",
            ["a Dataset whose split is of type list"],
        ),
        ("import sys\nsys.exit(0)", ["failed: SystemExit: 0", "line 5"]),
        ("import sys\ndef make():\n    sys.exit(0)", ["failed: SystemExit: 0", "line 6"]),
        (named("['a', 'b', 'c']", "['b', 'a', 'c']"), ["train has the classes a, b, c, test b, a, c"]),
        (named("{'a': 1, 'b': 2, 'c': 3}"), ["train.classes is {'a': 1", "with its label, from 0 on"]),
        (named("3"), ["train.classes is of type int", "a list of the names"]),
        (named("'abc'"), ["train.classes is of type str"]),
        (named("np.array([['a']])"), ["train.classes is an array <U1 [1, 1]"]),
        (own_dataset("y", "None"), ["Dataset.classes is None", "a list of the names"]),
        (own_dataset("y", "7"), ["Dataset.classes is of type int"]),
        (own_dataset("y[:, None]", "['0', '1', '2']"), ["its labels an array int64 [9, 1]"]),
        (f"def make(): return [(x, np.array([y])) for x, y in {PAIRS}], []", ["train[0] has the label array([0])"]),
    ],
)
def test_each_failure_is_told_with_what_came_and_what_is_expected(made: Path, body: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        opened(made, body)
    for word in words:
        assert word in str(caught.value)


def test_a_module_that_is_not_there_is_named(made: Path) -> None:
    with pytest.raises(DataError, match=r"no module 'foldr'\n[^$]*folder:PATH[^$]*current directory"):
        load_dataset("foldr:photos")
