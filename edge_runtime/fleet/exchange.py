"""A change of the trunk to the trainer, and its answer, checked."""

from __future__ import annotations

import secrets

import msgspec

from adc_edge.arrays import Body, Float32, Weights
from adc_edge.codec.trunk_changes import Shapes, added, changes_bytes, decode_changes
from adc_edge.edge_runtime.fleet.state import FleetState
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.errors import CheckpointError, ProtocolError
from adc_edge.wire.fleet_messages import FleetTerms, TrunkAverage, TrunkDelta

_TRANSFER_BITS = 62
_VERSIONS = "install the same version of adc-edge on both sides"


class TrunkExchange:
    """Sends changes over a session.

    Args:
        session: carries them.
        shapes: of the trunk's tensors.
    """

    def __init__(self, session: DeviceSession, shapes: Shapes) -> None:
        self._session, self._shapes = session, shapes
        session.average_bytes = self._average_bytes

    def ask(self, change: TrunkDelta, body: Body, outage_s: float | None) -> tuple[TrunkAverage, memoryview]:
        """Send a change, as often as it takes, and return the answer.

        Args:
            change: its transfer is chosen here.
            body: the encoded change.
            outage_s: as of ``DeviceSession.result``.

        Raises:
            ProtocolError: the answer is of another change, or not of this trunk.
            CheckpointError: the trainer has lost rounds that this device has.
            Stopped, Behind, LinkError, RefusedError: see DeviceSession.
        """
        transfer = secrets.randbits(_TRANSFER_BITS)  # random: no process continues another one's message
        self._session.submit(msgspec.structs.replace(change, transfer=transfer), body)
        answer, received = self._session.result(outage_s)
        wanted = change.step, change.base
        if not isinstance(answer, TrunkAverage) or (answer.step, answer.base) != wanted:
            expected = f"the fleet's trunk for step {change.step}, from round {change.base} on"
            raise ProtocolError(f"a {type(answer).__name__}", expected, _VERSIONS, "order")
        check_round(change.base, answer.round)
        if len(received) != self._average_bytes(answer):
            raise _wrong_size(answer, self._average_bytes(answer))
        return answer, received

    def _average_bytes(self, answer: TrunkAverage) -> int:
        """Body size that an answer must have; raises ProtocolError if it says another."""
        rounds = max(answer.round - answer.base, 0)
        expected = rounds * changes_bytes(self._shapes, answer.precision)
        if answer.whole:
            expected = changes_bytes(self._shapes, "fp32")
        if answer.body_bytes != expected:
            raise _wrong_size(answer, expected)
        return expected


def brought_forward(base: Weights, answer: TrunkAverage, body: memoryview) -> dict[str, Float32]:
    """Return the fleet's trunk of ``answer.round``.

    Args:
        base: the trunk of ``answer.base``.
        answer: from the trainer.
        body: the answer's.

    Raises:
        ProtocolError: a size is wrong, or a value is NaN or infinite.
    """
    shapes = {name: value.shape for name, value in base.items()}
    if answer.whole:
        return {name: value.copy() for name, value in decode_changes(body, shapes, "fp32").items()}
    trunk, size = dict(base), changes_bytes(shapes, answer.precision)
    for start in range(0, len(body), size):
        trunk = added(trunk, decode_changes(body[start : start + size], shapes, answer.precision))
    return trunk


def check_round(ours: int, fleet: int) -> None:
    """Raise CheckpointError if the fleet's newest round is older than the one that this device has."""
    if fleet < ours:
        raise CheckpointError(
            f"the fleet's trunk is of round {fleet}, and this device has had round {ours}",
            "a trainer that has kept its run (--run)",
            "start the trainer with the --run directory it had, or start all sides over with --fresh",
        )


def check_fleet(ours: FleetState, terms: FleetTerms) -> None:
    """Raise CheckpointError if a device's round is of another fleet than the trainer's; round 0 is the bundle's."""
    if ours.round and ours.fleet and terms.fleet and ours.fleet != terms.fleet:
        raise CheckpointError(
            f"a fleet that has begun anew, and this device's trunk is of round {ours.round} of another one",
            "a trainer that has kept its run (--run)",
            "start the trainer with the --run directory it had, or start this device over with --fresh",
        )


def _wrong_size(answer: TrunkAverage, expected: int) -> ProtocolError:
    received = f"{answer.body_bytes} bytes for rounds {answer.base} to {answer.round} of the fleet's trunk"
    return ProtocolError(received, f"{expected} bytes", _VERSIONS, "size")
