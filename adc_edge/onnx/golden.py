"""The golden pair: images in the bundle and the outputs of trunk + ADC for them, so that every device can check itself.

The images are smooth and unlike one another, so that no two are nearly tied in k-means: a flipped assignment is then a
fault and no rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from adc_edge.arrays import Float32, Int64, UInt8
from adc_edge.data.preprocessing import Preprocessing, normalise
from adc_edge.errors import BundleError, EngineError
from adc_edge.method.compressed import CompressedBatch, Compressor
from adc_edge.method.spec import TrunkSpec
from adc_edge.onnx.agreement import Agreement, agreement
from adc_edge.storage.bundle import GOLDEN, Bundle, Compute

GOLDEN_IMAGES, GOLDEN_CLUSTERS = 6, 3
# Limits by precision: least agreement of assignment and tokens, largest difference of activations. They have a margin
# to measured values (docs/models.md). `calibrate --max-drop` bounds int8; this limit only finds a wrong file.
GOLDEN_LIMITS: dict[Compute, Agreement] = {
    "fp32": Agreement(1.0, 0.95, 1e-3),  # tokens: a model may have near ties, and with random weights has many
    "fp16": Agreement(1.0, 0.80, 0.02),
    "int8": Agreement(0.5, 0.40, 0.60),
}
_REMEDY = "do not train with this engine here; try --engine onnxruntime, and report the board and its versions"


class Golden(NamedTuple):
    """Inputs, and the outputs of the exporting machine in fp32, without empty clusters."""

    pixels: UInt8  # [B, H, W, C]
    seeds: Int64  # [T], rows that start k-means, under the name of the ONNX input
    slots: int
    activations: Float32  # [T, k, D]
    assignment: Int64  # [B]
    tokens: Int64  # [T, k]

    @property
    def expected(self) -> CompressedBatch:
        """Return the outputs of the exporting machine."""
        return CompressedBatch(self.activations, self.assignment, self.tokens)

    def dump(self) -> bytes:
        """Return the content of golden.safetensors."""
        arrays = self._asdict() | {"slots": np.array([self.slots])}
        return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})


class GoldenResult(NamedTuple):
    """The agreement of an engine with the golden pair, and the limit that holds for its precision."""

    found: Agreement
    limit: Agreement
    compute: Compute

    @property
    def passed(self) -> bool:
        """Whether the limit is met; a difference of NaN (no cluster kept just the same tokens) meets it."""
        shares = self.found.assignment >= self.limit.assignment and self.found.tokens >= self.limit.tokens
        return shares and not self.found.difference > self.limit.difference

    def __str__(self) -> str:
        """Return the agreement in words."""
        return (
            f"the golden pair in {self.compute}: {self.found.assignment:.0%} of assignments and "
            f"{self.found.tokens:.0%} of tokens are the exporting machine's, activations differ by "
            f"{self.found.difference:.1e} of the largest"
        )


def golden_pixels(spec: TrunkSpec) -> UInt8:
    """Return images uint8 ``[B, H, W, C]``."""
    height, width = spec.image_size
    coarse = np.random.default_rng(0).integers(0, 256, (GOLDEN_IMAGES, 5, 5, spec.channels), np.uint8)
    planes = [
        [np.asarray(Image.fromarray(c[:, :, i]).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse]
        for i in range(spec.channels)
    ]
    return np.stack([np.stack(plane) for plane in planes], axis=-1)


def golden_images(pixels: UInt8, preprocessing: Preprocessing) -> Float32:
    """Return the images normalised, ``[B, C, H, W]``."""
    return np.stack([normalise(Image.fromarray(p[:, :, 0] if p.shape[2] == 1 else p), preprocessing) for p in pixels])


def read_golden(bundle: Bundle) -> Golden:
    """Return the bundle's pair.

    Raises:
        BundleError: the bundle has none (it was exported by an older version), or it is missing or changed.
    """
    if GOLDEN not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} has no golden pair", "a bundle of this version of adc-edge", "export it again"
        )
    try:
        arrays = load(bundle.file(GOLDEN).read_bytes())
        slots = int(arrays.pop("slots")[0])
        return Golden(slots=slots, **arrays)
    except (SafetensorError, TypeError, KeyError) as error:
        raise BundleError(f"{GOLDEN}: {error}", "a golden pair", "export the bundle again") from None


def run_golden(bundle: Bundle, engine: Compressor, compute: Compute = "fp32") -> GoldenResult:
    """Run the pair through an engine that has been entered; raises BundleError as ``read_golden`` does."""
    golden = read_golden(bundle)
    images = golden_images(golden.pixels, bundle.manifest.preprocessing)
    found = agreement(engine.compress(images, golden.seeds, golden.slots), golden.expected)
    return GoldenResult(found, GOLDEN_LIMITS[compute], compute)


def check_golden(bundle: Bundle, engine: Compressor, compute: Compute = "fp32", remedy: str = _REMEDY) -> Agreement:
    """Return the agreement with the pair of an engine that has been entered.

    Args:
        bundle: with the pair.
        engine: entered.
        compute: its precision, which sets the limits.
        remedy: the advice of the error.

    Raises:
        BundleError: see ``read_golden``.
        EngineError: the engine computes something else than the exporting machine did.
    """
    result = run_golden(bundle, engine, compute)
    if not result.passed:
        least = f"at least {result.limit.assignment:.0%} and {result.limit.tokens:.0%}"
        raise EngineError(str(result), f"{least}, at most {result.limit.difference:.0e} in {compute}", remedy)
    return result.found
