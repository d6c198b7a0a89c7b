"""The operators that adc-edge writes, as the TensorRT releases of a Jetson take them, and the opsets of each release.

Source: ``docs/operators.md`` of onnx/onnx-tensorrt and, where its words leave a question, that project's importers, for
10.3 as of its GA release, for 10.16 as of 10.15, for 11.4 as of 11.2 (what NVIDIA's isaac_deploy_trt prints). Notes of
later releases name no operator below. The three take these operators alike. Others are refused, although TensorRT may
have them. Nothing here was run on TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from adc_edge.errors import SettingError

LINES = ("10.3", "10.16", "11.4")
MAX_TOPK = 3840  # NVIDIA's page of the TopK operator: k <= 3840; operators.md says "less than"
_OLDEST, _MIN_OPSET = "10.0", 9
_MAX_OPSETS = {"10.0": 20, "10.14": 23, "10.15": 24, "11.5": 25}  # highest opset from this release on

# Operators: types of inputs > types of outputs | attributes. A letter for each type: f FP32, h FP16, l INT64, i INT32,
# c INT8, o BOOL, u UINT8. "*": this input may repeat; "!": it must be an initializer; "a=1": the only value of a.
_TABLE = """
    Abs: fhil > fhil |
    Add Div Mul Sub: fhil fhil > fhil |
    ArgMin: fhil > l | axis keepdims select_last_index
    Cast: fhilou > fhilou | to
    Clip: fhil fhil fhil > fhil |
    Concat: fhilo* > fhilo | axis
    Conv: fh fh fh > fh | auto_pad dilations group kernel_shape pads strides
    DequantizeLinear: c fh! c! > fh | axis
    Equal Greater: fhil fhil > o |
    Expand: fhilo l > fhilo |
    Gather GatherElements: fhilo il > fhilo | axis
    Gelu: fh > fh | approximate
    LayerNormalization: fh fh fh > fh | axis epsilon stash_type
    MatMul Pow: fh fh > fh |
    QuantizeLinear: fh fh! c! > c | axis
    Range: fhil fhil fhil > fhil |
    ReduceMax ReduceMean ReduceSum: fhil l! > fhil | keepdims noop_with_empty_axes
    Reshape: fhilo l > fhilo | allowzero
    Shape: fhilo > l | end start
    Sigmoid: fh > fh |
    Slice: fhilo il il il il > fhilo |
    Softmax: fh > fh | axis
    Squeeze Unsqueeze: fhilo l! > fhilo |
    TopK: fhil l > fhil l | axis largest sorted=1
    Transpose: fhilo > fhilo | perm
    Where: o fhilo fhilo > fhilo |
"""


_ROWS = [row.partition(":") for row in _TABLE.strip().splitlines()]
SIGNATURES = {op: [part.split() for part in re.split("[>|]", text)] for ops, _, text in _ROWS for op in ops.split()}


class Fault(NamedTuple):
    """Why a graph does not fit: the node (or input, or initializer) and its operator, what is wrong, how to mend it."""

    node: str
    op: str
    what: str
    remedy: str


def opset_window_of(version: str) -> tuple[int, int]:
    """Return the lowest and highest opset of a version such as "10.3.0.26"; an unknown one counts as the newest known.

    Raises:
        SettingError: the version is older than 10.0, or no version.
    """
    if not re.match(r"\d+\.\d+(\.|$)", version) or _numbers(version) < _numbers(_OLDEST):
        raise SettingError(
            f"TensorRT {version}",
            f"TensorRT {_OLDEST} or later (checked for {', '.join(LINES)})",
            "use another engine (--engine onnxruntime), or a JetPack with a newer TensorRT",
        )
    reached = [opset for release, opset in _MAX_OPSETS.items() if _numbers(version) >= _numbers(release)]
    return _MIN_OPSET, max(reached)


def fits(report: Mapping[str, Sequence[Fault]]) -> tuple[str, ...]:
    """Return the releases that a report has no fault for."""
    return tuple(line for line, faults in report.items() if not faults)


def summary(report: Mapping[str, Sequence[Fault]]) -> str:
    """Return a report in one line: "TensorRT 10.3, 10.16" or "TensorRT 10.16; not 10.3: 2 faults, first: ..."."""
    parts = [f"TensorRT {', '.join(fits(report)) or 'none'}"]
    broken = [item for item in report.items() if item[1]]
    for faults, group in groupby(broken, key=lambda item: item[1]):
        node, op, what, _ = faults[0]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults, first"
        parts.append(f"not {', '.join(line for line, _ in group)}: {count}: {op} {node}: {what}")
    return "; ".join(parts)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
