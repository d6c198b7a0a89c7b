"""C3-SL: several samples bound with fixed random keys and summed into one (arXiv 2207.12397).

Binding is circular convolution of a sample's flattened activations with its key. Unbinding is circular correlation of
the sum with the same key: an approximate inverse, as random keys are nearly orthogonal in many dimensions. The result
is the sample plus noise, of about R times the sample's energy where R alike samples were summed. Even a single sample
does not come back exactly. Both sides derive the keys from a seed, so no key is sent.

Letters: as in `adc_edge.evaluation.codecs.base`; n = N*D values of a sample, R samples a group, G groups, f = n//2 + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adc_edge.codec.precision import Precision
from adc_edge.evaluation.codecs.base import Codec, CodecBatch, EncodedBatch
from adc_edge.evaluation.codecs.sparse import check_share
from adc_edge.method.trunk import Trunk


class C3sl(Codec):
    """Sends R = round(1 / share) consecutive samples as one; the last group may be smaller.

    Args:
        classes: C, the number of classes.
        share: 1 / R, the share of the values that is sent each way.
        tokens: N, the tokens of an image.
        dim: D, the channels.
        precision: precision of the activations; where it has scales (int8 and below), one a group.
        gradient_precision: precision of the gradients.
        seed: random seed of the keys, not negative, the same on both sides.

    Raises:
        SettingError: a share outside (0, 1].
    """

    def __init__(
        self,
        classes: int,
        share: float,
        tokens: int,
        dim: int,
        precision: Precision,
        gradient_precision: Precision,
        seed: int,
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.tokens, self.dim, self.total = tokens, dim, tokens * dim
        self.group, self.seed = round(1 / check_share(share, "C3-SL")), seed
        self._spectra = torch.empty(0, self.total // 2 + 1, dtype=torch.complex64)

    def ratio(self, images: int) -> float:
        """G / B: above 1 / R where the last group is smaller."""
        return -(-images // self.group) / images

    def key(self, place: int) -> Tensor:
        """Key ``[n]`` of one place in a group: normal entries, scaled to unit length as the authors do."""
        drawn = np.random.default_rng([self.seed, place]).standard_normal(self.total)
        return torch.from_numpy((drawn / np.linalg.norm(drawn)).astype(np.float32))  # [n]

    def spectra(self, places: int) -> Tensor:
        """Fourier transforms ``[places, f]`` of the first keys, computed at first use."""
        if places > len(self._spectra):
            with torch.inference_mode(False):  # a test may ask first, and autograd takes no tensor made in that mode
                missing = [self.key(place) for place in range(len(self._spectra), places)]
                self._spectra = torch.cat([self._spectra, torch.fft.rfft(torch.stack(missing))])
        return self._spectra[:places]

    def bind(self, flat: Tensor) -> Tensor:
        """Bind samples ``[B, n]`` and sum them: ``[G, n]``."""
        keys = self.spectra(min(self.group, len(flat))).to(flat.device)
        groups = torch.fft.rfft(flat).split(self.group)  # G of [R, f]
        sums = torch.stack([(samples * keys[: len(samples)]).sum(0) for samples in groups])  # [G, f]
        bound: Tensor = torch.fft.irfft(sums, n=self.total)
        return bound

    def unbind(self, sums: Tensor, images: int) -> Tensor:
        """Estimate the samples ``[B, n]`` from their sums ``[G, n]``."""
        sample = torch.arange(images, device=sums.device)
        keys = self.spectra(min(self.group, images)).to(sums.device)[sample % self.group]  # [B, f]
        mine = torch.fft.rfft(sums)[sample // self.group]  # [B, f]
        samples: Tensor = torch.fft.irfft(mine * keys.conj(), n=self.total)
        return samples

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Encode the groups' sums ``[G, n]``."""
        return self.pack(self.bind(trunk(batch.images).float().flatten(1)), batch)

    def restore(self, values: Tensor, images: int) -> Tensor:
        """Estimate the samples ``[B, N, D]``."""
        return self.unbind(values, images).view(images, self.tokens, self.dim)

    def through(self, features: Tensor) -> Tensor | None:
        """Test activations ``[B, N, D]``, bound and unbound in groups of R but not quantized."""
        return self.restore(self.bind(features.float().flatten(1)), len(features))
