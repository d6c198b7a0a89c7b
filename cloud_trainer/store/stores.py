"""The activation stores of all sessions of one trainer: who may have one, how much they hold, what a restart finds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from rich.filesize import decimal

from adc_edge.cloud_trainer.store.seal import StoreSeal
from adc_edge.cloud_trainer.store.session_store import SessionStore, WholeStore
from adc_edge.errors import ProtocolError
from adc_edge.storage.run_dir import WHOLE_FILE
from adc_edge.wire.messages import Hello

logger = logging.getLogger(__name__)


class ActivationStores:
    """The stores of a trainer.

    Args:
        directory: holds a directory for each session; None: this trainer keeps none.
        most_bytes: of all of them together.
        seal: encrypts them.
        why_none: why it keeps none.
        augments: options that augment what is kept, in the steps done alone.
    """

    def __init__(
        self,
        directory: Path | None = None,
        most_bytes: float = 0.0,
        seal: StoreSeal | None = None,
        why_none: str = "several ranks under torchrun, or no run directory (--run)",
        augments: str = "",
    ) -> None:
        self._directory, self._most_bytes, self._why_none = directory, most_bytes, why_none
        self._augments = augments
        self._seal = seal or StoreSeal()
        self._open: dict[int, SessionStore] = {}
        self._told: dict[int, int] = {}  # bytes that their devices have told

    def check(self, hello: Hello) -> None:
        """Admit the wish to send each image once, if the Hello has it.

        Raises:
            ProtocolError: code ``shape``: this trainer keeps no messages, or there is none to be kept; ``size``: there
                is no room for so many.
        """
        if not hello.sends:
            return
        if hello.sends.first >= hello.sends.steps:
            raise ProtocolError(
                f"a device that sends {hello.sends.steps} steps, with a trunk frozen from step {hello.sends.first} on",
                "a step at least with a frozen trunk",
                "install the same version of adc-edge on both sides",
                "shape",
            )
        if self._directory is None:
            raise ProtocolError(
                "a device that sends its images once (--send-epochs)",
                f"a trainer that can keep them; this one has {self._why_none}",
                "change that on the trainer, or start `adc-edge serve` without --send-epochs",
                "shape",
            )
        beside = {number: store.held_bytes for number, store in self._open.items() if number != hello.session}
        others = sum(map(self._reserved, beside))
        to_come = sum(max(0, self._reserved(number) - held) for number, held in beside.items())
        own = self._open[hello.session].held_bytes if hello.session in self._open else 0
        free = shutil.disk_usage(self._directory.parent).free + own - to_come
        left = max(0.0, min(self._most_bytes - others, free))
        if hello.sends.bytes > left:
            raise ProtocolError(
                f"a device that sends about {decimal(hello.sends.bytes)} to be kept (--send-epochs)",
                f"{decimal(int(left))} at most: what --store-max {decimal(int(self._most_bytes))} and the disk leave",
                "raise the trainer's --store-max, free disk space, or choose a lower --precision on the device",
                "size",
            )

    def tell_unused(self, hello: Hello) -> None:
        """Warn of options that change what is kept, if nothing of this device is."""
        if self._augments and not hello.sends:
            text = "device %r leaves no step to this trainer (serve --send-epochs): %s changes nothing of its training"
            logger.warning(text, hello.device, self._augments)

    def begin(self, hello: Hello) -> SessionStore:
        """Return the store of a session, new or not, whose wish ``check`` has admitted."""
        assert hello.sends, "checked"
        self._told[hello.session] = hello.sends.bytes
        store = self._at(hello.session)
        store.begin(hello.sends)
        return store

    def known(self, session: int, applied: int) -> SessionStore | None:
        """Return the store that a process before this one has left, up to the steps applied; None: there is none.

        Raises:
            CheckpointError: as of SessionStore.
        """
        if self._directory is None or not self._path(session).is_dir():
            return None
        store = self._at(session)
        store.forget(applied)
        return store

    def check_reached(self, applied: Mapping[int, int] | None) -> None:
        """Check that a trainer can go on from a checkpoint with the whole stores; nothing is changed.

        Args:
            applied: steps of each session in it; None: there is no checkpoint.

        Raises:
            CheckpointError: a store begins after it; or as of SessionStore.
        """
        for session, _ in self.whole():
            self._at(session).check_reached((applied or {}).get(session), applied is not None)

    def delete_others(self, sessions: Collection[int]) -> None:
        """Delete what is left of sessions that no checkpoint knows and that are not whole: their devices begin anew."""
        known = {self._path(session).name for session in sessions} if self._directory is not None else set()
        for path in self._directory.glob("*") if self._directory is not None else ():
            if path.name not in known and not (path / WHOLE_FILE).exists():
                shutil.rmtree(path, ignore_errors=True)
                self._open.pop(int(path.name, 16), None)

    def whole(self) -> Iterator[tuple[int, WholeStore]]:
        """Yield the number of each session on disk whose device is no longer needed, and what is known of it."""
        for path in sorted(self._directory.glob(f"*/{WHOLE_FILE}")) if self._directory is not None else ():
            session = int(path.parent.name, 16)
            if (found := self._at(session).whole) is not None:
                yield session, found

    def _at(self, session: int) -> SessionStore:
        """The store of a session: the one in use, unless it was deleted."""
        if session not in self._open or not self._path(session).is_dir():
            self._open[session] = SessionStore(self._path(session), session, self._seal, self._check_room)
        return self._open[session]

    def _reserved(self, session: int) -> int:
        """Size in bytes that a session has or will have; 0 once its store is deleted."""
        store = self._open[session]
        if not self._path(session).is_dir():
            return 0
        return store.held_bytes if store.whole is not None else max(store.held_bytes, self._told.get(session, 0))

    def _path(self, session: int) -> Path:
        assert self._directory is not None, "checked"
        return self._directory / f"{session:016x}"

    def _check_room(self, size: int) -> None:
        held = sum(store.held_bytes for store in self._open.values())
        if held + size > self._most_bytes:
            raise ProtocolError(
                f"a message of {decimal(size)} to be kept (--send-epochs), beside {decimal(held)}",
                f"--store-max {decimal(int(self._most_bytes))} at most",
                "start the trainer with a larger --store-max; both sides then go on",
                "size",
            )
