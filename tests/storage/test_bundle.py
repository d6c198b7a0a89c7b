"""The bundle on disk: what is accepted, and what each kind of damage is called."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adc_edge.data.preprocessing import Preprocessing
from adc_edge.errors import BundleError
from adc_edge.method.ratio import Ratio
from adc_edge.method.spec import TrunkSpec
from adc_edge.storage.bundle import CLIENT, HEAD, MANIFEST, TRUNK, Bundle, Manifest, parse_manifest

FILES = {CLIENT: b"a graph", TRUNK: b"the trunk's weights", HEAD: b"the head's weights"}


def manifest() -> Manifest:
    return Manifest(
        format=1,
        model="vit_tiny_patch16_224",
        model_args={"depth": 4},
        classes=10,
        split=2,
        depth=4,
        tokens=17,
        prefix=1,
        dim=32,
        trunk=TrunkSpec((16, 16), (4, 4), 3, 32, 2, 2, 128, position_tokens=17),
        preprocessing=Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic"),
        ratio=Ratio(xi=0.1),
        batch_size=64,
        precision="int8",
        opset=20,
        files={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
        versions={"adc-edge": "0.1.0"},
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    (path / MANIFEST).write_bytes(msgspec.json.encode(manifest()))
    return path


def edit(directory: Path, **changes: Any) -> None:
    values = json.loads((directory / MANIFEST).read_bytes())
    (directory / MANIFEST).write_text(json.dumps({**values, **changes}))


def test_a_whole_bundle_is_loaded_with_all_it_says(directory: Path) -> None:
    bundle = Bundle.load(directory, (CLIENT, TRUNK, HEAD))
    assert bundle.manifest == manifest()
    assert bundle.path == directory


def test_its_digest_is_the_manifests_so_it_covers_every_file(directory: Path) -> None:
    before = Bundle.load(directory, ()).digest
    assert before == hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    edit(directory, classes=11)
    assert Bundle.load(directory, ()).digest != before


def test_a_device_copy_may_lack_the_head(directory: Path) -> None:
    (directory / HEAD).unlink()
    Bundle.load(directory, (CLIENT, TRUNK))
    with pytest.raises(BundleError, match=r"head.safetensors is missing"):
        Bundle.load(directory, (HEAD,))


def test_a_file_that_the_manifest_does_not_list_is_missing(directory: Path) -> None:
    (directory / "extra.onnx").touch()
    with pytest.raises(BundleError, match=r"extra.onnx is missing"):
        Bundle.load(directory, ("extra.onnx",))


@pytest.mark.parametrize("content", [b"", b"a grapH", b"a graph "])
def test_a_changed_file_is_refused(directory: Path, content: bytes) -> None:
    (directory / CLIENT).write_bytes(content)
    with pytest.raises(BundleError, match=rf"client.onnx was changed or damaged[^$]*{manifest().files[CLIENT]}"):
        Bundle.load(directory, (CLIENT,))
    Bundle.load(directory, (TRUNK,))  # only what is needed is checked


def test_where_there_is_no_bundle_the_command_that_makes_one_is_shown(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(BundleError, match=r"no bundle at[^$]*No such file[^$]*adc-edge export --model"):
            Bundle.load(path, ())


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_format_is_refused_whatever_else_it_holds(directory: Path, version: int) -> None:
    (directory / MANIFEST).write_text(json.dumps({"format": version, "from": "the future"}))
    with pytest.raises(BundleError, match=rf"bundle format {version}[^$]*format 1[^$]*export it again"):
        Bundle.load(directory, ())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"garbage", b"[]", b"null", b"\xff\xfe", b'{"format": "1"}', b"{}", b'{"format": 1}']
)
def test_a_manifest_that_is_none_is_refused(directory: Path, content: bytes) -> None:
    (directory / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest.json: .*\n.*as `adc-edge export` writes it"):
        Bundle.load(directory, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"classes": "ten"},
        {"precision": "int5"},
        {"files": {CLIENT: 5}},
        {"preprocessing": {"size": [16, 16], "mean": [0.5], "std": [0.5], "interpolation": "magic"}},
        {"preprocessing": {"size": [16], "mean": [0.5], "std": [0.5], "interpolation": "bicubic"}},
        {"trunk": {"image_size": [16, 16]}},
    ],
)
def test_unknown_fields_and_wrong_values_are_refused(directory: Path, changes: dict[str, Any]) -> None:
    edit(directory, **changes)
    with pytest.raises(BundleError, match=r"manifest.json: "):
        Bundle.load(directory, ())


def test_unknown_fields_further_down_are_refused() -> None:
    values = msgspec.to_builtins(manifest())
    for part in ("trunk", "preprocessing"):
        changed = {**values, part: {**values[part], "surprise": 1}}
        with pytest.raises(BundleError, match="surprise"):
            parse_manifest(msgspec.json.encode(changed), "here")


def test_a_manifest_survives_writing_and_reading() -> None:
    assert parse_manifest(msgspec.json.encode(manifest()), "here") == manifest()
