"""The exported bundle that both sides load: manifest, ONNX graphs, weights. Nothing in it is ever unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from adc_edge.codec.precision import Precision
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.defaults import Compute as Compute
from adc_edge.errors import BundleError
from adc_edge.files import sha256
from adc_edge.method.ratio import Ratio
from adc_edge.method.spec import TrunkSpec

BUNDLE_FORMAT = 1
MANIFEST = "manifest.json"
CLIENT = "client.onnx"
CLIENT_FP16 = "client.fp16.onnx"  # `export --fp16`: weights in fp16 under the same names; ADC in fp32
CLIENT_BARE = "client.fp16.bare.onnx"  # `export --tensorrt`: the same without weights, which are all inputs
CLIENT_INT8 = "client.int8.onnx"  # `calibrate`, with CALIBRATION beside it
CALIBRATION = "calibration.json"
WHOLE = "model.onnx"  # `export --whole`: trunk and head as one graph, for `infer` without a trainer
WHOLE_INPUT, WHOLE_OUTPUT = "images", "logits"
GOLDEN = "golden.safetensors"  # images, and the output that the device must compute from them (`golden.py`)
TRUNK = "trunk.safetensors"
HEAD = "head.safetensors"
OUTPUTS = ["activations", "assignment", "tokens", "counts"]  # every client graph has these; it may have more
ENGINES = "engines"  # TensorRT engines, for one GPU and one TensorRT version: built on the device, never copied


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Contents of a bundle, and the default settings of `serve`.

    ``tokens`` is N, ``dim`` D and ``prefix`` P of the paper; ``depth`` is the number of all blocks. Fields with a
    default are left out of the JSON where they have it.
    """

    format: int
    model: str
    model_args: dict[str, Any]
    classes: int
    split: int
    depth: int
    tokens: int
    prefix: int
    dim: int
    trunk: TrunkSpec
    preprocessing: Preprocessing
    ratio: Ratio
    batch_size: int
    precision: Precision
    opset: int
    files: dict[str, str]
    versions: dict[str, str]
    gradient_precision: Precision | None = None  # None means ``precision``; bundles of 0.5 and older have None
    class_names: list[str] = []  # of the head's first outputs, at most ``classes``; the trainer's run learns the others
    classifier_kept: bool = False  # it came with the weights, so its outputs have an order, named or not


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """calibration.json: output and quality of `calibrate`. The manifest, and so the bundle's digest, is unchanged."""

    format: int
    client: str  # SHA-256 of the client.onnx that was calibrated
    int8: str  # SHA-256 of client.int8.onnx
    method: str
    images: int
    report: dict[str, Any]


class Bundle(msgspec.Struct, frozen=True):
    """A loaded and verified bundle; ``digest`` names it on the wire."""

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def load(cls, path: Path, need: tuple[str, ...]) -> Bundle:
        """Read the manifest and check the digest of each file in ``need``.

        Raises:
            BundleError: there is no bundle, its format is unknown, or a file is missing or changed.
        """
        if is_run(path):
            raise BundleError(
                f"{path} is the directory of a run",
                "a directory made by `adc-edge export`",
                "name the bundle of that run",
            )
        text = _read(path / MANIFEST)
        manifest = parse_manifest(text, str(path / MANIFEST))
        for name in need:
            _check(path / name, manifest.files.get(name))
        return cls(path, manifest, sha256(path / MANIFEST))

    def file(self, name: str) -> Path:
        """Return the verified path of a file of the manifest; raises BundleError if it is missing or changed."""
        _check(self.path / name, self.manifest.files.get(name))
        return self.path / name

    def client(self, compute: Compute) -> Path:
        """Return the verified path of the client graph that computes in ``compute``.

        Raises:
            BundleError: the graph is absent, missing or changed, or was calibrated from another client.onnx.
        """
        if compute == "int8":
            return self._int8()
        name = CLIENT if compute == "fp32" else CLIENT_FP16
        if compute == "fp16" and name not in self.manifest.files:
            raise BundleError(
                f"{self.path} has no {name}",
                "a bundle with a graph in fp16",
                "export it again with --tensorrt for --engine tensorrt, with --fp16 for ONNX Runtime",
            )
        return self.file(name)

    def _int8(self) -> Path:
        try:
            calibration = msgspec.json.decode((self.path / CALIBRATION).read_bytes(), type=Calibration)
        except FileNotFoundError:
            raise BundleError(
                f"{self.path} has no {CALIBRATION}", "a calibrated bundle", "adc-edge calibrate --bundle DIR --data SRC"
            ) from None
        except msgspec.DecodeError as error:
            raise BundleError(
                f"{CALIBRATION}: {error}", "a file as `adc-edge calibrate` wrote it", _CALIBRATE
            ) from None
        if calibration.format != BUNDLE_FORMAT or calibration.client != self.manifest.files.get(CLIENT):
            raise BundleError(f"{CALIBRATION} belongs to another bundle", f"one of this {CLIENT}", _CALIBRATE)
        _check(self.path / CLIENT_INT8, calibration.int8, _CALIBRATE)
        return self.path / CLIENT_INT8


_CALIBRATE = "calibrate it again: adc-edge calibrate --bundle DIR --data SRC"


def is_run(path: Path) -> bool:
    """Return whether ``path`` is the directory of a run (`run_dir.py`), which has a manifest too."""
    return (path / "settings.json").exists() and not (path / CLIENT).exists()


class _Format(msgspec.Struct):
    format: int


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Parse a manifest; raises BundleError on another format version or unreadable text."""
    try:
        found = msgspec.json.decode(text, type=_Format).format
        if found != BUNDLE_FORMAT:
            raise BundleError(
                f"{where} has bundle format {found}", f"format {BUNDLE_FORMAT}", "export it again with this adc-edge"
            )
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{where}: {error}", "a manifest as `adc-edge export` writes it", "export it again") from None
    if len(manifest.class_names) > manifest.classes:
        names = f"{len(manifest.class_names)} class names for {manifest.classes} outputs"
        raise BundleError(f"{where}: {names}", "at most one for each output", "export it again")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"no bundle at {path.parent} ({error.strerror}: {path.name})",
            "a directory made by `adc-edge export`",
            "adc-edge export --model deit_tiny_patch16_224 --split 6 -o DIR",
        ) from None


def _check(path: Path, expected: str | None, remedy: str = "copy or export the bundle again") -> None:
    if expected is None or not path.is_file():
        raise BundleError(f"{path} is missing", "every file that the manifest lists", remedy)
    if sha256(path) != expected:
        raise BundleError(
            f"{path} was changed or damaged: its SHA-256 differs from the manifest", f"SHA-256 {expected}", remedy
        )
