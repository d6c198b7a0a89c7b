"""A bundle has the class names that it is given, or that its weights are known to have, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.torch import save_file

from adc_edge.errors import BundleError, DataError, SettingError
from adc_edge.export.build import ExportSettings, export_bundle
from adc_edge.export.classes import (
    CLASS_NAMES,
    check_number,
    names_of_weights,
    read_class_names,
)
from adc_edge.export.merge import merge_runs
from adc_edge.method.split import create_vit, load_vit
from adc_edge.storage.bundle import MANIFEST, Bundle, parse_manifest
from adc_edge.storage.halves import label_weights
from adc_edge.storage.run_dir import CLASSES

TINY = {"patch_size": 8, "img_size": 16, "embed_dim": 16, "num_heads": 2, "depth": 2}
MODEL = "vit_tiny_patch16_224"


@pytest.mark.slow
def test_names_given_at_the_export_stand_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("zebra\ncat\ndog\n")
    names = str(tmp_path / "names.txt")
    export_bundle(ExportSettings(MODEL, 1, tmp_path / "out", batch_size=4, model_args=TINY, class_names=names))
    manifest = Bundle.load(tmp_path / "out", ()).manifest
    assert (manifest.classes, manifest.class_names, manifest.classifier_kept) == (3, ["zebra", "cat", "dog"], False)


def test_a_bundle_without_names_reads_as_one_of_0_6(bundle_dir: Path) -> None:
    text = (bundle_dir / MANIFEST).read_bytes()
    assert not {"class_names", "classifier_kept"} & json.loads(text).keys()
    assert parse_manifest(text, "it").class_names == []


def test_more_names_than_outputs_are_a_damaged_manifest(bundle_dir: Path) -> None:
    text = json.loads((bundle_dir / MANIFEST).read_bytes()) | {"class_names": [str(n) for n in range(11)]}
    with pytest.raises(BundleError, match="11 class names for 10 outputs"):
        parse_manifest(json.dumps(text).encode(), "it")


@pytest.mark.parametrize(
    "content",
    ["cat\ndog\n", "\ufeffcat\r\ndog", ' ["cat", "dog"]', "cat\n dog \n\n"],
    ids=["text", "bom", "json", "blank"],
)
def test_a_file_of_names_is_text_or_a_json_list(tmp_path: Path, content: str) -> None:
    (tmp_path / "names").write_text(content, encoding="utf-8")
    assert read_class_names(str(tmp_path / "names")) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no list of names"),
        (b"[1, 2]", "no list of names"),
        (b'["cat"', "names"),
        (b"caf\xe9\n", "UTF-8"),
        (b"cat\n\ndog\n", "empty or there twice"),
        (b"cat\ncat\n", "there twice: cat"),
    ],
)
def test_a_file_that_is_no_list_of_names_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "names").write_bytes(content)
    with pytest.raises((SettingError, DataError)) as caught:
        read_class_names(str(tmp_path / "names"))
    assert words in str(caught.value)


def test_a_data_source_gives_its_names_unless_it_has_none(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {f"x_{s}": np.zeros((2, 4, 4), np.uint8) for s in ("train", "test")}
    arrays |= {f"y_{s}": np.array([0, 1]) for s in ("train", "test")}
    np.savez(tmp_path / "named.npz", **arrays, classes=["yak", "cat"])
    np.savez(tmp_path / "plain.npz", **arrays)
    assert read_class_names(f"npz:{tmp_path}/named.npz") == ["yak", "cat"]
    assert read_class_names("digits") == [str(digit) for digit in range(10)]
    with pytest.raises(DataError, match="has no class names"):
        read_class_names(f"npz:{tmp_path}/plain.npz")
    with pytest.raises(SettingError, match="no such file"):
        read_class_names(str(tmp_path / "absent.txt"))


def test_a_number_of_classes_that_differs_from_the_names_is_refused() -> None:
    assert check_number(["cat", "dog"], None) == check_number(["cat", "dog"], 2) == 2
    assert check_number([], 7) == 7
    with pytest.raises(SettingError, match="--num-classes 3 and 2 names"):
        check_number(["cat", "dog"], 3)


def test_imagenets_names_are_filled_in_for_a_kept_classifier_of_timms_hub_only(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.safetensors"
    save_file(create_vit(MODEL, TINY, None).state_dict(), path)
    assert names_of_weights(*load_vit(MODEL, TINY, 10, path), from_hub=True) == []
    kept, loaded = load_vit(MODEL, TINY, None, path)
    names = names_of_weights(kept, loaded, from_hub=True)
    assert (len(names), names[0], names[-1]) == (1000, "n01440764", "n15075141")
    assert names_of_weights(kept, loaded, from_hub=False) == []  # 1000 classes of anybody's
    assert read_class_names("imagenet-1k") == names
    kept.pretrained_cfg = {**kept.pretrained_cfg, "tag": "mine"}
    assert names_of_weights(kept, loaded, from_hub=True) == []


@pytest.mark.parametrize("names", [["a", "a", "b"], ["", "b", "c"], ["a", "b", "c", "d"]])
def test_names_in_a_files_metadata_are_checked(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "named.safetensors"
    save_file(create_vit(MODEL, TINY, 3).state_dict(), path, metadata={CLASS_NAMES: json.dumps(names)})
    with pytest.raises(DataError):
        names_of_weights(*load_vit(MODEL, TINY, None, path), from_hub=False)


@pytest.mark.parametrize(
    "text", ['{"0": "cat", "1": "dog"}', '{\n "0": "cat",\n "1": "dog"\n}', "[1, 2]", "[]", '["a"']
)
def test_json_that_is_no_list_of_names_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(SettingError):
        read_class_names(str(tmp_path / "names"))


def test_a_merged_checkpoint_carries_the_names_that_its_trainer_has_learned(bundle: Bundle, tmp_path: Path) -> None:
    from safetensors import safe_open

    for side, file in (("device", "trunk"), ("trainer", "head")):
        (tmp_path / side).mkdir()
        (tmp_path / side / MANIFEST).write_bytes((bundle.path / MANIFEST).read_bytes())
        weights = (bundle.path / f"{file}.safetensors").read_bytes()
        (tmp_path / side / f"{file}.safetensors").write_bytes(label_weights(weights, {7: 3}, 3))
    merged = tmp_path / "merged.safetensors"
    assert merge_runs(tmp_path / "device", tmp_path / "trainer", merged).class_names == []
    (tmp_path / "trainer" / CLASSES).write_bytes(msgspec.json.encode({"head": ["yak", "cat"]}))
    merge_runs(tmp_path / "device", tmp_path / "trainer", merged)
    with safe_open(merged, framework="numpy") as opened:
        assert json.loads(opened.metadata()[CLASS_NAMES]) == ["yak", "cat"]
    assert names_of_weights(*load_vit(MODEL, bundle.manifest.model_args, 10, merged), from_hub=False) == ["yak", "cat"]
    (tmp_path / "trainer" / CLASSES).write_bytes(msgspec.json.encode({"head": ["0", "1"], "positions": True}))
    assert merge_runs(tmp_path / "device", tmp_path / "trainer", merged).class_names == []
