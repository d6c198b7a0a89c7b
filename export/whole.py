"""The whole model as one ONNX graph, which a device runs where there is no trainer: images -> logits."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import torch
from torch import nn
from torch.export import Dim

from adc_edge.errors import ParityError
from adc_edge.export.graph import trace
from adc_edge.method.spec import TrunkSpec
from adc_edge.onnx.session import cpu_session
from adc_edge.storage.bundle import WHOLE, WHOLE_INPUT, WHOLE_OUTPUT

WHOLE_LIMIT = 1e-5  # of logits: of the largest one, or of 1 where all are smaller
_BATCHES = (1, 2, 5)
_LARGEST = 65_536

logger = logging.getLogger(__name__)


def whole_graph(vit: nn.Module, spec: TrunkSpec) -> onnx.ModelProto:
    """Return the checked ONNX graph of a whole model.

    Input: images float32 [B,C,H,W]. Output: logits float32 [B,classes]. The weights are constants, which ONNX Runtime
    can arrange for its kernels, since nothing refreshes this graph.

    Args:
        vit: a timm VisionTransformer.
        spec: its trunk, which tells the size of an image.

    Raises:
        ParityError: the logits differ from the model's by more than WHOLE_LIMIT.
    """
    was_training = vit.training
    vit.eval()
    example = torch.randn(3, spec.channels, *spec.image_size, generator=torch.Generator().manual_seed(0))
    free = [Dim("B", min=1, max=_LARGEST)]
    graph = trace(vit, (example,), free, [WHOLE_INPUT], [WHOLE_OUTPUT])
    inputs = [value for value in graph.graph.input if value.name == WHOLE_INPUT]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    worst = _difference(vit, graph, spec)
    vit.train(was_training)
    if not worst <= WHOLE_LIMIT:
        raise ParityError(
            f"the logits of {WHOLE} differ from timm's by {worst:.1e} of the largest",
            f"at most {WHOLE_LIMIT:.0e}",
            "report it with the model's name; nothing was written",
        )
    logger.info("onnx     %s: the whole model, logits within %.0e of timm's", WHOLE, worst)
    return graph


@torch.no_grad()
def _difference(vit: nn.Module, graph: onnx.ModelProto, spec: TrunkSpec) -> float:
    """Return the largest difference of logits for several batches, as a share of the largest logit or of 1."""
    session, worst = cpu_session(graph.SerializeToString()), 0.0
    for seed, images in enumerate(_BATCHES):
        shape = (images, spec.channels, *spec.image_size)
        pixels = np.random.default_rng(seed).standard_normal(shape, np.float32)
        expected = vit(torch.from_numpy(pixels)).numpy()
        (found,) = session.run([WHOLE_OUTPUT], {WHOLE_INPUT: pixels})
        worst = float(np.maximum(worst, np.abs(found - expected).max() / max(1.0, np.abs(expected).max())))
    return worst
