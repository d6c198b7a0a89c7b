"""The speed of the head, measured in short pieces between the messages of devices, once in a process.

Nothing that a run depends on changes: no weight, no gradient, no optimizer state, no state of a random generator.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.codec.on_device import decode_to, encode_from
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.codec.precision import PRECISIONS, encoded_bytes
from adc_edge.errors import ProtocolError
from adc_edge.optimizer.torch_optimizer import Optimizer
from adc_edge.planning.profile import CodecSeconds, Line, TrainerProfile
from adc_edge.planning.timing import line, timed
from adc_edge.storage.bundle import Manifest

_PIECE_S = 0.1  # of work after which messages are answered again
_LONGEST_S = {True: 1.5, False: 0.3}  # of one run of the head: no other device is connected, or some are
_SIZES = 3  # the largest ones that are measured
_ROUNDS, _HEAD_S, _CODEC_S, _UPDATE_S = 3, 4.0, 3.0, 1.0
_FAULT = 300  # characters
_SPECTRUM = -0.3  # exponent of a component's deviation by its rank, like that of a ViT's activations

logger = logging.getLogger(__name__)


class HeadSpeed:
    """The speed of a head, as a Pong tells it.

    Args:
        training: the head and its optimizer's settings.
        manifest: the bundle's.
    """

    def __init__(self, training: HeadTraining, manifest: Manifest) -> None:
        self._training, self._manifest = training, manifest
        self._work: Generator[None, None, TrainerProfile] | None = None
        self._told: dict[str, Any] | None = None

    def tell(self, alone: bool) -> dict[str, Any]:
        """Work on the measurement for a moment, and return the fields of a Pong: speed, not ready, or why not.

        Args:
            alone: no device has a session, so that a run of the head may take longer. Then it has more rows, and tells
                more of large messages.
        """
        if self._told is None:
            self._work = self._work or measure_head(self._training, self._manifest, _LONGEST_S[alone])
            try:
                with _untouched(self._training):
                    _work_on(self._work)
            except StopIteration as end:
                self._told = {"head": end.value}
            except (RuntimeError, MemoryError, ArithmeticError, ProtocolError) as error:  # or a head that diverged
                why = str(error).partition("\n")[0] or type(error).__name__
                logger.warning("the speed of the head cannot be measured: %s", why)
                self._told = {"fault": why[:_FAULT]}
        return {"measuring": True} if self._told is None else self._told


def _work_on(work: Generator[None, None, TrainerProfile]) -> None:
    """Do pieces for a moment; raises StopIteration with the result."""
    end = time.perf_counter() + _PIECE_S
    while time.perf_counter() < end:
        next(work)


@contextmanager
def _untouched(training: HeadTraining) -> Generator[None, None, None]:
    """Restore the random generators and the head's mode, which learning sets."""
    mode, cuda = training.head.training, [training.device] if training.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield
    training.head.train(mode)


def measure_head(training: HeadTraining, manifest: Manifest, longest_s: float) -> Generator[None, None, TrainerProfile]:
    """Measure a head. Yields after each short piece of work, and returns its speed.

    Args:
        training: the head; it stays as it is.
        manifest: the bundle's; its batch is the largest message that is tried.
        longest_s: about the longest run of the head.
    """
    training = training.eager()
    shape = manifest.ratio.shape(manifest.batch_size, manifest.tokens, manifest.prefix)
    clusters, gradients = 1, dict[int, Tensor]()
    cases: dict[float, Callable[[], object]] = {}
    while True:
        z = _activations(clusters * shape.kept, manifest.dim).reshape(clusters, shape.kept, -1).to(training.device)
        soft = np.full((clusters, manifest.classes), 1 / manifest.classes, np.float32)
        learned = training.learn(z, soft, True, StepAccumulator(1))
        yield
        assert learned.gradient is not None
        gradients[clusters] = learned.gradient
        cases[clusters * shape.kept] = lambda z=z, soft=soft: training.learn(z, soft, True, StepAccumulator(1))  # type: ignore[misc]
        if len(cases) > _SIZES:
            del cases[min(cases)], gradients[min(gradients)]
        if clusters == shape.clusters or learned.seconds > longest_s / 3:
            break
        clusters = min(2 * clusters, shape.clusters)
    largest = sorted(cases)
    step = line((yield from timed({rows: cases[rows] for rows in largest}, _ROUNDS, _HEAD_S)))
    codec = yield from _codec(training, list(gradients.values()), manifest.dim)
    update_seconds = yield from _update(training)
    return TrainerProfile(
        device=f"{training.device}{', bf16' if training.bf16 else ''}",
        split=manifest.split,
        step=step,
        update_seconds=update_seconds,
        codec=codec,
        depth=manifest.depth,
        cores=os.cpu_count() or 0,
        rows=int(largest[-1]),
    )


def _codec(training: HeadTraining, gradients: list[Tensor], dim: int) -> Generator[None, None, dict[str, CodecSeconds]]:
    """Seconds to decode activations and to encode gradients, by rows, on the head's device."""
    cases: dict[tuple[str, str, int], Callable[[], object]] = {}
    for gradient in (gradients[0], gradients[-1]):
        rows = gradient.shape[0] * gradient.shape[1]
        x = _activations(rows, dim).reshape(gradient.shape).to(training.device)  # [T, k, D]: dct works on the grid
        for precision in PRECISIONS:
            data = bytes(encode_from(x, precision))
            assert len(data) == encoded_bytes(tuple(x.shape), precision)
            cases["decode", precision, rows] = lambda d=data, p=precision, s=tuple(x.shape): decode_to(  # type: ignore[misc]
                training.device, d, s, p
            )
            cases["encode", precision, rows] = lambda g=gradient, p=precision: encode_from(g, p)  # type: ignore[misc]
            yield
    found = yield from timed(cases, _ROUNDS, _CODEC_S)

    def by_rows(way: str, precision: str) -> Line:
        return line({rows: s for (w, p, rows), s in found.items() if (w, p) == (way, precision)})

    return {p: CodecSeconds(by_rows("encode", p), by_rows("decode", p)) for p in PRECISIONS}


def _update(training: HeadTraining) -> Generator[None, None, float]:
    """Seconds of the optimizer, from a step of copies of one block's parameters: it takes each value alike."""
    part = copy.deepcopy(training.head.vit.blocks[-1]).requires_grad_(True)
    optimizer = Optimizer(part, training.optimizer.settings)

    def update() -> None:
        for parameter in part.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(0, 0)
        if training.device.type == "cuda":
            torch.cuda.synchronize(training.device)

    found = yield from timed({"update": update}, _ROUNDS, _UPDATE_S)
    whole, measured = (
        sum(p.numel() for p in module.parameters() if p.requires_grad) for module in (training.head, part)
    )
    return found["update"] * whole / max(measured, 1)


def _activations(rows: int, dim: int) -> Tensor:
    """Rows whose components have the spectrum of activations, on which the codec's work depends, ``[rows, dim]``."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((dim, dim), np.float32))[0]
    deviations = (np.arange(1, dim + 1) ** _SPECTRUM).astype(np.float32)
    return torch.from_numpy(rng.standard_normal((rows, dim), np.float32) * deviations @ basis)
