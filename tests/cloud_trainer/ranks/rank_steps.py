"""Steps of made-up sessions, computed on a rank without a socket."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.learning.steps import RankSteps
from adc_edge.cloud_trainer.registry import RequestContext, SessionRegistry
from adc_edge.cloud_trainer.scheduling.merged import Merging
from adc_edge.cloud_trainer.scheduling.steps import StepRequest
from adc_edge.codec.precision import encode
from adc_edge.method.labels import label_triples
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.messages import Hello, Step


class RankOfSessions:
    """The steps of one rank's sessions; ``request`` makes one, ``learn`` has it answered."""

    def __init__(
        self,
        bundle: Bundle,
        training: HeadTraining,
        directory: Path,
        checkpoints: TrainerCheckpoints | None = None,
        sessions: SessionRegistry | None = None,
    ) -> None:
        self.bundle, self.training = bundle, training
        self.sessions = sessions or SessionRegistry(directory)
        self.checkpoints = checkpoints or TrainerCheckpoints(training, self.sessions)
        self.faults: list[str] = []
        self.steps = RankSteps(
            bundle.manifest,
            training,
            self.sessions,
            self.checkpoints,
            lambda kind, text: self.faults.append(text),
            Merging("sum"),
        )

    def open(self, number: int, planned: int = 0, micro_batches: int = 1) -> None:
        """Open a session."""
        told = (number, number, f"device-{number}", 0, 0, 0)
        hello = Hello(1, self.bundle.digest, *told, micro_batches=micro_batches, steps=planned)
        route = b"%d" % number
        self.sessions.peer(route, 5, "", lambda: Assembler(unpack_from_device, lambda message: 0))
        session = self.sessions.find(hello, "")
        session.resume(hello)
        self.sessions.open(session, route)

    def request(self, number: int, images: int = 8, part: int = 0, scale: float = 1.0) -> StepRequest:
        """The next message of a session, the same for the same session, step and part."""
        session = next(one for one in self.sessions if one.id == number)
        rng = np.random.default_rng([number, session.applied, part])
        assignment = np.arange(images, dtype=np.int64) % 4
        triples = label_triples(assignment, rng.integers(0, 10, images), 10)
        shape = (4, 7, self.bundle.manifest.dim)
        body = bytes(encode(scale * rng.standard_normal(shape).astype(np.float32), "fp32", triples.tobytes()))
        sizes = (images, *shape[:2], len(triples))
        step = Step(number, session.applied, part, 1 + part, len(body), *sizes, "fp32", "fp32")
        return session, step, memoryview(body), RequestContext(b"%d" % number, self.sessions.peers[b"%d" % number])

    def learn(self, number: int, images: int = 8, part: int = 0) -> None:
        """Answer the next message of a session."""
        self.steps.learn(*self.request(number, images, part))()
