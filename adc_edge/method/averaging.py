"""Bringing the changes of several trunks together: mean, trimmed mean, median, and the changes that do not fit.

A change is a trunk minus the trunk that it began from, tensor by tensor, float32. Letters: n changes, x_i one of them
with all its values in one vector, w_i the images behind it.

The robust rules weigh every change alike: a device tells its own number of images, so a weight would let it count for
many.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from adc_edge.arrays import Array, Float32, Float64, Weights
from adc_edge.defaults import RobustRule
from adc_edge.machine.threads import limit_blas

LEAST = 3  # changes from which on an outlier can be told: of two, neither is more usual than the other
MOST_NORM = 4.0  # of a change, as a multiple of the median norm of the others
LEAST_COSINE = -0.5  # of a change, to the sum of the others' directions
TRIMMED_SHARE = 0.2  # of the values of a coordinate, left out at either end
_BLOCK = 2**16  # values of each change that are looked at together, so that memory does not grow with the trunk


def combined(changes: Sequence[Weights], images: Sequence[int], rule: RobustRule = "none") -> dict[str, Float32]:
    """Return the change that ``rule`` makes of the changes; ``none``: their mean, weighted by images.

    Args:
        changes: at least one; all have tensors of the same names and shapes.
        images: images behind each change, w_i > 0.
        rule: the rule's name.
    """
    if rule == "trimmed-mean":
        return trimmed_mean(changes)
    return median(changes) if rule == "median" else weighted_mean(changes, images)


def weighted_mean(changes: Sequence[Weights], images: Sequence[int]) -> dict[str, Float32]:
    """Return Σ w_i x_i / Σ w_i, summed in float64; ``changes`` and ``images`` as in ``combined``."""
    weights = np.array(images, np.float64) / sum(images)
    return _by_block(changes, lambda values: weights @ values)


def trimmed_mean(changes: Sequence[Weights]) -> dict[str, Float32]:
    """Return the mean of each coordinate without its smallest and its largest values.

    A fifth of the n values is left out at either end, rounded down, but at least one where there are three or more.
    """
    count = len(changes)
    cut = max(int(TRIMMED_SHARE * count), int(count >= LEAST))

    return _by_block(changes, lambda values: np.sort(values, axis=0)[cut : count - cut].mean(axis=0))


def median(changes: Sequence[Weights]) -> dict[str, Float32]:
    """Return the median of each coordinate; the mean of the middle two where n is even."""
    return _by_block(changes, lambda values: np.median(values, axis=0))


def outliers(changes: Sequence[Weights]) -> dict[int, str]:
    """Return the positions of the changes that do not fit the others, each with the reason in words.

    With fewer than three changes there is none. A change is left out if its norm is above 4 times the median of the
    others' norms, or if its cosine to the sum of the others' directions, Σ x_j / |x_j|, is below -0.5. Where that
    would leave out half of the changes or more, they have no common direction, and only the norms count.
    """
    if len(changes) < LEAST:
        return {}
    products = _products(changes)
    norms = np.sqrt(np.diag(products))
    found = _long(norms)
    turned = _turned(products, norms)
    return {**turned, **found} if 2 * len(turned | found) < len(changes) else found


def _long(norms: Float64) -> dict[int, str]:
    found = {}
    for i, norm in enumerate(norms):
        usual = statistics.median(np.delete(norms, i))
        if usual > 0 and norm > MOST_NORM * usual:
            found[i] = f"its norm is {norm / usual:.3g} times the others' median, above {MOST_NORM:g}"
    return found


def _turned(products: Float64, norms: Float64) -> dict[int, str]:
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = products * inverse[:, None] * inverse
    found = {}
    for i in np.flatnonzero(norms):
        others = np.delete(np.arange(len(norms)), i)
        length = np.sqrt(max(cosines[np.ix_(others, others)].sum(), 0.0))
        cosine = cosines[i, others].sum() / length if length > 0 else 0.0
        if cosine < LEAST_COSINE:
            found[int(i)] = f"its cosine to the others' direction is {cosine:.2f}, below {LEAST_COSINE:g}"
    return found


def _products(changes: Sequence[Weights]) -> Float64:
    """The inner products of all changes with each other, ``[n, n]``."""
    limit_blas()  # threads that wait for each other took twenty times as long on two busy cores
    total = np.zeros((len(changes), len(changes)))
    for name in changes[0]:
        for _, values in _blocks([change[name] for change in changes]):
            total += values @ values.T
    return total


def _by_block(changes: Sequence[Weights], rule: Callable[[Float64], Float64]) -> dict[str, Float32]:
    """``rule`` of the values ``[n, block]`` of each block of each tensor."""
    found = {}
    for name, first in changes[0].items():
        flat = np.empty(first.size, np.float32)
        for where, values in _blocks([change[name] for change in changes]):
            flat[where] = rule(values)
        found[name] = flat.reshape(first.shape)
    return found


def _blocks(tensors: Sequence[Array]) -> Iterator[tuple[slice, Float64]]:
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].size, _BLOCK):
        where = slice(start, start + _BLOCK)
        yield where, np.array([tensor[where] for tensor in flat], np.float64)
