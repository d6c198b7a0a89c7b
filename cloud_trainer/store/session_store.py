"""The store of one session: its device's messages of the steps that it sends, and of its last evaluation.

steps/        a file for each micro-batch, as it came; torn or damaged files count as absent (`journal.py`)
evaluation/   a file for each message of the evaluation after the last of these steps
begun.json    the steps that the device told when the store began; absent in one of version 0.13
key           fingerprint of the key that they are sealed with; absent for a trainer without keys
whole.json    there once all of it is: from then on the trainer does the session's steps alone. It tells how many
              files there are, so that none can be missing unnoticed; a damaged one stays where it is
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.store.begun import BEGUN_FILE, BegunStore
from adc_edge.cloud_trainer.store.seal import StoreSeal
from adc_edge.errors import CheckpointError, ProtocolError
from adc_edge.files import json_bytes, make_directory, read_json, write_atomic
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.storage.position import MicroBatches, micro_batches_by_step
from adc_edge.storage.run_dir import WHOLE_FILE
from adc_edge.wire.fleet_messages import SentSteps
from adc_edge.wire.headers import pack_header, unpack_from_device
from adc_edge.wire.messages import Evaluate, Step

KEY_FILE = "key"


class WholeStore(msgspec.Struct, frozen=True):
    """Contents of whole.json: what a trainer must know of a session whose device is no longer needed."""

    device: str
    owner: str
    sent: int  # steps that the device has sent; those before ``first`` are not kept
    planned: int  # steps of the whole run
    evaluate_every: int
    micro_batches: tuple[tuple[int, int], ...] = ()  # first steps, each with the micro-batches of its steps
    parts: int = 0  # of the evaluation after them
    first: int | UnsetType = UNSET  # kept step; UNSET: 0

    @property
    def kept(self) -> range:
        """The steps whose messages are kept."""
        return range(self.first or 0, self.sent)


class SessionStore:
    """The messages of one session on disk.

    Args:
        directory: created if absent.
        session: the session's id.
        seal: encrypts them.
        check_room: told the size of a message before it is written; raises ProtocolError if there is no room.

    Raises:
        CheckpointError: a file of a whole store is missing or damaged, or the store began with another key.
        OSError: the directory cannot be created or read.
    """

    def __init__(
        self,
        directory: Path,
        session: int,
        seal: StoreSeal,
        check_room: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._directory, self._session, self._seal, self._check_room = directory, session, seal, check_room
        self._is_deleted, self._is_sealed = False, self._sealed()
        self.whole: WholeStore | None = None
        if (directory / WHOLE_FILE).exists():
            self.whole = read_json(directory / WHOLE_FILE, WholeStore, "what adc-edge wrote", "start over with --fresh")
        is_whole = self.whole is not None
        self.begun: BegunStore | None = None  # not noted, as by version 0.13
        if (directory / BEGUN_FILE).exists():
            self.begun = read_json(directory / BEGUN_FILE, BegunStore, "what adc-edge wrote", "start over with --fresh")
        self._steps = Journal(directory / "steps", is_whole)
        self._evaluation = Journal(directory / "evaluation", is_whole)
        self._check_whole()

    @property
    def held_bytes(self) -> int:
        """Size in bytes of all its messages."""
        return 0 if self._is_deleted else self._steps.held_bytes() + self._evaluation.held_bytes()

    def keep_step(self, message: Step, body: Body) -> None:
        """Keep a micro-batch; one that comes again replaces what came before.

        Raises:
            ProtocolError: code ``size``: the store is full.
            OSError: it cannot be written.
        """
        plain = msgspec.structs.replace(message, transfer=0, durable=None, replay=False, offset=0)
        self._keep(self._steps, JournalKey(message.step, message.micro_batch), plain, body)

    def keep_evaluation(self, message: Evaluate, body: Body) -> None:
        """Keep a part of the evaluation; the first part of another one replaces all. Raises as ``keep_step``."""
        if message.part == 0:
            self._evaluation.prune(message.step + 1)
        plain = msgspec.structs.replace(message, transfer=0, offset=0)
        self._keep(self._evaluation, JournalKey(message.step, part=message.part), plain, body)
        self._evaluation.sync()  # at once: no checkpoint of the trainer has to precede what the device does next

    def _keep(self, journal: Journal, key: JournalKey, message: Step | Evaluate, body: Body) -> None:
        header, sealed = self._seal.seal(pack_header(message), body)
        if not journal.has(key):
            self._check_room(memoryview(sealed).nbytes)
        journal.append(key, header, sealed)

    def micro_batches(self, step: int) -> int:
        """Return how many micro-batches a step of a whole store has; until then, how many are kept without a gap."""
        if self.whole is not None and step in self.whole.kept:
            return micro_batches_by_step(self.whole.micro_batches)(step)
        count = 0
        while self._steps.has(JournalKey(step, count)):
            count += 1
        return count

    def parts(self, step: int) -> int:
        """Return how many parts the evaluation after so many steps has; as ``micro_batches``."""
        if self.whole is not None and step == self.whole.sent:
            return self.whole.parts
        count = 0
        while self._evaluation.has(JournalKey(step, part=count)):
            count += 1
        return count

    def step(self, step: int, micro_batch: int) -> tuple[Step, memoryview]:
        """Return a micro-batch as it came; raises CheckpointError if it is damaged or cannot be decrypted."""
        message, body = self._read(self._steps, JournalKey(step, micro_batch))
        assert isinstance(message, Step), "kept so"
        return message, body

    def evaluation(self, step: int, part: int) -> tuple[Evaluate, memoryview]:
        """Return a part of the evaluation as it came; raises as ``step``."""
        message, body = self._read(self._evaluation, JournalKey(step, part=part))
        assert isinstance(message, Evaluate), "kept so"
        return message, body

    def _read(self, journal: Journal, key: JournalKey) -> tuple[object, memoryview]:
        kept = journal.read(key)
        if kept is None:
            raise self._missing(journal, key)
        path = journal.directory / key.file_name
        header, body = self._seal.open(path, *kept, in_clear=not self._is_sealed)
        message = unpack_from_device(header)
        if _place(message) != (self._session, key):
            raise CheckpointError(f"{path}: another message", "the one that was written there", "restore the file")
        return message, body

    def forget(self, start: int) -> None:
        """Drop the steps from ``start`` on, which come again; not once the store is whole: nobody would send them."""
        if self.whole is None:
            self._steps.forget(start)
            self._steps.drop_spares()

    def sync(self) -> None:
        """Make the steps survive a power cut; raises OSError."""
        self._steps.sync()

    def complete(self, whole: WholeStore, micro_batches: MicroBatches) -> None:
        """Note on disk that all is here, how much that is, and what is to be done with it.

        Args:
            whole: what is to be done; the numbers of messages are filled in.
            micro_batches: how many of them the device has told for each step.

        Raises:
            ProtocolError: code ``order``: a step or a part of it is missing.
            OSError: it cannot be written.
        """
        counts = {step: self._complete_step(step, micro_batches(step)) for step in whole.kept}
        missing = next((step for step, count in counts.items() if not count), None)
        if missing is not None:
            raise ProtocolError(
                f"the end of the device's steps, and step {missing} is not in the activation store",
                "all of them",
                "start both sides over with --fresh",
                "order",
            )
        self.sync()
        changes = tuple((step, count) for step, count in counts.items() if count != counts.get(step - 1))
        self._write(msgspec.structs.replace(whole, micro_batches=changes, parts=self.parts(whole.sent)))

    def check_reached(self, applied: int | None, is_kept: bool = True) -> None:
        """Raise CheckpointError if a trainer at step ``applied`` needs steps of its device that are not kept.

        Args:
            applied: in the newest whole checkpoint; None: it does not know the session.
            is_kept: whether there is a checkpoint at all.
        """
        if self.whole is None or (applied or 0) >= self.whole.kept.start:
            return
        first, stands = self.whole.kept.start, "no checkpoint is there"
        if is_kept:
            stands = "the newest whole checkpoint " + (
                "does not know this session" if applied is None else f"is of step {applied} of this session"
            )
        raise CheckpointError(
            f"{self._directory} has the steps from {first} on, and {stands}",
            f"a checkpoint of step {first} or later: the device's trunk still learned before (--freeze-after)",
            f"restore the checkpoint; or delete {self._directory} and start the same `serve` again: it sends what it "
            "still has, or says that both sides have to start over with --fresh",
        )

    def begin(self, sends: SentSteps) -> None:
        """Note on disk the steps that the device tells, if the store is new; raises OSError if that cannot be done."""
        if self.begun is None:
            begun = BegunStore(sends.first, sends.steps)
            write_atomic(self._directory / BEGUN_FILE, json_bytes(msgspec.to_builtins(begun)))
            self.begun = begun

    def lengthen(self, planned: int) -> None:
        """Change the length of the run of a whole store; raises OSError if it cannot be written."""
        assert self.whole is not None, "asked before"
        self._write(msgspec.structs.replace(self.whole, planned=planned))

    def _write(self, whole: WholeStore) -> None:
        write_atomic(self._directory / WHOLE_FILE, json_bytes(msgspec.to_builtins(whole)))
        self.whole = whole

    def _complete_step(self, step: int, told: int) -> int:
        """The number of a step's micro-batches; 0: one of them is missing."""
        kept = self.micro_batches(step)
        if kept and kept != told:  # the device may have told another number since
            try:
                told = self.step(step, 0)[0].micro_batches or told
            except CheckpointError:
                return 0
        return kept if kept == told else 0

    def _check_whole(self) -> None:
        """Raise CheckpointError unless each message of a whole store is there."""
        if self.whole is None:
            return
        for step in self.whole.kept:
            for micro_batch in range(self.micro_batches(step)):
                if not self._steps.has(key := JournalKey(step, micro_batch)):
                    raise self._missing(self._steps, key)
        for part in range(self.whole.parts):
            if not self._evaluation.has(key := JournalKey(self.whole.sent, part=part)):
                raise self._missing(self._evaluation, key)

    def _missing(self, journal: Journal, key: JournalKey) -> CheckpointError:
        return CheckpointError(
            f"{journal.directory / key.file_name}: missing or damaged",
            "a message of the device as it was written",
            f"restore the file; or delete {self._directory}, and start its device over with --fresh",
        )

    def delete(self) -> None:
        """Delete everything."""
        self.whole, self.begun, self._is_deleted = None, None, True
        (self._directory / WHOLE_FILE).unlink(missing_ok=True)  # first: what a kill leaves is then not whole
        shutil.rmtree(self._directory, ignore_errors=True)

    def _sealed(self) -> bool:
        """Whether the store began with a key, which has to be this trainer's; a new store notes its key."""
        make_directory(self._directory)
        self._directory.chmod(0o700)  # images can be guessed from activations
        path = self._directory / KEY_FILE
        if not (self._directory / "steps").exists() and self._seal.fingerprint:
            write_atomic(path, self._seal.fingerprint.encode())
        fingerprint = path.read_text() if path.exists() else ""
        self._seal.check(self._directory, fingerprint)
        return bool(fingerprint)


def _place(message: object) -> tuple[int, JournalKey] | None:
    """The session of a message and its place in it."""
    if isinstance(message, Step):
        return message.session, JournalKey(message.step, message.micro_batch)
    if isinstance(message, Evaluate):
        return message.session, JournalKey(message.step, part=message.part)
    return None
