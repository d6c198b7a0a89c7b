"""One device's training: how far it has come here, and the log of what it was answered."""

from __future__ import annotations

import shutil
from collections import OrderedDict, deque
from pathlib import Path

import msgspec

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.errors import ProtocolError
from adc_edge.storage.journal import Journal, JournalKey, oldest
from adc_edge.wire.framing import Assembler
from adc_edge.wire.messages import Evaluated, FromDevice, Gradient, Hello, pack_header, unpack_from_trainer

_INCARNATIONS = 16

LoggedAnswer = tuple[Gradient | Evaluated, Body]


class SessionRecord(msgspec.Struct):
    """What a checkpoint keeps of a session."""

    device: str
    owner: str  # public key, or "" without keys
    applied: int
    finished: bool = False


class ServedSession:
    """One device's training, over as many connections and lives as it takes.

    Args:
        number: the session's id.
        standing: what is known of it.
        directory: of its log, which is opened when a device first speaks for it.
    """

    def __init__(self, number: int, standing: SessionRecord, directory: Path) -> None:
        self.id, self.standing, self._directory = number, standing, directory
        self.planned_steps, self.micro_batches = 0, 1
        self.device_keeps = True  # its run on disk, so that it may come back for any answer of the log
        self.begun: StepAccumulator | None = None  # the step that is under way
        self.route: bytes | None = None
        self.inbox: Assembler[FromDevice] | None = None
        self._log: Journal | None = None
        # The newest stays in memory, and of a step's answers those that a full disk has kept out of the log.
        self._recent: OrderedDict[JournalKey, LoggedAnswer] = OrderedDict()
        self._incarnations: deque[int] = deque(maxlen=_INCARNATIONS)  # of the device's processes, the last one speaks

    @property
    def applied(self) -> int:
        """Steps applied."""
        return self.standing.applied

    @property
    def learned(self) -> int:
        """Micro-batches of the step that is under way."""
        return 0 if self.begun is None else self.begun.done

    @property
    def log(self) -> Journal:
        """Answers that the device may still ask for."""
        if self._log is None:
            self._log = Journal(self._directory)
            self._log.forget(self.applied)  # of a life whose steps did not reach the checkpoint
        return self._log

    def greet(self, hello: Hello) -> None:
        """Take a Hello.

        Raises:
            ProtocolError: ``superseded``: a newer process has spoken for the session; ``history``: the device is older
                than the log reaches back; ``order``: it cuts its steps otherwise than before.
        """
        if hello.incarnation in self._incarnations and hello.incarnation != self._incarnations[-1]:
            raise ProtocolError(
                "a Hello of an older process",
                "one process for each session",
                "another `adc-edge serve` has taken this run over; stop one of the two",
                "superseded",
            )
        if self.begun is not None and self.begun.of != hello.micro_batches:
            raise ProtocolError(
                f"steps of {hello.micro_batches} micro-batches",
                f"{self.begun.of}, as the step under way began",
                "use the --micro-batches that the run began with",
                "order",
            )
        self.micro_batches = hello.micro_batches
        if hello.next_step < self.applied and self.oldest() > hello.next_step:
            raise ProtocolError(
                f"a device at step {hello.next_step}",
                f"step {self.oldest()} or later: the log of answers does not reach further back",
                "restore the device's newer checkpoint, or start both sides over with --fresh",
                "history",
            )
        if hello.incarnation not in self._incarnations:
            self._incarnations.append(hello.incarnation)
        self.planned_steps, self.device_keeps = hello.steps, hello.durable is not None
        self.prune(hello.durable)

    def supersede(self) -> None:
        """The process that spoke for this session no longer may."""
        self._incarnations.append(-1)

    def oldest(self) -> int:
        """The first step from which on every answer is here."""
        return oldest(lambda key: key in self._recent or self.log.has(key), self.applied, self.micro_batches)

    def due(self, key: JournalKey) -> bool:
        """Whether a micro-batch is to be learned (True) or was learned and is to be answered again (False).

        Raises:
            ProtocolError: code ``order``: neither.
        """
        if key == JournalKey(self.applied, self.learned) and key.micro_batch < self.micro_batches:
            return True
        if self.answer(key) is not None:
            return False
        raise ProtocolError(
            f"micro-batch {key.micro_batch} of step {key.step}",
            f"micro-batch {self.learned} of step {self.applied}",
            "restart `adc-edge serve`; it resumes",
            "order",
        )

    def begin(self) -> StepAccumulator:
        """What the micro-batches of the step under way have given so far."""
        if self.begun is None:
            self.begun = StepAccumulator(self.micro_batches)
        return self.begun

    def answered(self, reply: Gradient, body: Body) -> None:
        """A micro-batch has been learned; keep its answer. The last one ends its step."""
        if self.begun is None or self.begun.complete:
            self.begun = None
            self.standing.applied = reply.step + 1
        self.standing.finished = False
        self.keep(JournalKey(reply.step, reply.micro_batch), reply, body)

    def keep(self, key: JournalKey, reply: Gradient | Evaluated, body: Body = b"") -> None:
        """Keep an answer, in memory until ``write``."""
        self._recent[key] = (reply, body)
        self._recent.move_to_end(key)
        while len(self._recent) > self.micro_batches:
            self._recent.popitem(last=False)

    def write(self) -> None:
        """Put the newest answers in the log, for a device that could come back for them; raises OSError."""
        if not self.device_keeps:
            return
        for key, (reply, body) in self._recent.items():
            if not self.log.has(key):
                self.log.append(key, pack_header(reply), body)
        while len(self._recent) > 1:
            self._recent.popitem(last=False)

    def answer(self, key: JournalKey) -> LoggedAnswer | None:
        """The answer that was given; None if it is not here (any more)."""
        if key in self._recent:
            return self._recent[key]
        kept = self.log.read(key)
        if kept is None:
            return None
        message = unpack_from_trainer(kept[0])
        return (message, kept[1]) if isinstance(message, Gradient | Evaluated) else None

    def prune(self, durable: int | None) -> None:
        """The device will never come back older than ``durable``; None: not at all."""
        self.log.prune(self.applied if durable is None else min(durable, self.applied))

    def forget(self) -> None:
        """Drop the log for good."""
        self._log = self.begun = None
        self._recent.clear()
        shutil.rmtree(self._directory, ignore_errors=True)
