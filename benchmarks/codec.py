"""Time to encode and decode 1, 5 and 20 MB v one NumPy copy, and v the forward of the trunk that computed them.

    python benchmarks/codec.py --json out/codec.json
    python benchmarks/codec.py --busy 2
    python benchmarks/codec.py --grids

The tensors have the spectrum and the unlike rows of DeiT-T's activations and gradients at 224 px, without its weights;
those of ``--grids`` have tokens like their neighbours as well, which dct makes use of and pca does not.
The forward is that of DeiT-T's first six blocks for the same images. Everything here has one thread.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from harness import Result, arguments, compare, medians_ms, show

from adc_edge.arrays import Float32
from adc_edge.codec.precision import PRECISIONS, Precision, decode, encode, encoded_bytes

IMAGES = {1: 7, 5: 33, 20: 132}  # by megabytes
TOKENS, WIDTH, SIZE, SPLIT = 197, 192, 224, 6
Cases = dict[str, Callable[[], object]]


def deit_like(images: int, slope: float, spread: float, width: int = WIDTH) -> Float32:
    """Rows in unlike directions and of unlike sizes, ``[images, TOKENS, width]``.

    Args:
        images: number of images.
        slope: component k has ``k**-slope`` of the first one's variance, and a little less.
        spread: standard deviation of the logarithm of a row's energy, in bits.
        width: D.
    """
    rng, k = np.random.default_rng(0), np.arange(1, width + 1)
    rows = images * TOKENS
    deviations = np.sqrt(k**-slope * 2.0 ** (-k / 128))
    basis = np.linalg.qr(rng.standard_normal((width, width)))[0]
    x = rng.standard_normal((rows, width)) * deviations @ basis + 0.3 * rng.standard_normal(width) * deviations.mean()
    x *= 2.0 ** (spread / 2 * rng.standard_normal((rows, 1)))
    tensor: Float32 = x.astype(np.float32).reshape(images, TOKENS, width)
    return tensor


def activations(images: int, width: int = WIDTH) -> Float32:
    return deit_like(images, slope=0.55, spread=0.4, width=width)


def gradients(images: int) -> Float32:
    return deit_like(images, slope=1.0, spread=3.9) * np.float32(1e-5)


def grids(images: int, side: int = 7, width: int = WIDTH) -> Float32:
    """Tokens like their neighbours, ``[images, side * side + 1, width]``, as at 112 px."""
    rng = np.random.default_rng(0)
    x = deit_like(images, slope=0.55, spread=0.4, width=width)[:, : side * side + 1]
    patches = x[:, 1:].reshape(images, side, side, width)
    for axis in (1, 2):
        patches = 0.8 * patches + 0.6 * np.roll(patches, 1, axis)
    shared = 0.6 * rng.standard_normal((1, side * side + 1, 8)) @ rng.standard_normal((8, width)) / np.sqrt(8)
    tensor: Float32 = np.concatenate((x[:, :1], patches.reshape(images, -1, width)), axis=1) + shared
    return tensor.astype(np.float32)


def error(x: Float32, precision: Precision) -> float:
    """Squared error as a share of the squares around the rows' mean."""
    around = x - x.mean(axis=(0, 1))
    return float(np.square(decode(encode(x, precision), x.shape, precision) - x).sum() / np.square(around).sum())


def against_components(rounds: int) -> list[Result]:
    """Times and errors of dct v pca of the same bytes, on 64 images at 112 px."""
    x, results = grids(64), []
    for bits in ("2", "1", "0.5", "0.25"):
        dct, pca = _named(f"dct{bits}"), _named(f"pca{bits}")
        ms = medians_ms(cases_of(x, dct) | cases_of(x, pca), rounds)
        for way in ("encode", "decode"):
            results.append(compare(f"[64, 50, 192]: {way} {dct} v {pca}", ms[f"{way} {dct}"], ms[f"{way} {pca}"], "ms"))
        results.append(compare(f"[64, 50, 192]: error of {dct} v {pca}", 100 * error(x, dct), 100 * error(x, pca), "%"))
    return results


def _named(name: str) -> Precision:
    return next(precision for precision in PRECISIONS if precision == name)


def cases_of(x: Float32, precision: Precision) -> Cases:
    data = encode(x, precision)
    return {
        f"encode {precision}": lambda: encode(x, precision),
        f"decode {precision}": lambda: decode(data, x.shape, precision),
    }


def against_copy(megabytes: int, rounds: int) -> list[Result]:
    x = activations(IMAGES[megabytes])
    cases: Cases = {"copy": x.copy}
    for precision in PRECISIONS:
        cases |= cases_of(x, precision)
    ms = medians_ms(cases, max(5, rounds // megabytes))
    return [
        compare(f"{megabytes} MB: {name} v x.copy()", ms[name], ms["copy"], "ms") for name in cases if name != "copy"
    ]


def against_forward(megabytes: int, rounds: int) -> list[Result]:
    """Codec of the default precisions on device and trainer v the trunk's forward; nothing where PyTorch is missing."""
    images = IMAGES[megabytes]
    try:
        cases: Cases = {"forward": forward_of(images)}
    except ImportError:
        return []
    cases |= cases_of(activations(images), "pca1") | cases_of(gradients(images), "pca0.25")
    ms = medians_ms(cases, max(3, rounds // (8 * megabytes)), warm_up=1)
    device, trainer = ms["encode pca1"] + ms["decode pca0.25"], ms["decode pca1"] + ms["encode pca0.25"]
    return [
        compare(f"{images} images: codec of the device v the trunk's forward", device, ms["forward"], "ms"),
        compare(f"{images} images: codec of the trainer v the trunk's forward", trainer, ms["forward"], "ms"),
    ]


def forward_of(images: int) -> Callable[[], object]:
    import torch

    from adc_edge.method.split import create_vit, split_vit

    torch.set_num_threads(1)
    trunk, _ = split_vit(create_vit("deit_tiny_patch16_224", {"img_size": SIZE}, None), SPLIT)
    x = torch.randn(images, 3, SIZE, SIZE)

    def forward() -> None:
        with torch.inference_mode():
            trunk(x)

    return forward


def spin() -> None:
    while True:
        pass


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """Load so many cores with processes that never wait."""
    processes = [multiprocessing.Process(target=spin, daemon=True) for _ in range(cores)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def main() -> None:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=100, help="rounds at 1 MB; fewer at more")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="cores to load with other processes")
    parser.add_argument("--grids", action="store_true", help="dct v pca alone, on grids of tokens")
    args = parser.parse_args()
    if args.grids:
        with busy(args.busy):
            show("dct v pca, one thread", against_components(args.rounds), args.json)
        return
    with busy(args.busy):
        results = [one for megabytes in IMAGES for one in against_copy(megabytes, args.rounds)]
        results += [one for megabytes in IMAGES for one in against_forward(megabytes, args.rounds)]
    shape = (IMAGES[1], TOKENS, WIDTH)
    fp32 = encoded_bytes(shape, "fp32")
    results += [compare(f"size of {one} v fp32", encoded_bytes(shape, one), fp32, "bytes") for one in PRECISIONS]
    show(f"codec, one thread, {args.busy} cores busy with other processes", results, args.json)


if __name__ == "__main__":
    main()
