"""The arithmetic of a head's memory: from what size on one GPU does not hold it, and how many ranks share it then."""

from __future__ import annotations

from typing import NamedTuple

VALUE_BYTES = 4  # float32
STATE_VALUES = 4  # of a parameter: weight, gradient, and Adam's two means
EXCHANGED_VALUES = 1  # of a parameter: the flat sum of gradients, beside the gradients, while replicas exchange it
LIVE_BLOCKS = 2  # that FSDP2 holds whole at a time, with their gradients: the one at work and the next one
RESERVED_GB = 1.0  # CUDA's context, the allocator's gaps, messages
CARDS_GB = (8, 24, 80, 141)
MOST_RANKS = 256
_GB = 1e9


class HeadSize(NamedTuple):
    """The measures of a head: blocks behind the cut, their width D, their MLP's width, and the tokens of an image."""

    name: str
    blocks: int
    dim: int
    mlp: int
    tokens: int
    classes: int = 1000

    def block_parameters(self) -> int:
        """Number of parameters of one block."""
        attention = 4 * self.dim**2 + 4 * self.dim
        mlp = 2 * self.dim * self.mlp + self.mlp + self.dim
        return attention + mlp + 4 * self.dim

    def parameters(self) -> int:
        """Number of the head's parameters: blocks, norm and classifier."""
        return self.blocks * self.block_parameters() + 2 * self.dim + (self.dim + 1) * self.classes

    def activation_gb(self, images: int) -> float:
        """Size of what a forward in float32 keeps for the backward, GB: 8 D and two of the MLP's width a token."""
        return images * self.tokens * self.blocks * (8 * self.dim + 2 * self.mlp) * VALUE_BYTES / _GB


HEADS = (
    HeadSize("ViT-B/16, 6 of 12", 6, 768, 3072, 197),
    HeadSize("ViT-L/16, 12 of 24", 12, 1024, 4096, 197),
    HeadSize("ViT-H/14, 16 of 32", 16, 1280, 5120, 257),
    HeadSize("ViT-g/14, 20 of 40", 20, 1408, 6144, 257),
    HeadSize("ViT-G/14, 24 of 48", 24, 1664, 8192, 257),
    HeadSize("ViT-22B, 24 of 48", 24, 6144, 24576, 257),
)


def alone_gb(head: HeadSize, images: int) -> float:
    """Memory of a trainer without ranks, GB: state, activations and what is reserved."""
    return head.parameters() * STATE_VALUES * VALUE_BYTES / _GB + head.activation_gb(images) + RESERVED_GB


def replica_gb(head: HeadSize, images: int) -> float:
    """Memory of one of several ranks that each hold the whole head, GB."""
    return alone_gb(head, images) + head.parameters() * EXCHANGED_VALUES * VALUE_BYTES / _GB


def shard_gb(head: HeadSize, images: int, ranks: int) -> float:
    """Memory of one of ``ranks`` ranks that share the head by FSDP2, GB."""
    state = head.parameters() * STATE_VALUES * VALUE_BYTES / ranks / _GB
    whole = LIVE_BLOCKS * head.block_parameters() * 2 * VALUE_BYTES / _GB
    return state + whole + head.activation_gb(images) + RESERVED_GB


def ranks_needed(head: HeadSize, images: int, card_gb: float) -> int | None:
    """Least power of two of ranks whose cards hold the head; 1: a card holds all of it; None: beyond MOST_RANKS."""
    if alone_gb(head, images) <= card_gb:
        return 1
    ranks = 2
    while ranks <= MOST_RANKS:
        if shard_gb(head, images, ranks) <= card_gb:
            return ranks
        ranks *= 2
    return None


def most_parameters(card_gb: float, activation_gb: float) -> float:
    """Parameters of the largest head that each rank of several can hold whole on its card."""
    return (card_gb - RESERVED_GB - activation_gb) * _GB / ((STATE_VALUES + EXCHANGED_VALUES) * VALUE_BYTES)


def moved_gb(head: HeadSize, ranks: int, sharded: bool) -> float:
    """The data that one rank sends in a step, GB.

    Replicas do one all_reduce of the gradients, which sends them twice but for the rank's own part. Shards are gathered
    for the forward and again for the backward, and the gradients are reduced to shards: three times.
    """
    times = 3 if sharded else 2
    return times * (ranks - 1) / ranks * head.parameters() * VALUE_BYTES / _GB


def rows(images: int) -> list[tuple[str, ...]]:
    """The table's rows: a head's size, its memory, ranks needed on each card, and bytes that 8 ranks send."""
    return [
        (
            head.name,
            f"{head.parameters() / 1e6:,.0f} M",
            f"{head.parameters() * STATE_VALUES * VALUE_BYTES / _GB:.2f}",
            f"{head.activation_gb(images):.2f}",
            f"{replica_gb(head, images):.1f}",
            *(str(ranks_needed(head, images, card) or f"> {MOST_RANKS}") for card in CARDS_GB),
            f"{moved_gb(head, 8, False):.2f} / {moved_gb(head, 8, True):.2f}",
        )
        for head in HEADS
    ]


COLUMNS = (
    "head", "parameters", "state GB", "activations GB", "a replica GB", *(f"{card} GB" for card in CARDS_GB),
    "sent a step GB",
)  # fmt: skip
