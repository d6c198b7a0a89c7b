"""Options with which ONNX Runtime opens the bundle's graphs."""

from __future__ import annotations

import onnxruntime as ort

from adc_edge.machine import int8_saturates

_ERRORS = 3  # ONNX Runtime's log level; its warnings are about what is done on purpose


def session_options(threads: int = 0) -> ort.SessionOptions:
    """Return quiet options with this many threads (0: ONNX Runtime's choice), which do not spin.

    Between two steps the shim and the network want the cores that spinning threads would burn. Where fused INT8
    products saturate, an INT8 graph is opened without them: the products are exact, in FP32, and slower.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if int8_saturates():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def cpu_session(model: bytes | str) -> ort.InferenceSession:
    """Open a serialised graph, or the file at a path, on the CPU."""
    return ort.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
