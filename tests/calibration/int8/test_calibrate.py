"""`adc-edge calibrate`: what it writes and tells, what it refuses, and (slow) DeiT-Tiny on real images."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from adc_edge.arrays import Labels
from adc_edge.calibration.int8 import calibrate as module
from adc_edge.calibration.int8 import compare
from adc_edge.calibration.int8.calibrate import CalibrationSettings, calibrate_bundle
from adc_edge.calibration.int8.graph import QDQ, zero_points
from adc_edge.calibration.int8.report import calibration_notes
from adc_edge.cli import main
from adc_edge.data.listing import FileSplit
from adc_edge.data.loader import Loader
from adc_edge.data.sources import Dataset, load_dataset
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.errors import AdcEdgeError, BundleError, DataError, EngineError, SettingError
from adc_edge.export.build import ExportSettings as ExportSettings
from adc_edge.export.build import export_bundle
from adc_edge.files import write_atomic
from adc_edge.method.ratio import Ratio
from adc_edge.method.split import head_from_manifest
from adc_edge.onnx.agreement import Agreement
from adc_edge.onnx.golden import GOLDEN_LIMITS
from adc_edge.onnx.tensorrt_lint import Fault
from adc_edge.storage.bundle import CALIBRATION, CLIENT_INT8, HEAD, Bundle, Calibration

TRAIN, TEST = 24, 40


@pytest.fixture
def mine(bundle_dir: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle, to write in."""
    return Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))


def pictures(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Smooth ones, uint8 ``[n, 16, 16, 3]``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, 3, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((16, 16), Image.Resampling.BICUBIC)) for each in coarse])


def write_npz(path: Path, labels: Labels) -> str:
    train = np.arange(TRAIN) % 10
    np.savez(path, x_train=pictures(TRAIN, 1), y_train=train, x_test=pictures(TEST, 2), y_test=labels)
    return f"npz:{path}"


def predictions(bundle_dir: Path, client: Path, source: str) -> Labels:
    """The class that trunk and head name for each test image, by the engine of the device."""
    bundle = Bundle.load(bundle_dir, (HEAD,))
    head = head_from_manifest(bundle.manifest).eval()
    head.vit.load_state_dict(load_file(bundle_dir / HEAD))
    images = Loader(load_dataset(source).test, bundle.manifest.preprocessing, 1).plain(np.arange(TEST)).images
    with OnnxEngine(client, bundle.manifest.trunk) as engine, torch.inference_mode():
        found: Labels = head(torch.from_numpy(engine.full_output(images))).argmax(dim=1).numpy()
    return found


@pytest.fixture
def known(mine: Path, tmp_path: Path) -> str:
    """Images whose labels are what the float model says, as if it had learned them."""
    source = write_npz(tmp_path / "images.npz", np.arange(TEST) % 10)
    return write_npz(tmp_path / "images.npz", predictions(mine, mine / "client.onnx", source))


@pytest.fixture
def clean_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's directory of temporary files, empty and our own."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_pair_is_written_beside_an_untouched_bundle(
    mine: Path, known: str, clean_temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, digest = files(mine), Bundle.load(mine, ()).digest
    with caplog.at_level("INFO", "adc_edge"):
        report = calibrate_bundle(CalibrationSettings(mine, known, images=16))
    after = files(mine)
    assert after.keys() - before.keys() == {CLIENT_INT8, CALIBRATION}
    assert {name: after[name] for name in before} == before
    assert not list(clean_temporary.iterdir())
    bundle = Bundle.load(mine, ())
    assert bundle.digest == digest
    assert bundle.client("int8") == mine / CLIENT_INT8
    kept = msgspec.json.decode(after[CALIBRATION], type=Calibration)
    assert (kept.method, kept.images, kept.report) == ("percentile", 16, msgspec.to_builtins(report))
    assert json.loads(after[CALIBRATION])["report"]["quality"]["speed"]["int8_ms"] > 0
    assert any("16 images" in line for line in caplog.messages)


def test_the_report_tells_what_the_devices_engine_finds(mine: Path, known: str) -> None:
    report = calibrate_bundle(CalibrationSettings(mine, known, images=16, percentile=90.0, max_drop=100.0))
    accuracy = report.quality.accuracy
    assert accuracy is not None
    labels = load_dataset(known).test.labels
    same = float((predictions(mine, mine / CLIENT_INT8, known) == labels).mean())
    assert (accuracy.images, accuracy.top1, accuracy.judged) == (TEST, 1.0, True)
    assert accuracy.top1_int8 == accuracy.agreement == pytest.approx(same)
    assert accuracy.drop_points == pytest.approx(100 * (1 - same))
    assert report.zero_points == [0]
    assert report.tensorrt == ["10.3", "10.16", "11.4"]
    assert report.int8_bytes == (mine / CLIENT_INT8).stat().st_size
    names = [tensor.name for tensor in report.quality.tensors]
    assert {*report.quantised, "hidden_1", "hidden_1, CLS", "scores", "activations", "activations, CLS"} == {*names}
    noise = [tensor.sqnr_db for tensor in report.quality.tensors]
    assert noise == sorted(noise, key=lambda sqnr: sqnr or np.inf)
    assert report.quality.choice is not None
    assert 0 <= report.quality.choice.tokens <= 1


@pytest.mark.parametrize("saturates", [True, False])
def test_a_processor_whose_int8_products_saturate_is_named(
    mine: Path, known: str, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "int8_saturates", lambda: saturates)
    report = calibrate_bundle(CalibrationSettings(mine, known, images=8, max_drop=100.0))
    told = "\n".join(calibration_notes(report))
    assert ("its time here does not count" in told) == saturates == report.quality.speed.slow_products


def test_the_same_seed_gives_the_same_file_and_another_one_replaces_it(mine: Path, known: str) -> None:
    made = []
    for seed in (0, 0, 1):
        calibrate_bundle(CalibrationSettings(mine, known, images=8, seed=seed))
        assert Bundle.load(mine, ()).client("int8")
        made.append((mine / CLIENT_INT8).read_bytes())
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_the_other_methods_make_a_graph_too(mine: Path, known: str, method: Any) -> None:
    report = calibrate_bundle(CalibrationSettings(mine, known, images=8, method=method, max_drop=100))
    assert (report.method, report.percentile) == (method, None)
    assert not any(zero.any() for zero in zero_points(onnx.load(mine / CLIENT_INT8)))


def test_without_a_head_only_agreement_is_told(mine: Path, known: str) -> None:
    (mine / HEAD).unlink()
    result = CliRunner().invoke(main, ["calibrate", "--bundle", str(mine), "--data", known, "--images", "8"])
    assert result.exit_code == 0, result.output
    assert "no head.safetensors here" in result.output
    assert "top-1 of" not in result.output
    assert "the same cluster" in result.output
    assert Bundle.load(mine, ()).client("int8")


def test_a_head_that_knows_nothing_is_not_judged(mine: Path, tmp_path: Path) -> None:
    source = write_npz(tmp_path / "images.npz", np.full(TEST, 3))
    seen = int((predictions(mine, mine / "client.onnx", source) == 3).sum())
    assert seen < TEST / 4, "choose a class that this head rarely names"
    report = calibrate_bundle(CalibrationSettings(mine, source, images=8, max_drop=0.0))
    assert report.quality.accuracy is not None
    assert not report.quality.accuracy.judged


def test_a_drop_beyond_the_limit_writes_nothing(mine: Path, known: str) -> None:
    before = files(mine)
    with pytest.raises(EngineError, match=r"top-1 falls by [^$]*at most 1 \(--max-drop\)[^$]*nothing was written"):
        calibrate_bundle(CalibrationSettings(mine, known, images=8, percentile=50.0))
    assert files(mine) == before


def test_a_graph_far_from_the_golden_pair_is_not_written(
    mine: Path, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(mine)
    monkeypatch.setitem(GOLDEN_LIMITS, "int8", Agreement(assignment=0.0, tokens=1.01, difference=1.0))
    with pytest.raises(EngineError, match=r"the golden pair in int8[^$]*nothing was written"):
        calibrate_bundle(CalibrationSettings(mine, known, images=8))
    assert files(mine) == before


def test_a_graph_that_lost_a_tensorrt_is_not_written(mine: Path, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(model: onnx.ModelProto) -> dict[str, list[Fault]]:
        broken = [Fault(n.name, n.op_type, "made up", "none") for n in model.graph.node if n.op_type in QDQ]
        return {"10.3": broken, "11.4": []}

    before = files(mine)
    monkeypatch.setattr(module, "lint", strict)
    with pytest.raises(EngineError, match=r"not 10.3: 18 faults[^$]*TensorRT 10.3 too"):
        calibrate_bundle(CalibrationSettings(mine, known, images=8))
    assert files(mine) == before


def test_a_kill_between_both_files_leaves_a_bundle_that_says_so(
    mine: Path, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_at_the_second(path: Path, data: bytes) -> None:
        if path.name == CALIBRATION:
            raise KeyboardInterrupt
        write_atomic(path, data)

    monkeypatch.setattr(module, "write_atomic", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        calibrate_bundle(CalibrationSettings(mine, known, images=8))
    with pytest.raises(BundleError, match=r"has no calibration.json[^$]*adc-edge calibrate"):
        Bundle.load(mine, ()).client("int8")
    monkeypatch.undo()
    calibrate_bundle(CalibrationSettings(mine, known, images=8))
    Bundle.load(mine, ()).client("int8")
    monkeypatch.setattr(module, "write_atomic", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        calibrate_bundle(CalibrationSettings(mine, known, images=8, seed=5))
    with pytest.raises(BundleError, match=r"was changed or damaged[^$]*adc-edge calibrate"):
        Bundle.load(mine, ()).client("int8")


def test_broken_images_are_replaced_and_counted(mine: Path, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", train=24, broken=2)
    report = calibrate_bundle(CalibrationSettings(mine, source, images=20))
    assert report.broken <= 2
    with pytest.raises(DataError, match=r"2 of \d+ training images are broken|1 of \d+ training"):
        calibrate_bundle(CalibrationSettings(mine, source, images=24))


def write_folder(root: Path, train: int, broken: int) -> str:
    for part, count in (("train", train), ("test", 6)):
        (root / part / "a").mkdir(parents=True)
        for number, picture in enumerate(pictures(count, 3)):
            path = root / part / "a" / f"{number:02d}.png"
            Image.fromarray(picture).save(path)
            if part == "train" and number < broken:
                path.write_bytes(b"no picture")
    return f"folder:{root}"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"images": 7}, SettingError, r"--images 7[^$]*at least 8"),
        ({"images": TRAIN + 1}, DataError, r"24 training images[^$]*--images 24"),
        ({"method": "minmax", "percentile": 99.0}, SettingError, r"--percentile 99.0 with --method minmax"),
        ({"data": "folder:/nowhere"}, DataError, r"/nowhere is no directory"),
        ({"data": "nothing"}, DataError, r"data source 'nothing'[^$]*digits, folder:PATH"),
        ({"bundle": Path("/nowhere")}, BundleError, r"no bundle at"),
    ],
)
def test_wrong_use_is_one_clear_error(
    mine: Path, tmp_path: Path, options: dict[str, Any], error: type[AdcEdgeError], words: str
) -> None:
    before = files(mine)
    source = write_npz(tmp_path / "images.npz", np.arange(TEST) % 10)
    with pytest.raises(error, match=words) as caught:
        calibrate_bundle(msgspec.structs.replace(CalibrationSettings(mine, source, images=8), **options))
    assert caught.value.exit_code == 2
    assert files(mine) == before


def test_labels_outside_of_the_bundles_classes_are_refused(mine: Path, tmp_path: Path) -> None:
    source = write_npz(tmp_path / "images.npz", np.full(TEST, 10))
    with pytest.raises(DataError, match=r"labels from 0 to 10[^$]*10 classes"):
        calibrate_bundle(CalibrationSettings(mine, source, images=8))


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_that_are_all_broken_are_refused(mine: Path, tmp_path: Path, part: str) -> None:
    source = write_folder(tmp_path / "photos", train=24, broken=0)
    for path in (tmp_path / "photos" / part).rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken"):
        calibrate_bundle(CalibrationSettings(mine, source, images=16))
    assert not (mine / CLIENT_INT8).exists()


@pytest.mark.parametrize("name", ["client.onnx", HEAD])
def test_a_changed_bundle_is_refused(mine: Path, tmp_path: Path, name: str) -> None:
    (mine / name).write_bytes((mine / name).read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=rf"{name} was changed or damaged"):
        calibrate_bundle(CalibrationSettings(mine, write_npz(tmp_path / "images.npz", np.arange(TEST) % 10), images=8))


def test_the_command_prints_tables_and_the_next_one(mine: Path, known: str) -> None:
    arguments = ["calibrate", "--bundle", str(mine), "--data", known, "--images", "8", "--method", "minmax"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    for words in ("top-1 of 40 images", "the same class", "forward only", "dB", "--trunk frozen --compute int8"):
        assert words in result.output, words


def imagenet(shared: Path, root: Path, seed: int) -> Dataset:
    """64 images to calibrate on and 236 to judge by, with the WordNet ids that the bundle's classes have."""
    with tarfile.open(shared / "imagenet_sample_300.tar") as archive:
        archive.extractall(root, filter="data")
    paths = sorted(path for path in root.rglob("*") if path.is_file())  # 7_n01514668_cock.JPEG
    classes = sorted({path.name.split("_")[1] for path in paths})
    order = np.random.default_rng(seed).permutation(len(paths))
    splits = [[paths[index] for index in part] for part in (np.sort(order[:64]), np.sort(order[64:]))]
    labels = [np.array([classes.index(path.name.split("_")[1]) for path in split]) for split in splits]
    return Dataset(FileSplit(splits[0], labels[0]), FileSplit(splits[1], labels[1]), classes)


@pytest.mark.slow
@pytest.mark.timed
def test_deit_tiny_in_int8_names_the_same_classes_and_is_faster(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = shared_data / "deit_tiny_patch16_224.safetensors"
    bundle = tmp_path / "out"
    export_bundle(
        ExportSettings("deit_tiny_patch16_224", 6, bundle, Ratio(xi=0.1), weights=weights, class_names="imagenet-1k")
    )
    sample = imagenet(shared_data, tmp_path / "imagenet", seed=1)
    monkeypatch.setattr(module, "load_dataset", lambda source: sample)  # a folder's train split has every class
    report = calibrate_bundle(CalibrationSettings(bundle, "sample", images=64, eval_images=0))
    accuracy, tensors = report.quality.accuracy, {tensor.name: tensor.sqnr_db for tensor in report.quality.tensors}
    print(report)
    assert accuracy is not None
    assert accuracy.images == 236
    assert accuracy.judged
    assert accuracy.top1 > 0.75
    assert accuracy.agreement >= 0.97
    assert accuracy.drop_points <= 1
    assert report.quality.speed.slow_products or report.quality.speed.ratio < 0.9
    assert report.zero_points == [0]
    assert "10.3" in report.tensorrt
    assert report.int8_bytes < 0.5 * report.client_bytes
    assert (tensors["activations, CLS"] or np.inf) > 30
