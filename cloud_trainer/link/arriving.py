"""The bodies that devices begin to send: how large each is, and whether there is room for it."""

from __future__ import annotations

from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.inference.answers import Inference
from adc_edge.cloud_trainer.limits import MessageLimits
from adc_edge.cloud_trainer.link.probes import LinkProbes
from adc_edge.cloud_trainer.registry import Peer, SessionRegistry, outside_session
from adc_edge.errors import ProtocolError
from adc_edge.wire.fleet_messages import TrunkDelta
from adc_edge.wire.link_messages import Bulk, Ping
from adc_edge.wire.messages import FromDevice

_PARTS_OF_BULK = 4  # padding may take one of so many parts of the bytes, so that there is room for steps


class ArrivingBodies:
    """Admits the bodies of messages.

    Args:
        limits: of a message.
        fleet: knows the size of a trunk's change, and has bodies of its own.
        sessions: they have the other bodies.
        probes: told of measurements of a link.
        most_bytes: of all bodies together.
    """

    def __init__(
        self, limits: MessageLimits, fleet: DeviceFleet, sessions: SessionRegistry, probes: LinkProbes, most_bytes: int
    ) -> None:
        self._limits, self._fleet, self._sessions = limits, fleet, sessions
        self._probes, self.most_bytes = probes, most_bytes
        self.inference = Inference()  # --serve-only: with a head
        self.speaker: Peer | None = None  # the sender of the message that is being read

    def body_bytes(self, message: FromDevice) -> int:
        """Return the size in bytes of the body that follows a header.

        Raises:
            ProtocolError: the message is malformed or too large; ``unknown-device``: its sender has said no Hello;
                ``busy``: there is no room for it now.
        """
        of_inference = self.inference.body_bytes(message, self._limits)
        if of_inference is not None:
            size = of_inference
        elif isinstance(message, TrunkDelta):
            size = self._fleet.body_bytes(message)
        else:
            size = self._limits.body_bytes(message)
        session = None if self.speaker is None else self.speaker.session
        if isinstance(message, Bulk):
            self._probes.begin(self.speaker)
        elif size == 0 or isinstance(message, Ping):
            return size
        elif of_inference is None and session is None:
            raise outside_session(message)
        most = self.most_bytes // (_PARTS_OF_BULK if isinstance(message, Bulk) else 1) - self._fleet.held_bytes()
        if getattr(message, "offset", 0) == 0 and not self._sessions.make_room(size, most, session):
            raise ProtocolError(
                f"{size} bytes more than can be held now", "fewer messages at once", "try again later", "busy"
            )
        return size
