"""Time to encode and decode 1 MB of float32, compared with one NumPy copy of it, and the size of the result.

    python benchmarks/codec.py --json out/codec.json

The codec uses one thread.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from harness import Result, arguments, compare, medians_ms, show

from adc_edge.arrays import Float32
from adc_edge.codec.precision import PRECISIONS, Precision, decode, encode, encoded_bytes

SHAPE = (195, 7, 192)  # 1 MB: clusters of seven tokens


def cases_of(x: Float32, precision: Precision) -> dict[str, Callable[[], object]]:
    data = encode(x, precision)
    return {
        f"encode {precision}": lambda: encode(x, precision),
        f"decode {precision}": lambda: decode(data, x.shape, precision),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    cases: dict[str, Callable[[], object]] = {"copy": x.copy}
    for precision in PRECISIONS:
        cases |= cases_of(x, precision)
    ms = medians_ms(cases, args.rounds, warm_up=10)
    results: list[Result] = [
        compare(f"{name} v x.copy()", ms[name], ms["copy"], "ms") for name in cases if name != "copy"
    ]
    results += [
        compare(f"size of {precision} v fp32", encoded_bytes(SHAPE, precision), x.nbytes, "bytes")
        for precision in PRECISIONS
    ]
    show(f"codec, 1 MB of float32, one thread, median of {args.rounds}", results, args.json)


if __name__ == "__main__":
    main()
