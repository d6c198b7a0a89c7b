"""The codec's matrix products have one thread."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys
import numpy as np, threadpoolctl
from adc_edge.codec.precision import decode, encode
x = np.random.default_rng(0).standard_normal((3000, 96)).astype(np.float32)
data = encode(x, "pca1")
assert {found["num_threads"] for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"} == {1}
sys.stdout.buffer.write(bytes(data) + decode(data, x.shape, "pca1").tobytes())
"""


def test_a_message_has_the_same_bytes_whatever_the_number_of_threads() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for threads in ("1", "4")
    ]
    assert len(found[0]) > 3000 * 96 * 4
    assert found[0] == found[1]
