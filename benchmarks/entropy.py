"""Redundancy in encoded activations: the size that Zstandard reaches, and the limit of an ideal coder.

    python benchmarks/entropy.py --data npz:cifar10_subset.npz --weights deit_tiny.safetensors

Compression is lossless, so accuracy stays the same. Sizes are relative to the encoder's own. *As sent*: Zstandard on
the bytes of the wire. *A byte a value*: Zstandard on the same values unpacked. *Entropy*: the bytes of an ideal coder
that knows the frequency of each level.
"""

from __future__ import annotations

import numpy as np
import torch
import zstandard
from harness import Result, arguments, compare, show

from adc_edge.arrays import Float32
from adc_edge.codec.casts import unpack_bits
from adc_edge.codec.precision import Precision, encode, encoded_bytes, integer_bits
from adc_edge.data.loader import Loader
from adc_edge.data.sources import load_dataset
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.split_model import computing, make_split_model

_LEVEL = 19  # of Zstandard: close to its strongest, regardless of time


def results(x: Float32, precision: Precision) -> list[Result]:
    body = encode(x, precision)
    size, bits = encoded_bytes(x.shape, precision), integer_bits(precision)
    found = [("as sent", float(len(_squeezed(body))))]
    if bits:
        head = size - bits * -(-x.size // 8)  # exponent and scales
        codes = np.frombuffer(body, np.uint8)[head:]
        values = codes if bits == 8 else unpack_bits(codes.reshape(bits, -1), x.size)
        shares = np.bincount(values) / x.size
        logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
        ideal = -float(shares @ logs) * x.size / 8
        found += [("a byte a value", head + len(_squeezed(values.data))), ("entropy", head + ideal)]
    return [compare(f"{precision}, {name}", made / 1e3, size / 1e3, "kB") for name, made in found]


def _squeezed(data: memoryview) -> bytes:
    return zstandard.ZstdCompressor(_LEVEL).compress(data)


def main() -> None:
    parser = arguments("Zstandard and entropy of encoded activations v their encoder's own size.")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--weights", help="weights file (safetensors); random ones without")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    study = Study(args.data, weights=args.weights, model_args={"img_size": args.img_size})
    data = load_dataset(args.data)
    parts, preprocessing = make_split_model(study, parse_setting("none"), 0, len(data.classes))
    loader = Loader(data.train, preprocessing, args.batch_size)
    with torch.no_grad(), computing(study):
        x = parts.trunk(torch.from_numpy(loader.batch(0).images)).numpy()
    loader.close()
    found: list[Result] = []
    for precision in ("fp32", "fp16", "int8", "int4", "int3", "int2", "pca4", "pca1", "pca0.25"):
        found += results(x, precision)
    show(f"Zstandard {_LEVEL}, {args.img_size} px, B={args.batch_size}", found, args.json)


if __name__ == "__main__":
    main()
