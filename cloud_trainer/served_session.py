"""One device's session on the trainer: the steps applied, and the log of the answers given."""

from __future__ import annotations

import shutil
from collections import OrderedDict, deque
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.store.sending import lengthen, steps_stored
from adc_edge.cloud_trainer.store.session_store import SessionStore, WholeStore
from adc_edge.errors import ProtocolError
from adc_edge.storage.journal import Journal, JournalKey, oldest
from adc_edge.storage.position import micro_batches_by_step
from adc_edge.wire.fleet_messages import DeviceNeeds, SentSteps
from adc_edge.wire.framing import Assembler
from adc_edge.wire.headers import pack_header, unpack_from_trainer
from adc_edge.wire.messages import Evaluated, FromDevice, Gradient, Hello, Step

_INCARNATIONS = 16
_CUTS = 256  # changes of M that are remembered; steps before them have left the log long ago

LoggedAnswer = tuple[Gradient | Evaluated, Body]


class SessionRecord(msgspec.Struct):
    """The part of a session that a checkpoint keeps."""

    device: str
    owner: str  # public key, or "" without keys
    applied: int
    finished: bool = False
    planned: int = 0  # length of the device's run in steps; 0: not known
    images: int = 0  # in the steps that were applied
    head_step: int | None = None  # steps that the head had learned with its last one; None: not known


class ServedSession:
    """One device's training, over all its connections and incarnations.

    Args:
        number: the session's id.
        record: the session as the last checkpoint knew it.
        directory: directory of its log, which is opened when a device first speaks for the session.
        store: keeps its messages; None: its device sends every step itself.
    """

    def __init__(self, number: int, record: SessionRecord, directory: Path, store: SessionStore | None = None) -> None:
        self.id, self.record, self._directory, self.store = number, record, directory, store
        if store is not None and store.whole is not None:
            record.planned = store.whole.planned  # a checkpoint may be older
        self.sends: SentSteps | UnsetType = UNSET  # that its device told
        self.parted = False  # this process has told the device that it is needed no more
        self.needs: DeviceNeeds | UnsetType = UNSET  # that its device told
        self._cuts: list[tuple[int, int]] = [(0, 1)]  # first steps, each with the micro-batches of its steps
        self.device_keeps = True  # the device keeps its run on disk, so it may ask for any answer of the log
        self.accumulator: StepAccumulator | None = None  # sums of the step under way
        self.inbox: Assembler[FromDevice] | None = None
        self._log: Journal | None = None
        # The newest answer, and those of the last step that could not be written to the log.
        self._recent: OrderedDict[JournalKey, LoggedAnswer] = OrderedDict()
        self._incarnations: deque[int] = deque(maxlen=_INCARNATIONS)  # the last one may speak

    @property
    def applied(self) -> int:
        """Number of steps applied."""
        return self.record.applied

    @property
    def planned_steps(self) -> int:
        """Length of the device's run in steps; 0: not known."""
        return self.record.planned

    @property
    def learned(self) -> int:
        """Number of micro-batches learned of the step under way."""
        return 0 if self.accumulator is None else self.accumulator.learned

    @property
    def goes_on_alone(self) -> bool:
        """Whether all steps that are left are done without its device."""
        return self.store is not None and self.store.whole is not None and not self.record.finished

    @property
    def whole_store(self) -> WholeStore:
        """The content of the store of a session that goes on alone."""
        whole = None if self.store is None else self.store.whole
        assert whole is not None, "it goes on alone"
        return whole

    @property
    def log(self) -> Journal:
        """Answers that the device may still ask for."""
        if self._log is None:
            self._log = Journal(self._directory)
            self._log.forget(self.applied)  # answers to steps that did not reach the checkpoint
        return self._log

    def resume(self, hello: Hello) -> None:
        """Take the session up where a device's Hello says that the device stands.

        Raises:
            ProtocolError: ``superseded``: a newer process has spoken for the session; ``history``: the device is older
                than the log reaches back; ``order``: the step under way has another number of micro-batches.
        """
        if hello.incarnation in self._incarnations and hello.incarnation != self._incarnations[-1]:
            raise ProtocolError(
                "a Hello of an older process",
                "one process for each session",
                "another `adc-edge serve` has taken this run over; stop one of the two",
                "superseded",
            )
        if steps_stored(self, hello):  # nothing is needed of the device, wherever it stands
            lengthen(self, hello.steps)
            self.sends = hello.sends
            if hello.incarnation not in self._incarnations:
                self._incarnations.append(hello.incarnation)
            return
        self.sends = hello.sends
        cuts = [(0, hello.micro_batches), *(hello.changes or [])]
        self._check_cut(micro_batches_by_step(cuts)(self.applied))
        self._cuts = cuts
        if hello.next_step < self.applied and self.oldest() > hello.next_step:
            raise ProtocolError(
                f"a device at step {hello.next_step}",
                f"step {self.oldest()} or later: the log of answers does not reach further back",
                "restore the device's newer checkpoint, or start both sides over with --fresh",
                "history",
            )
        if hello.incarnation not in self._incarnations:
            self._incarnations.append(hello.incarnation)
        self.record.planned, self.device_keeps, self.needs = hello.steps, hello.durable is not None, hello.needs
        self.prune(hello.durable)
        self.record.device = hello.device
        if hello.next_step < hello.steps:  # also of a run that had come to its end, and goes on with more steps
            self.record.finished = False

    def difference(self, hello: Hello) -> str:
        """The difference between the steps of both sides, in words."""
        if self.applied == hello.next_step:
            return ""
        if self.applied > hello.next_step:
            return f" (applied here: {self.applied}; it fetches the answers it lacks)"
        return f" (applied here: {self.applied}; its journal brings this head forward)"

    def micro_batches_of(self, message: Step) -> int:
        """The number of micro-batches of a message's step: as it tells, or as the Hello told."""
        return message.micro_batches or self.micro_batches(message.step)

    def micro_batches(self, step: int) -> int:
        """The number of micro-batches of a step, as the device has told."""
        return micro_batches_by_step(self._cuts)(step)

    def _check_cut(self, count: int) -> None:
        """Raise ProtocolError if the step under way began with another number of micro-batches."""
        if self.learned and self.accumulator is not None and self.accumulator.micro_batches != count:
            raise ProtocolError(
                f"steps of {count} micro-batches",
                f"{self.accumulator.micro_batches}, as the step under way began",
                "use the --micro-batches that the run began with",
                "order",
            )

    def share_inbox(self, inbox: Assembler[FromDevice]) -> Assembler[FromDevice]:
        """The inbox with the session's message in progress; ``inbox`` becomes it if there is none."""
        self.inbox = self.inbox or inbox
        return self.inbox

    def supersede(self) -> None:
        """Refuse the process that has spoken for this session from now on."""
        self._incarnations.append(-1)

    def oldest(self) -> int:
        """The first step from which on every answer can be given again."""
        return oldest(lambda key: key in self._recent or self.log.has(key), self.applied, self.micro_batches)

    def due(self, key: JournalKey, micro_batches: int | UnsetType = UNSET) -> bool:
        """Whether a micro-batch is the next one to learn; False: it was learned and is answered again.

        Args:
            key: of the micro-batch.
            micro_batches: of its step; UNSET: as the Hello told.

        Raises:
            ProtocolError: code ``order``: it is neither, or its step began with another number of them.
        """
        if key == JournalKey(self.applied, self.learned):
            count = micro_batches or self.micro_batches(self.applied)
            self._check_cut(count)
            if key.micro_batch < count:
                return True
        if self.answer(key) is not None:
            return False
        raise ProtocolError(
            f"micro-batch {key.micro_batch} of step {key.step}",
            f"micro-batch {self.learned} of step {self.applied}",
            "restart `adc-edge serve`; it resumes",
            "order",
        )

    def is_next_step(self, message: Step) -> bool:
        """Whether a message is the whole of the next step."""
        if message.session != self.id or JournalKey(message.step, message.micro_batch) != JournalKey(self.applied):
            return False
        return not self.learned and (message.micro_batches or self.micro_batches(self.applied)) == 1

    def begin_step(self, micro_batches: int | UnsetType = UNSET) -> StepAccumulator:
        """The sums of the step under way, which begins if nothing of it is learned; ``micro_batches`` as in ``due``."""
        if self.accumulator is None or not self.learned:
            self.accumulator = StepAccumulator(micro_batches or self.micro_batches(self.applied))
        return self.accumulator

    def record_answer(self, reply: Gradient, body: Body) -> None:
        """Count a micro-batch that was learned, and keep its answer; the last one ends its step."""
        if self.accumulator is not None and self.accumulator.micro_batches != self.micro_batches(self.applied):
            earlier = [cut for cut in self._cuts[-_CUTS:] if cut[0] < self.applied]
            self._cuts = [*earlier, (self.applied, self.accumulator.micro_batches)]
        if self.accumulator is None or self.accumulator.complete:
            self.accumulator = None
            self.record.applied = reply.step + 1
        self.record.finished = False
        self.keep(JournalKey(reply.step, reply.micro_batch), reply, body)

    def keep(self, key: JournalKey, reply: Gradient | Evaluated, body: Body = b"") -> None:
        """Keep an answer, in memory until ``write``."""
        self._recent[key] = (reply, body)
        self._recent.move_to_end(key)
        while len(self._recent) > max(map(self.micro_batches, (self.applied - 1, self.applied))):
            self._recent.popitem(last=False)

    def write(self) -> None:
        """Write the newest answers to the log, unless the device keeps no run on disk; raises OSError."""
        if not self.device_keeps:
            return
        for key, (reply, body) in self._recent.items():
            if not self.log.has(key):
                self.log.append(key, pack_header(reply), body)
        while len(self._recent) > 1:
            self._recent.popitem(last=False)

    def answer(self, key: JournalKey) -> LoggedAnswer | None:
        """The answer that was given under ``key``; None if it is not kept or was never given."""
        if key in self._recent:
            return self._recent[key]
        kept = self.log.read(key)
        if kept is None:
            return None
        message = unpack_from_trainer(kept[0])
        return (message, kept[1]) if isinstance(message, Gradient | Evaluated) else None

    def prune(self, durable: int | None) -> None:
        """Drop answers to steps before ``durable``, which the device cannot lose; None: it cannot come back at all."""
        self.log.prune(self.applied if durable is None else min(durable, self.applied))

    def end_step(self, head_step: int, images: int) -> None:
        """Count a step that was learned without the device; the head has ``head_step`` steps with it."""
        self.accumulator = None
        self.record.applied += 1
        self.record.images += images
        self.record.head_step = head_step

    def sync(self) -> None:
        """Flush log and store to disk if they are open; raises OSError."""
        if self.store is not None:
            self.store.sync()
        if self._log is not None:
            self._log.sync()

    def forget(self) -> None:
        """Delete the log and the store, and what is in memory of the step under way."""
        if self.store is not None:
            self.store.delete()
        self.store = None
        self._log = self.accumulator = self.inbox = None
        self._recent.clear()
        shutil.rmtree(self._directory, ignore_errors=True)
