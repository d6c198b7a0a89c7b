"""The processor: its name, its instruction sets, and whether its 8-bit products saturate."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_EXACT_INT8 = {"avx_vnni", "avx512_vnni", "amx_int8"}  # flags of x86 processors whose 8-bit products do not saturate
SLOW_INT8 = "int8 by exact but slower products, since this processor has no VNNI and its fast ones saturate"
_ARM_CORES = {  # (CPU implementer, CPU part) of /proc/cpuinfo, where ARM has no model name
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}


def processor_name(cpuinfo: str | None = None) -> str:
    """Return the model of the first core that names one, or the architecture.

    Args:
        cpuinfo: text of /proc/cpuinfo; None reads that file.
    """
    fields = _first_fields(cpuinfo)
    core = fields.get("CPU implementer", ""), fields.get("CPU part", "")
    return fields.get("model name") or _ARM_CORES.get(core) or platform.machine()


def int8_saturates(cpuinfo: str | None = None) -> bool:
    """Return whether the fast 8-bit products of this processor saturate, so that their sums are wrong.

    x86 with SSE4.1 or AVX2 adds pairs of products in 16 bits. VNNI and AMX add them in 32 bits, as ARM does.

    Args:
        cpuinfo: text of /proc/cpuinfo; None reads that file.
    """
    flags = x86_flags(cpuinfo)
    return bool(flags & {"sse4_1", "avx2"}) and not flags & _EXACT_INT8


def x86_flags(cpuinfo: str | None = None) -> set[str]:
    """Return the instruction sets of an x86 processor, as Linux names them; nothing elsewhere."""
    return set(_first_fields(cpuinfo).get("flags", "").split())


def _first_fields(cpuinfo: str | None) -> dict[str, str]:
    """Return the first value of each field; a board may mix two kinds of cores."""
    if cpuinfo is None:
        try:
            cpuinfo = _CPUINFO.read_text(errors="replace")
        except OSError:
            cpuinfo = ""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields
