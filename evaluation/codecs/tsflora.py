"""Chosen tokens, the others merged into one, low bits, and LoRA on the trunk: after TSFLora (arXiv 2605.23988).

Each image's prefix tokens and the patch tokens with the largest CLS attention are kept. The others become one token,
their mean weighted by attention. UP and DOWN are the bits. The trunk's weights are frozen but for low-rank adapters
``W + B A`` of its attention layers (LoRA, arXiv 2106.09685), whose B starts at zero.

Different from the paper, of which only the abstract was at hand: the head is trained as a whole, as for every other
method here, which is no handicap; rank, the layers that are adapted and the weights of the merged token are the usual
ones, not read there. Its devices average their adapters; here is one device.

Letters: as in `adc_edge.evaluation.codecs.base`; k = P + chosen + 1 tokens of an image, P of them prefix tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adc_edge.codec.precision import Precision
from adc_edge.errors import SettingError
from adc_edge.evaluation.codecs.base import Codec, CodecBatch, EncodedBatch
from adc_edge.evaluation.codecs.sparse import check_share
from adc_edge.method.adc import gather_tokens, select_tokens
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import Trunk

RANK, ALPHA = 8, 16.0
_ADAPTED = ("attn.qkv", "attn.proj")


class LowRankChange(nn.Module):
    """Adds ``ALPHA / RANK * B A`` to a weight ``[out, in]``; at the start nothing, as B is zero."""

    def __init__(self, weight: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        down = torch.randn(RANK, inputs, generator=generator) / RANK
        self.down, self.up = nn.Parameter(down), nn.Parameter(torch.zeros(outputs, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its change."""
        return weight + ALPHA / RANK * (self.up @ self.down).to(weight.dtype)


def add_adapters(trunk: Trunk, seed: int) -> None:
    """Freeze the trunk's weights, and add adapters to the attention layers of its blocks."""
    generator = torch.Generator().manual_seed(seed)
    trunk.requires_grad_(False)
    for block in trunk.blocks:
        for name in _ADAPTED:
            layer = block.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            parametrize.register_parametrization(layer, "weight", LowRankChange(layer.weight, generator))


class TsfLora(Codec):
    """Sends k = max(P + 2, floor(share * N)) tokens of each image: prefix, chosen ones, and one of all others.

    Args:
        spec: sizes of the trunk.
        classes: C, the number of classes.
        share: k / N.
        precision: precision of the activations.
        gradient_precision: precision of the gradients.
        seed: random seed of the adapters.

    Raises:
        SettingError: a share outside (0, 1], or an image has fewer than P + 2 tokens.
    """

    def __init__(
        self,
        spec: TrunkSpec,
        classes: int,
        share: float,
        precision: Precision,
        gradient_precision: Precision,
        seed: int,
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.spec, self.seed = spec, seed
        self.kept = max(spec.prefix + 2, int(check_share(share, "TSFLora") * spec.tokens))
        if spec.tokens < spec.prefix + 2:
            raise SettingError(f"{spec.tokens} tokens", f"at least {spec.prefix + 2}", "choose smaller patches")

    def adapt(self, trunk: Trunk) -> None:
        """Freeze the trunk and add its adapters."""
        add_adapters(trunk, self.seed)

    def ratio(self, images: int) -> float:
        """k / N."""
        return self.kept / self.spec.tokens

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Encode the tokens ``[B, k, D]``."""
        state = trunk.states(batch.images)[-1]
        with torch.no_grad():
            any_choice = torch.zeros(1, dtype=torch.int64, device=state.device)  # scores come before it
            scores = trunk.inspect_last(state, any_choice, any_choice).scores.float()  # [B, N]
        return self.pack(self.merge(trunk.blocks[-1](state).float(), scores), batch)

    def merge(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Keep prefix and best-scored tokens, and merge the others: ``[B, N, D]`` and ``[B, N]`` -> ``[B, k, D]``."""
        if self.kept == self.spec.tokens:  # nothing is left to merge
            return tokens
        chosen = select_tokens(scores, self.kept - 1 - self.spec.prefix, self.spec.prefix)  # [B, k - 1]
        weights = scores.scatter(1, chosen, 0.0)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        merged = (weights.unsqueeze(2) * tokens).sum(1, keepdim=True)
        return torch.cat([gather_tokens(tokens, chosen), merged], dim=1)
