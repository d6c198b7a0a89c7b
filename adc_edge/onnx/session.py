"""ONNX Runtime sessions, opened alike by all parts that run the bundle's graphs."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from adc_edge.machine.processor import int8_saturates, x86_flags
from adc_edge.machine.threads import thread_count

_ERRORS = 3  # of ONNX Runtime's levels: its warnings are about what is done on purpose


def session_options(threads: int = 0) -> ort.SessionOptions:
    """Return options of a quiet session with so many threads (0: all usable cores), which do not spin.

    Between two steps the shim and the network want the cores that spinning threads would burn. On a processor whose
    8-bit products saturate, ONNX Runtime multiplies in the slower way that is exact.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.log_severity_level = _ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if int8_saturates():  # ONNX Runtime has exact 8-bit products for AVX2; for SSE4.1 alone it must compute in FP32
        exact = "session.x64quantprecision" if "avx2" in x86_flags() else "session.disable_quant_qdq"
        options.add_session_config_entry(exact, "1")
    return options


def cpu_session(model: bytes | str) -> ort.InferenceSession:
    """Return a session on the CPU for a serialised graph or its path."""
    source = model if isinstance(model, bytes) else graph_source(model)
    return ort.InferenceSession(source, session_options(), providers=["CPUExecutionProvider"])


def graph_source(path: str) -> bytes | str:
    """Return what ONNX Runtime opens for the file at ``path``: its content if the name is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).read_bytes()
    return path
