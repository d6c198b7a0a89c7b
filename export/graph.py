"""Trunk + ADC -> ONNX: one graph for any batch size, cluster count and token count, whose weights can be refreshed.

The exporter's own way loses the weights' names (it folds, transposes and merges equal ones), so the weights are traced
as graph inputs and added as initializers afterwards. An initializer that is also an input is *overridable*: ONNX
Runtime takes new values as feeds with no session rebuild, TensorRT's parser names refittable weights after it. They
keep timm's names and layouts, so a torch parameter can be fed as it lies in memory.

Precision lives in the graph, as strongly typed TensorRT networks want it: the fp16 graph holds its weights in fp16
under the same names and computes its blocks in fp16, ADC in fp32; what goes in and comes out is fp32.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from adc_edge.method.trunk import Trunk
from adc_edge.storage.bundle import OUTPUTS

OPSET = 20  # Gelu as one op; the ceiling of TensorRT 10.0-10.3
INPUTS = ["images", "seeds", "slots"]
SCORES = "scores"
_LARGEST = 65_536


class _Client(nn.Module):
    """Trunk and ADC as one module to trace."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor, seeds: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
        states = self.trunk.states(images.to(self.trunk.cls_token.dtype))
        (activations, *choice), scores = self.trunk.inspect_last(states[-1], seeds, slots)
        return (activations.float(), *choice, scores, *(state.float() for state in states[1:]))


class _Traced(nn.Module):
    """A module that takes its weights as arguments.

    It does not own the module: torch would trace the weights of an owned one as constants.
    """

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self._borrowed = (module,)  # a tuple hides it from torch
        self._names = names

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        inputs = arguments[: -len(self._names)]
        state = dict(zip(self._names, arguments[-len(self._names) :], strict=True))
        return torch.func.functional_call(self._borrowed[0], state, inputs)  # type: ignore[no-any-return]


def client_graph(trunk: Trunk, half: bool = False) -> onnx.ModelProto:
    """Return the ONNX graph of a trunk with ADC.

    Inputs: images float32 [B,C,H,W]; seeds int64 [T]; slots int64 [S]; every weight under its timm name, optional.
    Outputs: activations float32 [T,P+S,D]; assignment int64 [B]; tokens int64 [T,P+S]; counts int64 [T];
        scores float32 [B,N], the CLS attention that the choice rests on, for those who check it;
        hidden_K float32 [B,N,D] for 1 <= K < split, after block K, for a device that freezes its first blocks.
        An output that is not fetched costs nothing (benchmarks/compression.py).

    Args:
        trunk: the trunk.
        half: blocks and weights in fp16.
    """
    spec = trunk.spec
    trunk = copy.deepcopy(trunk).half() if half else trunk
    outputs = [*OUTPUTS, SCORES, *(f"hidden_{block}" for block in range(1, spec.depth))]
    example = (
        torch.randn(6, spec.channels, *spec.image_size),
        torch.arange(3),
        torch.arange(max(2, spec.patches // 3)),
    )
    free = [Dim("B", min=2, max=_LARGEST), Dim("T", min=2, max=_LARGEST), Dim("S", min=1, max=spec.patches)]
    return trace(_Client(trunk), example, free, INPUTS, outputs, prefix="trunk.")


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its weights as plain inputs, for a TensorRT that cannot refit them."""
    inputs = {value.name for value in model.graph.input}
    bare = copy.deepcopy(model)
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(i for i in model.graph.initializer if i.name not in inputs)
    return bare


def trace(
    module: nn.Module,
    example: tuple[Tensor, ...],
    free: Sequence[Dim],
    inputs: Sequence[str],
    outputs: Sequence[str],
    prefix: str = "",
) -> onnx.ModelProto:
    """Return a checked graph of ``module`` whose weights are overridable initializers.

    Args:
        module: the module to trace.
        example: example inputs.
        free: the first axis of each input, which stays dynamic.
        inputs: names of the inputs.
        outputs: names of the outputs.
        prefix: start of the module's parameter names, left out in the graph.
    """
    weights = {name: p.detach() for name, p in module.named_parameters()}
    names = [name.removeprefix(prefix) for name in weights]
    with _quiet():
        program = torch.onnx.export(
            _Traced(module, list(weights)).eval(),
            (*example, *weights.values()),
            input_names=[*inputs, *names],
            output_names=list(outputs),
            dynamic_shapes=((*({0: dim} for dim in free), *({} for _ in weights)),),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for name, value in zip(names, weights.values(), strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    _strip_paths(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _strip_paths(model: onnx.ModelProto) -> None:
    """Drop stack traces: they name the exporting machine's files and make two equal exports differ."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        value.ClearField("metadata_props")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about what this module does on purpose."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
