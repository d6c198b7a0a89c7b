"""One answer for each image: the classes with the largest probabilities, where they were computed, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from adc_edge.arrays import Float32, Float64
from adc_edge.edge_runtime.infer.images import FileVersion
from adc_edge.planning.place import InferPlace
from adc_edge.terminal import escaped, readable

TOP = 5


class Ranked(msgspec.Struct, frozen=True):
    """A class of an image: its name (its number where it has none), the head's output, and the probability."""

    name: str = msgspec.field(name="class")
    index: int
    probability: float


class InferAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to one image: one line of the output. With ``error`` it has no class."""

    file: str
    modified_ns: int  # of the file: with ``file`` it tells which images were answered
    name: str | None = msgspec.field(name="class", default=None)
    index: int | None = None
    probability: float | None = None
    top5: list[Ranked] = []
    where: InferPlace | None = None
    reason: str = ""  # why it is not where it was meant to be
    milliseconds: float | None = None  # from the pixels to the answer, with failed tries
    bytes_up: int = 0  # of its batch, divided by the images
    bytes_down: int = 0
    error: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """File and version."""
        return self.file, self.modified_ns


class JudgedBatch(NamedTuple):
    """Result of one batch."""

    logits: Float32  # [B, classes]
    where: InferPlace
    reason: str
    seconds: float
    bytes_up: int
    bytes_down: int


def shown_name(file: FileVersion) -> str:
    """Return a file's name as every output takes it."""
    return escaped(readable(str(file.path)))


def broken(file: FileVersion, error: str) -> InferAnswer:
    """Return the answer to an image that cannot be read."""
    return InferAnswer(shown_name(file), file.modified_ns, error=error)


def answers_of(files: Sequence[FileVersion], judged: JudgedBatch, names: Sequence[str]) -> list[InferAnswer]:
    """Return the answers to the images of a batch.

    Args:
        files: of the batch.
        judged: the batch's result.
        names: of the head's first outputs.
    """
    found = []
    count = len(files)
    for file, probabilities in zip(files, _softmax(judged.logits), strict=True):
        top = ranked(probabilities, names)
        found.append(
            InferAnswer(
                shown_name(file),
                file.modified_ns,
                top[0].name,
                top[0].index,
                top[0].probability,
                top,
                judged.where,
                judged.reason,
                round(1e3 * judged.seconds, 3),
                judged.bytes_up // count,
                judged.bytes_down // count,
            )
        )
    return found


def ranked(probabilities: Float64, names: Sequence[str]) -> list[Ranked]:
    """Return the TOP classes, the most probable first."""
    order = np.argsort(-probabilities, kind="stable")[:TOP].tolist()
    return [Ranked(names[i] if i < len(names) else str(i), i, float(probabilities[i])) for i in order]


def _softmax(logits: Float32) -> Float64:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: Float64 = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
