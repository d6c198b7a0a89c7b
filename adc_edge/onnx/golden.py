"""The golden pair: a few images, and what trunk + ADC makes of them, in the bundle. Every device can check itself.

The images are smooth and unlike one another, so that no two are nearly tied in k-means: a flipped assignment is then a
fault and no rounding.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from adc_edge.arrays import Float32
from adc_edge.data.preprocessing import Preprocessing, normalise
from adc_edge.errors import BundleError, EngineError
from adc_edge.method.compressed import CompressedBatch
from adc_edge.method.spec import TrunkSpec
from adc_edge.onnx.agreement import Agreement, agreement
from adc_edge.storage.bundle import GOLDEN, Bundle, Compute

GOLDEN_IMAGES, GOLDEN_CLUSTERS = 6, 3
# What an engine may differ by, for what it computes in: assignment and tokens at least, activations at most. With
# margin to what was measured (docs/models.md); int8 is bounded by `calibrate --max-drop`, here only a wrong file shows.
GOLDEN_LIMITS: dict[Compute, Agreement] = {
    "fp32": Agreement(1.0, 0.95, 1e-3),  # tokens: a model may have near ties, and with random weights has many
    "fp16": Agreement(1.0, 0.80, 0.02),
    "int8": Agreement(0.5, 0.40, 0.60),
}


class Golden(NamedTuple):
    """Inputs, and the exporting machine's outputs in fp32 without empty clusters."""

    pixels: npt.NDArray[np.uint8]  # [B, H, W, C]
    seeds: npt.NDArray[np.int64]  # [T], rows that start k-means, under the name of the ONNX input
    slots: int
    activations: Float32  # [T, k, D]
    assignment: npt.NDArray[np.int64]  # [B]
    tokens: npt.NDArray[np.int64]  # [T, k]

    def images(self, preprocessing: Preprocessing) -> Float32:
        """Ready for the engine, ``[B, C, H, W]``."""
        return golden_images(self.pixels, preprocessing)

    @property
    def expected(self) -> CompressedBatch:
        """The exporting machine's outputs."""
        return CompressedBatch(self.activations, self.assignment, self.tokens)

    def dump(self) -> bytes:
        """As golden.safetensors."""
        arrays = self._asdict() | {"slots": np.array([self.slots])}
        return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})


class _Engine(Protocol):
    def compress(self, images: Float32, init_rows: npt.NDArray[np.int64], slots: int) -> CompressedBatch: ...


def golden_pixels(spec: TrunkSpec) -> npt.NDArray[np.uint8]:
    """Images uint8 ``[B, H, W, C]``."""
    height, width = spec.image_size
    coarse = np.random.default_rng(0).integers(0, 256, (GOLDEN_IMAGES, 5, 5, spec.channels), np.uint8)
    planes = [
        [np.asarray(Image.fromarray(c[:, :, i]).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse]
        for i in range(spec.channels)
    ]
    return np.stack([np.stack(plane) for plane in planes], axis=-1)


def golden_images(pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> Float32:
    """Normalised ``[B, C, H, W]``."""
    return np.stack([normalise(Image.fromarray(p[:, :, 0] if p.shape[2] == 1 else p), preprocessing) for p in pixels])


def read_golden(bundle: Bundle) -> Golden:
    """The bundle's pair.

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


def golden_agreement(bundle: Bundle, engine: _Engine) -> Agreement:
    """What an engine that has been entered makes of the pair; raises BundleError as ``read_golden`` does."""
    golden = read_golden(bundle)
    return agreement(
        engine.compress(golden.images(bundle.manifest.preprocessing), golden.seeds, golden.slots), golden.expected
    )


def meets(found: Agreement, limit: Agreement) -> bool:
    """Whether an agreement is within a limit; a difference of NaN (no cluster kept just the same tokens) is."""
    shares = found.assignment >= limit.assignment and found.tokens >= limit.tokens
    return shares and not found.difference > limit.difference


def check_golden(bundle: Bundle, engine: _Engine, compute: Compute = "fp32") -> Agreement:
    """Run the pair through an engine that has been entered.

    Raises:
        BundleError: see ``read_golden``.
        EngineError: the engine computes something else than the exporting machine did.
    """
    found = golden_agreement(bundle, engine)
    limit = GOLDEN_LIMITS[compute]
    if not meets(found, limit):
        raise EngineError(
            f"the golden pair: {found.assignment:.0%} of assignments and {found.tokens:.0%} of tokens are the "
            f"exporting machine's, activations differ by {found.difference:.1e} of the largest",
            f"at least {limit.assignment:.0%} and {limit.tokens:.0%}, at most {limit.difference:.0e} in {compute}",
            "do not train with this engine here; try --engine onnxruntime, and report the board and its versions",
        )
    return found
