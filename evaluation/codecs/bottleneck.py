"""BottleNet++: a learned encoder on the device and a learned decoder on the trainer (arXiv 1910.14315).

The paper's encoder is convolution, batch norm and sigmoid; its decoder is convolution, batch norm and ReLU. Here the
convolution is 1x1: one linear map for each token. The decoder has no ReLU: a CNN's features have passed one, but a
ViT's residual stream has both signs.

Letters: as in `adc_edge.evaluation.codecs.base`; W the bottleneck's width, the paper's D'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adc_edge.codec.precision import Precision
from adc_edge.evaluation.codecs.base import Codec, CodecBatch, EncodedBatch
from adc_edge.evaluation.codecs.sparse import check_share
from adc_edge.method.trunk import Trunk


class _TokenNorm(nn.BatchNorm1d):
    """Batch norm of each channel over all tokens of all images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)  # [B*N, channels] -> [B, N, channels]


class BottleNetPlusPlus(Codec):
    """Sends tokens of W = max(1, round(share * D)) channels between 0 and 1 up, and their gradient down.

    The caller trains encoder and decoder with the loss of the task, and sets their modes; they start in training mode.

    Args:
        classes: C, the number of classes.
        share: W / D, the share of the values that is sent each way.
        dim: D, the channels.
        precision: precision of the activations; where it has scales (int8 and below), one a token.
        gradient_precision: precision of the gradients.
        seed: random seed of the initial weights; the global generator does not change.

    Raises:
        SettingError: a share outside (0, 1].
    """

    def __init__(
        self,
        classes: int,
        share: float,
        dim: int,
        precision: Precision,
        gradient_precision: Precision,
        seed: int,
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.dim, self.width = dim, max(1, round(check_share(share, "BottleNet++") * dim))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Without biases: the norms subtract them.
            self.encoder = nn.Sequential(nn.Linear(dim, self.width, bias=False), _TokenNorm(self.width), nn.Sigmoid())
            self.decoder = nn.Sequential(nn.Linear(self.width, dim, bias=False), _TokenNorm(dim))
        self.device, self.trainer = self.encoder, self.decoder

    def ratio(self, images: int) -> float:
        """W / D."""
        return self.width / self.dim

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Encode tokens ``[B, N, W]``."""
        return self.pack(self.encoder(trunk(batch.images).float()), batch)

    def restore(self, values: Tensor, images: int) -> Tensor:
        """Decode tokens ``[B, N, D]``."""
        return self.decoder(values)  # type: ignore[no-any-return]

    def through(self, features: Tensor) -> Tensor | None:
        """Test activations ``[B, N, D]``, encoded and decoded but not quantized: the head has learned from such alone.

        Encoder and decoder are in evaluation mode (running means) meanwhile, and in their own mode afterwards.
        """
        with _evaluating(self.encoder, self.decoder):
            return self.decoder(self.encoder(features.float()))  # type: ignore[no-any-return]


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and the former mode at the end."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
