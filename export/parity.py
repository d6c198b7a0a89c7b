"""The parity check: the exported graph against PyTorch, in stages, because the choice of clusters is discrete.

A rounding difference of 1e-9 can flip an assignment and then move an activation by 2, so no single tolerance is
meaningful. Every case is checked in three stages, also after a refresh with all weights perturbed:

(a) scores and hidden states, each against PyTorch;
(b) clusters and tokens against PyTorch *on the graph's own scores*: exactly;
(c) end to end: shares of equal assignments and tokens, and activations against PyTorch *for the graph's choice*.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from adc_edge.arrays import Array, Float32, Int64
from adc_edge.errors import ParityError
from adc_edge.method import adc
from adc_edge.method.compressed import CompressedBatch
from adc_edge.method.ratio import Ratio
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import Trunk
from adc_edge.onnx.agreement import agreement, perturb_weights
from adc_edge.onnx.session import cpu_session
from adc_edge.storage.bundle import Compute

_NEXT = "report it with the model's name; nothing was written"


class ParityLimits(NamedTuple):
    """Limits: differences relative to the largest value; shares over all cases, since ties may fall either way."""

    difference: float
    assignment: float
    tokens: float


PARITY_LIMITS: dict[Compute, ParityLimits] = {
    "fp32": ParityLimits(1e-4, 0.95, 0.95),
    "fp16": ParityLimits(5e-3, 0.90, 0.80),
}


class ParityCase(NamedTuple):
    """One batch for the graph and for PyTorch."""

    stage: str
    images: int
    clusters: int
    slots: int
    seed: int


class ParityRow(NamedTuple):
    """Result of one case; differences are relative to the largest value."""

    compute: Compute
    stage: str
    images: int
    clusters: int
    kept: int
    scores: float  # (a)
    hidden: float  # (a); 0 without hidden states
    clustering: bool  # (b)
    assignment: float  # (c), share of images
    tokens: float  # (c), Jaccard index, mean over images
    difference: float  # (c), of activations, for the graph's choice

    @property
    def passed(self) -> bool:
        """True if (a) and (b) hold, and the activations of (c) are within the limit."""
        limit = PARITY_LIMITS[self.compute].difference
        return self.clustering and all(v <= limit for v in (self.scores, self.hidden, self.difference))


class Found(NamedTuple):
    """All outputs of a graph."""

    activations: Float32
    assignment: Int64
    tokens: Int64
    counts: Int64
    scores: Float32
    hidden: list[Float32]


def check_parity(model: bytes, trunk: Trunk, compute: Compute = "fp32") -> list[ParityRow]:
    """Run the graph against PyTorch in fp32 over several (B, T, S), then with every weight perturbed, twice.

    Raises:
        ParityError: a stage's difference above its limit, clusters or tokens that do not follow from the scores, or
            too few choices like PyTorch's.
    """
    session = cpu_session(model)
    patches = trunk.spec.patches
    shape = Ratio(xi=0.1).shape(16, trunk.spec.tokens, trunk.spec.prefix)
    cases = [
        ParityCase("export", 2, 2, 1, 0),
        ParityCase("export", 5, 3, max(1, patches // 2), 1),
        ParityCase("export", 8, 2, patches, 2),
        ParityCase("export", 16, shape.clusters, shape.kept - trunk.spec.prefix, 3),
        ParityCase("evaluate", 6, 6, patches, 9),
    ]
    rows = [_compare(session, trunk, case, compute, weights={}) for case in cases]
    own = {name: p.detach().numpy() for name, p in trunk.named_parameters()}
    other = copy.deepcopy(trunk)
    for turn in (1, 2):
        new = perturb_weights(own, turn)
        other.load_state_dict({name: torch.from_numpy(value) for name, value in new.items()})
        case = ParityCase(f"refresh {turn}", 6, 3, max(1, patches // 3), 20 + turn)
        dtype = np.float16 if compute == "fp16" else np.float32
        rows.append(_compare(session, other, case, compute, {n: v.astype(dtype) for n, v in new.items()}))
    _enforce(rows, PARITY_LIMITS[compute])
    return rows


def _enforce(rows: list[ParityRow], limits: ParityLimits) -> None:
    for row in rows:
        where = f"({row.stage}, B={row.images}, T={row.clusters}, k={row.kept})"
        for what in ("scores", "hidden", "difference"):
            value = getattr(row, what)
            if not value <= limits.difference:
                name = {"hidden": "hidden states", "difference": "activations"}.get(what, what)
                raise ParityError(
                    f"the exported graph differs from PyTorch: {name} by {value:.1e} of the largest {where}",
                    f"at most {limits.difference:.0e}",
                    _NEXT,
                )
        if not row.clustering:
            raise ParityError(
                f"clusters or tokens of the exported graph do not follow from its scores {where}",
                "what PyTorch makes of the same scores",
                _NEXT,
            )
    images = sum(row.images for row in rows)
    for what, least in (("assignment", limits.assignment), ("tokens", limits.tokens)):
        share = sum(getattr(row, what) * row.images for row in rows) / images
        if share < least:
            raise ParityError(f"{share:.1%} of the {what} equals PyTorch's", f"at least {least:.0%}", _NEXT)


@torch.no_grad()
def _compare(
    session: ort.InferenceSession,
    trunk: Trunk,
    case: ParityCase,
    compute: Compute,
    weights: dict[str, Array],
) -> ParityRow:
    pixels, init_rows = _inputs(trunk.spec, case, smooth=compute != "fp32")
    slots = torch.zeros(case.slots, dtype=torch.int64)
    feeds = {"images": pixels.numpy(), "seeds": init_rows.numpy(), "slots": slots.numpy(), **weights}
    activations, assignment, tokens, counts, scores, *hidden = session.run(None, feeds)
    found = Found(activations, assignment, tokens, counts, scores, hidden)
    states = trunk.states(pixels)
    eager, expected = trunk.inspect_last(states[-1], init_rows, slots)
    # Empty clusters stay in both, so that clusters keep their numbers.
    alike = agreement(CompressedBatch(*found[:3]), CompressedBatch(*(part.numpy() for part in eager[:3])))
    given = trunk.replay(pixels, torch.from_numpy(found.assignment), torch.from_numpy(found.tokens)).numpy()
    used = found.counts > 0
    return ParityRow(
        compute,
        case.stage,
        case.images,
        case.clusters,
        trunk.spec.prefix + case.slots,
        _relative(found.scores, expected.numpy()),
        max((_relative(h, s.numpy()) for h, s in zip(found.hidden, states[1:], strict=True)), default=0.0),
        _follows(found, init_rows, trunk.spec.prefix),
        alike.assignment,
        alike.tokens,
        _relative(found.activations[used], given[used]),
    )


def _inputs(spec: TrunkSpec, case: ParityCase, smooth: bool) -> tuple[Tensor, Tensor]:
    """Return white noise ``[B, C, H, W]``, whose scores lie close together, or smooth images, which differ more."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.images, spec.channels, *((5, 5) if smooth else spec.image_size))
    pixels = torch.randn(shape, generator=generator)
    if smooth:
        pixels = torch.nn.functional.interpolate(pixels, spec.image_size, mode="bicubic").clamp(-2.5, 2.5)
    return pixels, torch.randperm(case.images, generator=generator)[: case.clusters]


def _relative(ours: Float32, theirs: Float32) -> float:
    largest = float(np.abs(theirs).max())
    difference = float(np.abs(ours - theirs).max()) / largest
    return difference if math.isfinite(difference) else math.inf


def _follows(found: Found, init_rows: Tensor, prefix: int) -> bool:
    """Return whether PyTorch chooses the same clusters and tokens from the graph's scores, up to ties."""
    scores = torch.from_numpy(found.scores)
    assignment, counts = adc.kmeans(scores, init_rows)
    if not np.array_equal(np.bincount(found.assignment, minlength=len(init_rows)), found.counts):
        return False
    if not np.array_equal(assignment.numpy(), found.assignment):
        exact, _ = adc.kmeans(scores.double(), init_rows)
        return not torch.equal(exact, assignment)  # a tie in fp32: either is right
    centroids = adc.cluster_mean(scores, assignment, torch.arange(len(init_rows)))
    values = centroids.numpy()
    for cluster in np.flatnonzero(counts.numpy()):
        first, kept = found.tokens[cluster, :prefix], found.tokens[cluster, prefix:]
        left = np.setdiff1d(np.arange(prefix, values.shape[1]), kept)
        if not np.array_equal(first, np.arange(prefix)) or len(np.unique(kept)) != len(kept):
            return False
        # The smallest score kept is not below the largest one left out, up to the last bit of a mean.
        if left.size and values[cluster, kept].min() < values[cluster, left].max() * (1 - 1e-6):
            return False
    return True
