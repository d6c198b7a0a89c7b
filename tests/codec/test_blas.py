"""The codec's matrix products: on one thread, and then as many as before."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import threadpoolctl

from adc_edge.codec.blas import one_blas_thread
from adc_edge.codec.precision import decode, encode


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if "numpy" in library["filepath"]}


def test_products_have_one_thread_until_the_last_user_leaves() -> None:
    left, entered = threading.Event(), threading.Event()

    def other() -> None:
        with one_blas_thread():
            entered.set()
            left.wait(30)

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(30)
        with pytest.raises(ValueError, match="broken"), one_blas_thread():
            raise ValueError("broken")
        assert blas_threads() <= {1}
        left.set()
        thread.join()
        assert blas_threads() == before


def test_a_message_has_the_same_bytes_whatever_the_number_of_threads() -> None:
    x = np.random.default_rng(0).standard_normal((3000, 96)).astype(np.float32)
    found = []
    for threads in (1, 2, 4):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            data = bytes(encode(x, "pca1"))
            found.append((data, decode(data, x.shape, "pca1").tobytes()))
    assert found[0] == found[1] == found[2]
