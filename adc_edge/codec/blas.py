"""NumPy's matrix products on one thread.

The codec's matrices are small. A second thread saves milliseconds on an idle machine, but on a busy one the first
thread waits for it, up to a second for one product. With one thread the bytes do not depend on the number of cores.
"""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache  # once, because the search for libraries takes a millisecond
def limit_blas() -> None:
    """Limit NumPy's linear algebra to one thread, in the whole process and for good.

    OpenBLAS has no limit for a part of a program, and after the main thread has set one, other threads cannot.
    """
    import threadpoolctl  # `doctor` runs where it is missing

    for library in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
        if "torch" not in Path(library.filepath).parts:  # PyTorch's own computes the trunk
            library.set_num_threads(1)
