"""ONNX Runtime's execution providers: the one asked for runs the graph, or an error is raised. Never a silent fallback.

ONNX Runtime itself falls back to the CPU with a warning when a provider's libraries do not load. The CPU was tested.
CUDA, TensorRT and XNNPACK were tested only where they are missing.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

import onnxruntime as ort

from adc_edge.defaults import Provider as Provider
from adc_edge.errors import SettingError
from adc_edge.machine.threads import thread_count
from adc_edge.onnx.session import graph_source, session_options

NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
_GET: dict[Provider, str] = {
    "cuda": "install an onnxruntime-gpu that fits the board's CUDA (docs/boards.md)",
    "tensorrt": "install an onnxruntime-gpu that was built with TensorRT (docs/boards.md), or use --engine tensorrt",
    "xnnpack": "build ONNX Runtime with --use_xnnpack; its published wheels for Linux have none",
}


class Opened(NamedTuple):
    """A session, the provider that runs it, and why it was chosen."""

    session: ort.InferenceSession
    provider: Provider
    reason: str


def available() -> list[Provider]:
    """Return the providers that ONNX Runtime was built with; their libraries load only when a session is made."""
    built = set(ort.get_available_providers())
    return [provider for provider, name in NAMES.items() if name in built]


def open_session(path: str, provider: Provider | Literal["auto"] = "cpu", threads: int = 0) -> Opened:
    """Return a session on ``provider``; ``auto`` takes CUDA if it works here, and the CPU otherwise, and says why.

    Args:
        path: the ONNX file.
        provider: by name, or auto.
        threads: for work on the CPU; 0: all usable cores.

    Raises:
        SettingError: this ONNX Runtime lacks the provider, or it does not load here.
    """
    if provider != "auto":
        return Opened(_open(path, provider, threads), provider, "as asked for")
    why = "no CUDA in this ONNX Runtime"
    if "cuda" in available():  # never TensorRT, which builds for minutes, nor XNNPACK, which takes few of our operators
        try:
            return Opened(_open(path, "cuda", threads), "cuda", "it is here")
        except SettingError as error:
            why = error.received
    return Opened(_open(path, "cpu", threads), "cpu", why)


def _open(path: str, provider: Provider, threads: int) -> ort.InferenceSession:
    name = NAMES[provider]
    if provider not in available():
        raise _missing(provider, f"this ONNX Runtime {ort.__version__} was built without {name}")
    options = session_options(1 if provider == "xnnpack" else threads)  # XNNPACK has a pool of its own
    if provider in ("cuda", "tensorrt"):
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # in TF32 the scores of a batch cluster otherwise
    wanted = [(name, _options(provider, threads))] + ([] if provider == "cpu" else [(NAMES["cpu"], {})])
    session = ort.InferenceSession(graph_source(path), options, providers=wanted)
    session.disable_fallback()
    if session.get_providers()[0] != name:
        raise _missing(provider, f"{name} does not load here: ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def _options(provider: Provider, threads: int) -> dict[str, Any]:
    if provider == "xnnpack":
        return {"intra_op_num_threads": str(thread_count(threads))}
    return {"use_tf32": "0"} if provider == "cuda" else {}


def _missing(provider: Provider, what: str) -> SettingError:
    return SettingError(
        f"--provider {provider}: {what}",
        f"one that works here: {', '.join(available())}",
        _GET.get(provider, "reinstall onnxruntime"),
    )
