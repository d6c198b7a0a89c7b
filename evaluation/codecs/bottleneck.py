"""BottleNet++: a learned encoder on the device and a learned decoder on the trainer (arXiv 1910.14315).

The paper's pair is convolution, batch norm and sigmoid, then convolution, batch norm and ReLU, around a channel. Here
the convolution is 1x1, which on tokens is one linear map for each; and no ReLU ends the decoder: the paper's stands in
for features of a CNN that are behind one, a ViT's residual stream has both signs.

Letters: as in `adc_edge.evaluation.codecs.base`; W the bottleneck's width, the paper's D'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adc_edge.codec.precision import Precision
from adc_edge.evaluation.codecs.base import CodecBatch, Dense, EncodedBatch
from adc_edge.evaluation.codecs.sparse import check_share
from adc_edge.method.trunk import Trunk


class _TokenNorm(nn.BatchNorm1d):
    """Batch norm of each channel over all tokens of all images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)  # [B*N, channels] -> [B, N, channels]


class BottleNetPlusPlus(Dense):
    """Tokens of W = max(1, round(share * D)) channels, between 0 and 1, travel; so does their gradient.

    Both halves' parameters are to be trained with the loss of the task, through their optimizers. The encoder's and the
    decoder's modes are the caller's; as they are built, they train.

    Args:
        classes: C.
        share: of the values that are sent, either way: W / D.
        dim: D.
        precision: of what goes up; with scales (int8 and below) each token has one.
        gradient_precision: of what comes down.
        seed: of the initial weights; the global generator is left as it was.

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
            # Without biases, which the norms would take away again.
            self.encoder = nn.Sequential(nn.Linear(dim, self.width, bias=False), _TokenNorm(self.width), nn.Sigmoid())
            self.decoder = nn.Sequential(nn.Linear(self.width, dim, bias=False), _TokenNorm(dim))
        self.device, self.trainer = self.encoder, self.decoder

    def ratio(self, images: int) -> float:
        """W/D."""
        return self.width / self.dim

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """The encoded tokens ``[B, N, W]``."""
        return self.pack(self.encoder(trunk(batch.images).float()), batch)

    def restore(self, values: Tensor, images: int) -> Tensor:
        """The decoded tokens ``[B, N, D]``."""
        return self.decoder(values)  # type: ignore[no-any-return]

    def through(self, features: Tensor) -> Tensor | None:
        """Test activations encoded and decoded, as the head knows no others: ``[B, N, D]``, not quantized.

        Both halves work as in evaluation (running means), and are in the mode that they were in afterwards.
        """
        with _evaluating(self.encoder, self.decoder):
            return self.decoder(self.encoder(features.float()))  # type: ignore[no-any-return]


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
