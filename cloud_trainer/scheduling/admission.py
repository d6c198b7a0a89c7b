"""Admission of new sessions: by their number, by memory, and by the head's time. A known session is never refused.

A session whose log is there is not new, even where a trainer that was killed has lost it. What a device tells of
itself does not count.
"""

from __future__ import annotations

from rich.filesize import decimal

from adc_edge.cloud_trainer.link.share import TrainerLoad
from adc_edge.cloud_trainer.record.presence import SessionPresence
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.scheduling.room import Room
from adc_edge.cloud_trainer.served_session import ServedSession
from adc_edge.errors import ProtocolError
from adc_edge.wire.messages import Hello

_PARTS = 4  # of the memory: the largest that is kept free for one session


class Admission:
    """Decides whether there is room for one more session. Only connected ones take room.

    A device that tells no needs is admitted as far as ``max_devices`` allows.

    Args:
        sessions: all sessions.
        presence: tells which of them are connected.
        load: tells the head's time that a new one may expect.
        max_devices: connected sessions at most; 0: any number.
        most_bytes: size in bytes of all messages that may be held at once.
        change_bytes: size in bytes of the change of a trunk, which each device may have held beside its messages.
    """

    def __init__(
        self,
        sessions: SessionRegistry,
        presence: SessionPresence,
        load: TrainerLoad,
        max_devices: int,
        most_bytes: int,
        change_bytes: int = 0,
    ) -> None:
        self._sessions, self._presence, self._load = sessions, presence, load
        self._max_devices, self._most_bytes, self._change_bytes = max_devices, most_bytes, change_bytes

    def room(self) -> Room:
        """Return the room for new devices: ``check`` refuses those that it does not fit."""
        present, (part, seconds) = self._present(), self._load.offer()
        devices = max(0, self._max_devices - len(present)) if self._max_devices else None
        return Room(devices, self._most_bytes - sum(map(self._held_for, present)) - self._change_bytes, part, seconds)

    def _present(self) -> list[ServedSession]:
        return [one for one in self._sessions if self._presence.connected(one.id)]

    def check(self, hello: Hello) -> None:
        """Admit the session that a Hello names.

        Raises:
            ProtocolError: code ``busy``: it is a new one, and there is no room for it now.
        """
        if self._sessions.has_served(hello.session):
            return
        present = self._present()
        if 0 < self._max_devices <= len(present):
            connected = f"{len(present)} device{'s are' if len(present) > 1 else ' is'} connected"
            raise _busy(f"one more device, and {connected}", f"--max-devices {self._max_devices} at most")
        if not (needs := hello.needs):
            return
        held, wanted = sum(map(self._held_for, present)), needs.largest_bytes + self._change_bytes
        if held + wanted > self._most_bytes:
            largest, left = decimal(wanted), decimal(max(0, self._most_bytes - held))
            raise _busy(f"a device with messages of {largest}", f"{left} at most beside the other devices' messages")
        if needs.step_seconds:
            self._check_time(hello.micro_batches, needs.step_seconds)

    def _held_for(self, session: ServedSession) -> int:
        """Size in bytes that a connected session may have held; a device that tells too much keeps nobody out."""
        told = session.needs.largest_bytes if session.needs else 0
        return min(told, self._most_bytes // _PARTS) + self._change_bytes

    def _check_time(self, micro_batches: int, step_seconds: float) -> None:
        """Raise ProtocolError if the head has less time left than a step of so many messages takes."""
        part, seconds = self._load.offer()
        wanted = micro_batches * seconds / step_seconds
        if wanted > part:
            raise _busy(
                f"a device that needs {100 * wanted:.0f} % of the head's time for a step in {step_seconds:.3g} s",
                f"{100 * part:.0f} %, which the other devices leave it",
            )


def _busy(received: str, expected: str) -> ProtocolError:
    return ProtocolError(received, expected, "it tries again; let others finish, or start another trainer", "busy")
