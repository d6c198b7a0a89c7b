"""A process keeps the memory that it frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from adc_edge.edge_runtime.trunk.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults, peak = [], []
for turn in range(25):  # 40 MB, which glibc always maps
    start = resource.getrusage(resource.RUSAGE_SELF)
    large, small = torch.ones(10_000_000), torch.ones(1_000)
    del large
    end = resource.getrusage(resource.RUSAGE_SELF)
    faults.append(end.ru_minflt - start.ru_minflt)
    peak.append(end.ru_maxrss)
print(max(faults[-5:]), peak[-1] - peak[-6])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_a_process_that_keeps_freed_memory_soon_maps_no_page_twice_and_grows_no_further() -> None:
    found = {}
    for how in ("keep", "default"):
        done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
        found[how] = [int(number) for number in done.stdout.split()]
    assert found["keep"][0] < 100 < found["default"][0]
    assert found["keep"][1] < 1024  # KiB
