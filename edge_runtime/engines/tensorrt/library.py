"""TensorRT's Python module, imported only when it is asked for, and the logger that takes its messages.

Written to the API that TensorRT 10.3, 10.16 and 11.4 share; never run on a GPU. A contract test
(tests/edge_runtime/engines/tensorrt/test_contract.py) holds the names to all three. It knows what an object is by the
name of its variable: builder, network, parser, config, profile, timing_cache, plan, runtime, engine, context, refitter,
prototype, tensor, fault, logger.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from typing import Any

from adc_edge.errors import SettingError

_log = logging.getLogger(__name__)


def load_tensorrt() -> Any:
    """The module; raises SettingError with the command that brings it."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise SettingError(
            f"--engine tensorrt: TensorRT cannot be imported ({error})",
            "TensorRT 10 or 11 with its Python module",
            "on a Jetson: sudo apt install python3-libnvinfer (JetPack's images have it; a virtual environment sees it "
            "with --system-site-packages); on x86: pip install 'adc-edge[tensorrt]'",
        ) from None


def make_logger(trt: Any) -> Any:
    """Return TensorRT's logger: it logs warnings and errors, each text once, and keeps the latter as ``errors``.

    It must outlive every object that was made with it.
    """

    class _Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self._said: set[str] = set()

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(msg)
            elif severity != trt.ILogger.WARNING:
                return
            if msg not in self._said:
                self._said.add(msg)
                with contextlib.suppress(Exception):  # an exception would cross C++ that allows none: abort
                    _log.warning(f"TensorRT: {msg}")

    return _Logger()


def why(logger: Any) -> str:
    """The errors since the last question, as the tail of a sentence."""
    errors, logger.errors = logger.errors, []
    return f": {'; '.join(errors[-3:])}" if errors else ""
