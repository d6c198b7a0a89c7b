"""The description of a machine has everything that the last bits of a run may depend on."""

from __future__ import annotations

import json
import os
import platform

import numpy as np
import pytest

from adc_edge import __version__
from adc_edge.machine import description, processor


def test_versions_processor_and_cores_are_described() -> None:
    seen = description.describe_machine()
    assert seen["python"] == platform.python_version()
    assert seen["numpy"] == np.__version__
    assert seen["adc-edge"] == __version__
    assert seen["cores"] == os.cpu_count()
    assert seen["processor"]


def test_the_same_machine_is_described_alike_and_in_plain_values() -> None:
    assert json.loads(json.dumps(description.describe_machine(threads=4))) == description.describe_machine(threads=4)


def test_values_of_the_caller_are_added_and_replace_those_of_the_machine() -> None:
    seen = description.describe_machine(threads=4, device="cuda:0", cores=2)
    assert (seen["threads"], seen["device"], seen["cores"]) == (4, "cuda:0", 2)


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "_PACKAGES", ("numpy", "no-such-package-anywhere"))
    assert {"numpy"} == {"numpy", "no-such-package-anywhere"} & set(description.describe_machine())


X86 = "processor\t: 0\nmodel name\t: {0}\nflags\t\t: fpu sse2 {1}\n\nprocessor\t: 1\nmodel name\t: another\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name", "saturates"),
    [
        (X86.format("AMD EPYC 7763", "avx avx2"), "AMD EPYC 7763", True),
        (X86.format("Intel Xeon 8175M", "avx2 avx512f avx512bw"), "Intel Xeon 8175M", True),
        (X86.format("Intel Core i5-13500", "avx2 avx_vnni"), "Intel Core i5-13500", False),
        (X86.format("AMD EPYC 9454", "avx2 avx512f avx512_vnni"), "AMD EPYC 9454", False),
        (X86.format("Intel Xeon 8480C", "avx2 amx_int8"), "Intel Xeon 8480C", False),
        (X86.format("Intel Celeron N3350", "sse4_1"), "Intel Celeron N3350", True),
        (X86.format("AMD Phenom II", "sse2"), "AMD Phenom II", False),
        ("processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd0b\n", "Cortex-A76", False),
        ("", platform.machine(), False),
    ],
)
def test_the_processor_has_a_name_and_it_is_known_whether_its_8_bit_products_saturate(
    cpuinfo: str, name: str, saturates: bool
) -> None:
    assert processor.processor_name(cpuinfo) == name
    assert processor.int8_saturates(cpuinfo) is saturates
