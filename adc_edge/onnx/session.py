"""How ONNX Runtime is opened, by all who run the bundle's graphs."""

from __future__ import annotations

import onnxruntime as ort

_ERRORS = 3  # of ONNX Runtime's levels: its warnings are about what is done on purpose


def session_options(threads: int = 0) -> ort.SessionOptions:
    """Quiet, with so many threads (0: ONNX Runtime's choice), which do not spin.

    Between two steps the shim and the network want the cores that spinning threads would burn.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def cpu_session(model: bytes | str) -> ort.InferenceSession:
    """A session on the CPU, of a serialised graph or its path."""
    return ort.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
