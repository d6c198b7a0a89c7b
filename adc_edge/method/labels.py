"""Soft labels in messages: sparse (cluster, class, count) triples instead of ``[T, C]`` floats (paper, step 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Float32, Int64
from adc_edge.errors import ProtocolError


def label_triples(assignment: Int64, labels: Int64, classes: int) -> npt.NDArray[np.int32]:
    """Count the labels in each cluster.

    Args:
        assignment: cluster of each image, ``[B]``.
        labels: class of each image, ``[B]``, in ``[0, classes)``.
        classes: C.

    Returns:
        int32 ``[L, 3]`` of cluster, class, count, sorted; T <= L <= B.
    """
    pairs, counts = np.unique(assignment * classes + labels, return_counts=True)
    return np.stack([pairs // classes, pairs % classes, counts], axis=1).astype("<i4")


def check_classes(labels: npt.NDArray[np.int32], classes: int) -> None:
    """Raise ProtocolError, code ``labels``, unless every label received is a class of the bundle."""
    if labels.min() < 0 or labels.max() >= classes:
        raise ProtocolError(
            f"labels from {labels.min()} to {labels.max()}",
            f"0 to {classes - 1}, the bundle's {classes} classes",
            "export the bundle with --num-classes, or mend the labels",
            "labels",
        )


def soft_labels(data: Any, clusters: int, classes: int, images: int) -> Float32:
    """Return the mean of the members' one-hot labels, float32 ``[T, C]``, from triples.

    Raises:
        ProtocolError: code ``labels``: a class or cluster is out of range, a cluster has no label, or the counts do
            not add up to ``images``.
    """
    triples = np.frombuffer(data, "<i4").reshape(-1, 3)
    cluster, label, count = triples.T
    check_classes(label, classes)
    sane = cluster.min() >= 0 and cluster.max() < clusters and count.min() >= 1 and int(count.sum()) == images
    if not sane or not np.bincount(cluster, minlength=clusters).all():
        raise ProtocolError(
            f"label counts that add up to {int(count.sum())}",
            f"{clusters} clusters of {images} images",
            "install the same version of adc-edge on both sides",
            "labels",
        )
    members = np.bincount(cluster * classes + label, weights=count, minlength=clusters * classes)
    members = members.reshape(clusters, classes)
    soft: Float32 = (members / members.sum(axis=1, keepdims=True)).astype(np.float32)
    return soft
