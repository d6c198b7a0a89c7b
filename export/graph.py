"""Trunk + ADC -> ONNX: one graph for any batch size, cluster count and token count, whose weights can be refreshed.

The exporter's own way loses the weights' names (it folds, transposes and merges equal ones), so the weights are traced
as graph inputs and added as initializers afterwards. An initializer that is also an input is *overridable*: ONNX
Runtime takes new values as feeds with no session rebuild, TensorRT's parser names refittable weights after it. They
keep timm's names and layouts, so a torch parameter can be fed as it lies in memory.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from adc_edge.trunk import Trunk

OPSET = 20  # Gelu as one op; the ceiling of TensorRT 10.0-10.3
INPUTS = ["images", "seeds", "slots"]
OUTPUTS = ["activations", "assignment", "tokens", "counts"]
_LARGEST = 65_536


class _Client(nn.Module):
    """What the device runs, as a module to trace."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor, seeds: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.trunk.compress(images, seeds, slots))


class _Traced(nn.Module):
    """The client with its weights as arguments; it must not own the client, or they would be constants."""

    def __init__(self, client: _Client, names: list[str]) -> None:
        super().__init__()
        self._borrowed = (client,)  # a tuple hides the module from torch
        self._names = names

    def forward(self, images: Tensor, seeds: Tensor, slots: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        state = {f"trunk.{name}": value for name, value in zip(self._names, weights, strict=True)}
        return torch.func.functional_call(self._borrowed[0], state, (images, seeds, slots))  # type: ignore[no-any-return]


def client_graph(trunk: Trunk) -> onnx.ModelProto:
    """Trace a trunk with ADC.

    Inputs: images float32 [B,C,H,W]; seeds int64 [T]; slots int64 [S]; every weight under its timm name, optional.
    Outputs: activations float32 [T,P+S,D]; assignment int64 [B]; tokens int64 [T,P+S]; counts int64 [T].
    """
    weights = {name: p.detach() for name, p in trunk.named_parameters()}
    spec = trunk.spec
    example = (
        torch.randn(6, spec.channels, *spec.image_size),
        torch.arange(3),
        torch.arange(max(2, spec.patches // 3)),
    )
    free = [{0: Dim(name, min=2, max=_LARGEST)} for name in "BT"] + [{0: Dim("S", min=1, max=spec.patches)}]
    with _quiet():
        program = torch.onnx.export(
            _Traced(_Client(trunk), list(weights)),
            (*example, *weights.values()),
            input_names=INPUTS + list(weights),
            output_names=OUTPUTS,
            dynamic_shapes=(*free, tuple({} for _ in weights)),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for name, value in weights.items():
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
    """The exporter warns of what this module does on purpose."""
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
