"""Does the exported graph compute what PyTorch computes? In stages, because the choice of clusters is discrete.

A rounding difference of 1e-9 can flip an assignment and then move an activation by 2, so the engine's choice is
compared as a share, and its activations against PyTorch *given that choice*. The refresh stage perturbs every weight,
twice, and feeds the new ones by name.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from adc_edge.errors import ParityError
from adc_edge.ratio import Ratio
from adc_edge.trunk import Trunk

TOLERANCE = 1e-4  # of the largest activation, fp32
AGREEMENT = 0.95  # share of equal assignments over all cases; ties may fall either way
_NEXT = "report it with the model's name; nothing was written"


class Row(NamedTuple):
    """One case: shapes, share of equal assignments, largest relative difference of activations and hidden states."""

    stage: str
    images: int
    clusters: int
    kept: int
    agreement: float
    difference: float

    @property
    def passed(self) -> bool:
        """Whether the activations are within TOLERANCE."""
        return self.difference <= TOLERANCE


def check_parity(model: bytes, trunk: Trunk) -> list[Row]:
    """Run the graph against PyTorch over several (B, T, S), then with every weight perturbed, twice.

    Raises:
        ParityError: a difference above TOLERANCE, too few equal assignments, or evaluation (T = B) that merges.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    patches = trunk.spec.patches
    cases = [(2, 2, 1), (5, 3, max(1, patches // 2)), (8, 2, patches)]
    shape = Ratio(xi=0.1).shape(16, trunk.spec.tokens, trunk.spec.prefix)
    cases.append((16, shape.clusters, shape.kept - trunk.spec.prefix))
    rows = [_compare("export", session, trunk, *case, weights={}, seed=i) for i, case in enumerate(cases)]
    rows.append(_compare("evaluate", session, trunk, 6, 6, patches, weights={}, seed=9))
    moved = copy.deepcopy(trunk)
    for turn in (1, 2):
        _perturb(moved, turn)
        weights = {name: p.detach().numpy() for name, p in moved.named_parameters()}
        rows.append(_compare(f"refresh {turn}", session, moved, 6, 3, max(1, patches // 3), weights, seed=20 + turn))
    _enforce(rows)
    return rows


def _enforce(rows: list[Row]) -> None:
    agreement = sum(row.agreement * row.images for row in rows) / sum(row.images for row in rows)
    failed = [row for row in rows if not row.passed]
    if failed:
        worst = max(failed, key=lambda row: row.difference)
        raise ParityError(
            f"the exported graph differs from PyTorch by {worst.difference:.1e} of the largest activation "
            f"({worst.stage}, B={worst.images}, T={worst.clusters}, k={worst.kept})",
            f"at most {TOLERANCE:.0e}",
            _NEXT,
        )
    if agreement < AGREEMENT:
        raise ParityError(f"{agreement:.1%} of assignments equal PyTorch's", f"at least {AGREEMENT:.0%}", _NEXT)


@torch.no_grad()
def _compare(
    stage: str,
    session: ort.InferenceSession,
    trunk: Trunk,
    images: int,
    clusters: int,
    slots: int,
    weights: dict[str, npt.NDArray[np.float32]],
    seed: int,
) -> Row:
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((images, trunk.spec.channels, *trunk.spec.image_size)).astype(np.float32)
    seeds = rng.permutation(images)[:clusters].astype(np.int64)
    feeds = {"images": pixels, "seeds": seeds, "slots": np.zeros(slots, np.int64), **weights}
    activations, assignment, tokens, counts, *hidden = session.run(None, feeds)
    x = torch.from_numpy(pixels)
    eager = trunk.compress(x, torch.from_numpy(seeds), torch.zeros(slots, dtype=torch.int64))
    given = trunk.replay(x, torch.from_numpy(assignment), torch.from_numpy(tokens)).numpy()
    used = counts > 0
    pairs = [(activations[used], given[used])]
    pairs += zip(hidden, (state.numpy() for state in trunk.states(x)[1:]), strict=True)
    difference = max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)
    agreement = float((assignment == eager.assignment.numpy()).mean())
    if not np.array_equal(np.bincount(assignment, minlength=clusters), counts):
        difference = float("inf")
    return Row(stage, images, clusters, trunk.spec.prefix + slots, agreement, difference)


@torch.no_grad()
def _perturb(trunk: Trunk, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in trunk.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
