"""The true ratio ξ = (T/B)·(k/N): the share of a batch that is sent (paper, section "ADC")."""

from __future__ import annotations

import math

import msgspec

from adc_edge.errors import SettingError

_NEAR = 0.01  # relative tolerance of ξ: labels and framing add about as much
_EPSILON = 1e-9  # 0.29 * 100 is 28.999… in binary; floor must not lose a cluster to that


class Shape(msgspec.Struct, frozen=True):
    """Size of a step's message: T clusters of k tokens, from B images of N tokens."""

    images: int
    tokens: int
    clusters: int
    kept: int

    @property
    def xi(self) -> float:
        """The true ratio ξ of this shape."""
        return self.clusters * self.kept / (self.images * self.tokens)


class Ratio(msgspec.Struct, frozen=True):
    """A target ratio: either ξ, or T/B and k/N separately (the paper's grid)."""

    xi: float | None = None
    batch: float | None = None
    token: float | None = None

    def check(self) -> Ratio:
        """Return self, or raise SettingError unless it has ξ alone or both parts alone, each in (0, 1]."""
        values = {"--ratio": self.xi, "--batch-ratio": self.batch, "--token-ratio": self.token}
        given = {name: value for name, value in values.items() if value is not None}
        apart = self.batch is not None and self.token is not None and self.xi is None
        alone = self.xi is not None and self.batch is None and self.token is None
        if not (apart or alone) or not all(0.0 < value <= 1.0 for value in given.values()):
            raise SettingError(
                ", ".join(f"{name} {value}" for name, value in given.items()) or "no ratio",
                "either --ratio, or --batch-ratio and --token-ratio together, each in (0, 1]",
                "for example --ratio 0.1, or --batch-ratio 0.25 --token-ratio 0.4",
            )
        return self

    def shape(self, images: int, tokens: int, prefix: int) -> Shape:
        """Return T and k for ``images`` images of ``tokens`` tokens, ``prefix`` of which are always kept.

        T/B and k/N are floored as in the paper. For one ξ, T is the number nearest to √ξ·B for which some k gives ξ
        within 1 %, or else the one near it that comes closest. At least one patch token is kept.

        Raises:
            SettingError: the batch is smaller than the two clusters that k-means needs.
        """
        if images < 2:
            raise SettingError(
                f"a batch of {images} image(s)", "at least 2, the smallest number of clusters", "raise --batch-size"
            )
        if self.xi is None:
            assert self.batch is not None
            assert self.token is not None
            clusters = max(2, math.floor(self.batch * images + _EPSILON))
            kept = math.floor(self.token * tokens + _EPSILON)
        else:
            clusters, kept = _nearest(self.xi, images, tokens, prefix + 1)
        return Shape(images, tokens, clusters, min(tokens, max(prefix + 1, kept)))


def _nearest(xi: float, images: int, tokens: int, least: int) -> tuple[int, int]:
    """T and k >= ``least``; where √ξ gives fewer tokens than that, T is larger instead."""
    total = xi * images * tokens
    ideal = min(math.sqrt(xi) * images, total / least)
    low = max(2, math.floor(0.8 * ideal))
    high = max(low, min(images, math.ceil(1.25 * ideal)))
    candidates = sorted(range(low, high + 1), key=lambda clusters: abs(clusters - ideal))
    pairs = [(clusters, min(tokens, max(least, round(total / clusters)))) for clusters in candidates]
    off = [abs(clusters * kept - total) for clusters, kept in pairs]
    return pairs[next((i for i, error in enumerate(off) if error <= _NEAR * total), off.index(min(off)))]
