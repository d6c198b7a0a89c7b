"""What TensorRT takes of ONNX: opsets, operators, types and restrictions, for each line that a Jetson runs.

Taken from the table ``docs/operators.md`` of the project onnx/onnx-tensorrt and, where its words leave a question, from
that project's importers:

- 10.3: the file as of the 10.3 GA release (its heading still says 10.0).
- 10.16: the file as of 10.15; the release notes of 10.16 name no operator of ONNX.
- 11.4: the file as of 11.2, not itself but as NVIDIA's isaac_deploy_trt prints it; the notes of 11.4 name no operator.
  That it still ends at opset 24 follows from the notes of 11.5, which add opset 25.

The files of 10.16, 11.3 and 11.4 themselves could not be had, nor the notes of 11.3, nor the files between 10.3 and
10.15: for these the opset window is the one that is certain, maybe too narrow. Nothing here was run on TensorRT.

Not in these tables: ranks of pooling and convolution, recurrent layers beyond two attributes, shapes of loops, and what
a GPU lacks (FP8, FP4, BF16).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from adc_edge.errors import SettingError

LINES = ("10.3", "10.16", "11.4")
_OLDEST, _NEVER = "10.0", "99.0"
_MIN_OPSET = 9
_MAX_OPSETS = {"10.0": 20, "10.14": 23, "10.15": 24, "11.5": 25}  # from then on; 10.14 took Attention, of opset 23

MAX_TOPK = 3840  # NVIDIA's page of the TopK operator: k <= 3840; operators.md says "less than"

# A letter for each type: f FP32, h FP16, b BF16, e FP8 (E4M3), x FP4 (E2M1), l INT64, i INT32, c INT8, n INT4,
# o BOOL, u UINT8. INT8 and the narrower are for quantised values, UINT8 for inputs and outputs of the network.
NATIVE = "fhbexlicno"
_OPS = {
    "f": "STFT",
    "fh": "BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign",
    "fhb": """
        Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Conv ConvTranspose Cos Cosh CumSum
        DFT Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization GRU
        HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LayerNormalization LeakyRelu Log
        LogSoftmax LRN LSTM LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization ParametricSoftplus Pow PRelu
        QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal
        Resize RotaryEmbedding Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan
        Tanh ThresholdedRelu Upsample
    """,
    "fhbce": "Attention",
    "fhbi": "TensorScatter",
    "fhbil": """
        Abs Add ArgMax ArgMin Clip DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod
        Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK
    """,  # Clip: the table says floats; the importers of 10.3 and 10.15 take INT32 and INT64 too
    "fhbilc": "Gelu",
    "fhbile": "Mean",
    "fhbilo": """
        Concat ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape
        ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where
    """,
    "fhbilou": "Cast CastLike",
    "cen": "DequantizeLinear",
    "o": "And Not Or Xor",
    NATIVE: "Constant",  # read like an initializer; the operator that takes it is held to its own types
}
_NEW = {  # by release; all other operators of the table are in all lines
    "10.4": "BlackmanWindow HammingWindow HannWindow",
    "10.5": "STFT",
    "10.14": "Attention",
    "10.15": "RMSNormalization RotaryEmbedding TensorScatter",
    "11.0": "Swish",
    "11.2": "DFT",
}
# TensorRT's own operators, which it knows in ONNX's domain and in OWN_DOMAIN: only that they exist is checked.
OWN_DOMAIN = "trt"
_OWN = {
    "10.0": "TRT_FP8QuantizeLinear TRT_FP8DequantizeLinear TRT_INT4QuantizeLinear TRT_INT4DequantizeLinear",
    "10.15": "TRT_FP4DynamicQuantize TRT_DynamicQuantize TRT_BlockQuantize TRT_BlockDequantize TRT_QuantizedAttention",
    "10.16": "DistCollective",
    "11.0": "TRT_Attention TRT_MoE TRT_KVCacheUpdate",
}
_WIDENED = {  # types that came later: from which release at the latest
    "ConstantOfShape": ("10.15", "exn"),
    "DequantizeLinear": ("10.8", "x"),
    "GridSample": ("11.2", "b"),
    "Pow": ("10.15", "il"),
    "STFT": ("11.2", "hb"),
}
# Which of ONNX's type parameters the types above speak of, where it is not that of the first input. Values of others
# (indices, shapes, conditions) need only be native.
_SUBJECTS = {
    "T": "Where",
    "T1 T2": "Attention Cast CastLike EyeLike",
    "T2": "BlackmanWindow ConstantOfShape HammingWindow HannWindow",
    "T3": "OneHot",
    "T V": "RMSNormalization",
    "V": "If Loop",
}
# TensorRT has these two, but the size of what they give is known only once they have run: no fixed buffers.
DATA_DEPENDENT = ("NonMaxSuppression", "NonZero")


def _by_op(table: Mapping[str, str]) -> dict[str, str]:
    return {op: key for key, ops in table.items() for op in ops.split()}


_TYPES, _SINCE, _OWN_SINCE = _by_op(_OPS), _by_op(_NEW), _by_op(_OWN)
SUBJECTS = {op: tuple(parameters.split()) for op, parameters in _by_op(_SUBJECTS).items()}


class ConstantInput(NamedTuple):
    """An input that must be an initializer."""

    position: int
    name: str
    folded: str = _NEVER  # from this release on it may also be computed from constants and static shapes
    free: str = _NEVER  # from this release on it may be anything
    zero: bool = False  # it must be 0


CONSTANT_INPUTS: dict[str, tuple[ConstantInput, ...]] = {
    **{op: (ConstantInput(1, "axes"),) for op in _TYPES if op.startswith("Reduce")},
    "CumSum": (ConstantInput(1, "axis", folded="10.15"),),
    "DFT": (ConstantInput(2, "axis", folded=_OLDEST),),
    "DequantizeLinear": (ConstantInput(2, "zero point", zero=True),),
    "Dropout": (ConstantInput(2, "training_mode", zero=True),),
    "OneHot": (ConstantInput(1, "depth", folded=_OLDEST),),
    "Pad": (ConstantInput(3, "axes", free="10.4"),),
    "QuantizeLinear": (ConstantInput(2, "zero point", zero=True),),
    "STFT": (ConstantInput(1, "frame_step"), ConstantInput(2, "window")),
    "Squeeze": (ConstantInput(1, "axes", folded="10.7"),),
    "Unsqueeze": (ConstantInput(1, "axes", folded=_OLDEST),),
}


class Attribute(NamedTuple):
    """What an attribute may be where it is given; of a list, each element."""

    name: str
    allowed: tuple[object, ...]  # none: it must not be there
    until: str = _NEVER  # the release that dropped the restriction


_DILATIONS, _NORMS = Attribute("dilations", (1,)), Attribute("p", (1, 2))
_TRANSFORMS = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_ATTRIBUTES: dict[str, tuple[Attribute, ...]] = {
    "Attention": (
        Attribute("softcap", (0.0,)),
        Attribute("qk_matmul_output_mode", (0,)),
        Attribute("softmax_precision", ()),
    ),
    "AveragePool": (_DILATIONS,),
    "BatchNormalization": (Attribute("training_mode", (0,)),),
    "Constant": (Attribute("sparse_value", ()), Attribute("value_string", ()), Attribute("value_strings", ())),
    "LSTM": (Attribute("input_forget", (0,)), Attribute("layout", (0,))),
    "LpNormalization": (_NORMS,),
    "LpPool": (_NORMS, _DILATIONS),
    "MaxPool": (_DILATIONS,),
    "Resize": (
        Attribute("coordinate_transformation_mode", _TRANSFORMS),
        Attribute("mode", ("nearest", "linear", "cubic")),  # cubic: not in the table, but in the importers
        Attribute("nearest_mode", ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
        Attribute("keep_aspect_ratio_policy", ("stretch",)),
        Attribute("antialias", (0,)),
    ),
    "ScatterND": (Attribute("reduction", (), until="10.9"), Attribute("reduction", ("none",))),
    "TensorScatter": (Attribute("axis", (-2, 2)), Attribute("mode", ("linear",))),
    "TopK": (Attribute("sorted", (1,)),),
}
_MOST_INPUTS = {"Attention": 4}  # no keys and values of the past
_MOST_OUTPUTS = {"Attention": 1, "BatchNormalization": 1, "LayerNormalization": 1, "MaxPool": 1}
_RANKS = {"Attention": (4,), "GridSample": (4,), "TensorScatter": (4,)}  # of the first input
_RANKS_LATER = {"GridSample": ("11.2", (4, 5))}


class Fault(NamedTuple):
    """Why a graph does not fit: the node (or input, or initializer) and its operator, what is wrong, how to mend it."""

    node: str
    op: str
    what: str
    remedy: str


def opset_window(line: str) -> tuple[int, int]:
    """Lowest and highest opset that a line takes.

    Raises:
        SettingError: it is none of ``LINES``.
    """
    check_lines([line])
    return opset_window_of(line)


def opset_window_of(version: str) -> tuple[int, int]:
    """The same for a version as TensorRT names it, such as "10.3.0.26"; one yet unknown counts as the newest known.

    Raises:
        SettingError: it is older than 10.0, or no version.
    """
    if not re.match(r"\d+\.\d+(\.|$)", version) or not reached(version, _OLDEST):
        raise SettingError(
            f"TensorRT {version}",
            f"TensorRT {_OLDEST} or later (checked for {', '.join(LINES)})",
            "use another engine (--engine onnxruntime), or a JetPack with a newer TensorRT",
        )
    return _MIN_OPSET, max(opset for release, opset in _MAX_OPSETS.items() if reached(version, release))


def check_lines(lines: Sequence[str]) -> None:
    """Raise a SettingError for what is none of ``LINES``."""
    unknown = [line for line in lines if line not in LINES]
    if unknown:
        raise SettingError(f"TensorRT {', '.join(unknown)}", f"some of {', '.join(LINES)}", "name one of these")


def types_of(op: str, line: str) -> str | None:
    """The letters of the types that an operator of ONNX takes in a line; None where the line does not have it."""
    if op not in _TYPES or not reached(line, _SINCE.get(op, _OLDEST)):
        return None
    release, more = _WIDENED.get(op, (_NEVER, ""))
    return _TYPES[op] + (more if reached(line, release) else "")


def is_own(op: str, line: str) -> bool:
    """Whether an operator is one that TensorRT adds to ONNX's."""
    return reached(line, _OWN_SINCE.get(op, _NEVER))


def first_release(op: str) -> str | None:
    """The release that brought an operator which not all lines have; None where no release has it."""
    return _SINCE.get(op) or _OWN_SINCE.get(op)


def wrong_attributes(op: str, attributes: Mapping[str, object], line: str) -> Iterator[tuple[str, str]]:
    """What is wrong about a node's attributes, and how to mend it; each once."""
    rules = [rule for rule in _ATTRIBUTES.get(op, ()) if not reached(line, rule.until)]
    narrowest = {rule.name: rule.allowed for rule in reversed(rules) if rule.name in attributes}  # it stands first
    for name, allowed in narrowest.items():
        value = attributes[name]
        if not allowed:
            yield f"{name} is given", f"leave {name} out"
        elif any(v not in allowed for v in (value if isinstance(value, list) else [value])):
            yield f"{name} is {value}", f"TensorRT has {name} {', '.join(map(str, allowed))}"


def wrong_sizes(
    op: str, inputs: Sequence[str], outputs: Sequence[str], rank: int | None, line: str
) -> Iterator[tuple[str, str]]:
    """What is wrong about the number of a node's inputs and outputs and the axes of its first input (None: unknown)."""
    for names, most in ((inputs, _MOST_INPUTS), (outputs, _MOST_OUTPUTS)):
        extra = [name for name in names[most.get(op, len(names)) :] if name]
        if extra:
            yield f"it has {', '.join(extra)}", f"TensorRT has only the first {most[op]} of them"
    release, later = _RANKS_LATER.get(op, (_NEVER, ()))
    ranks: Collection[int] = later if reached(line, release) else _RANKS.get(op, ())
    if ranks and rank is not None and rank not in ranks:
        yield f"{inputs[0]} has {rank} axes", f"give it {' or '.join(map(str, ranks))}"


def fits(report: Mapping[str, Sequence[Fault]]) -> tuple[str, ...]:
    """The lines that a report has no fault for."""
    return tuple(line for line, faults in report.items() if not faults)


def summary(report: Mapping[str, Sequence[Fault]]) -> str:
    """A report in one line: "TensorRT 10.3, 10.16" or "TensorRT 10.16; not 10.3: 2 faults, first: ..."."""
    parts = [f"TensorRT {', '.join(fits(report)) or 'none'}"]
    broken = [item for item in report.items() if item[1]]
    for faults, group in groupby(broken, key=lambda item: item[1]):
        node, op, what, _ = faults[0]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults, first"
        parts.append(f"not {', '.join(line for line, _ in group)}: {count}: {op} {node}: {what}")
    return "; ".join(parts)


def reached(version: str, release: str) -> bool:
    """Whether a version is a release or a later one; only major and minor count."""
    return _numbers(version) >= _numbers(release)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
