"""Share of images whose class is the same in split inference, in each precision, and by the whole model.

    python benchmarks/infer_agreement.py --bundle out --images photos

The bundle needs its whole model (`export --whole`). Each image is a message of its own, with all tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from adc_edge.codec.precision import PRECISIONS, decode, encode
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.infer.images import listed_files, read_picture
from adc_edge.edge_runtime.infer.models import LocalModel
from adc_edge.method.split import head_from_manifest
from adc_edge.storage.bundle import HEAD, WHOLE, Bundle


@torch.no_grad()
def main() -> None:
    """Print a line for each precision: bytes of a message, images with the same class, largest difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    arguments = parser.parse_args()
    bundle = Bundle.load(arguments.bundle, (HEAD,))
    found = [read_picture(file, bundle.manifest.preprocessing).pixels for file in listed_files([arguments.images])]
    pixels = [image[None] for image in found if image is not None]
    local = LocalModel(bundle.file(WHOLE))
    expected = [local.logits(image)[0] for image in pixels]
    head = head_from_manifest(bundle.manifest).eval()
    head.vit.load_state_dict(load_file(bundle.path / HEAD))
    with OnnxEngine(bundle.client("fp32"), bundle.manifest.trunk) as engine:
        outputs = [engine.full_output(image) for image in pixels]
    for precision in PRECISIONS:
        bodies = [encode(z, precision) for z in outputs]
        received = [torch.from_numpy(decode(b, z.shape, precision)) for b, z in zip(bodies, outputs, strict=True)]
        logits = [head(z).numpy()[0] for z in received]
        same = np.mean([a.argmax() == b.argmax() for a, b in zip(logits, expected, strict=True)])
        worst = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(logits, expected, strict=True))
        print(
            f"{precision:10} {bodies[0].nbytes:8,} bytes  {same:7.1%} the same class  {worst:.1e} of the largest logit"
        )


if __name__ == "__main__":
    main()
