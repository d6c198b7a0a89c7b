"""NumPy's matrix products on one thread, while the codec works.

The codec's matrices are small. A second thread saves milliseconds on an idle machine, but on a busy one the first
thread waits for it, up to a second for one product.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_lock = threading.Lock()
_inside = 0  # callers within ``one_blas_thread``
_before: list[int] = []  # the libraries' threads without them


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit NumPy's linear algebra to one thread, in the whole process, until the last caller leaves."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside
    with _lock:
        if not _inside:
            _before[:] = [library.get_num_threads() for library in _libraries()]
            _set([1] * len(_before))
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if not _inside:
            _set(_before)


def _set(threads: list[int]) -> None:
    for library, number in zip(_libraries(), threads, strict=True):
        if library.get_num_threads() != number:
            library.set_num_threads(number)


@functools.cache  # the search for libraries takes a millisecond
def _libraries() -> list[Any]:
    """The linear algebra that came with NumPy, or all that is loaded; never PyTorch's own beside NumPy's."""
    import threadpoolctl  # `doctor` runs where it is missing

    found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    home = Path(np.__file__).parent
    own = [one for one in found if Path(one.filepath).is_relative_to(home) or f"{home.name}.libs" in one.filepath]
    return own or found
