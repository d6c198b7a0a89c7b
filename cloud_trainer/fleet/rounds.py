"""The fleet's trunk and its rounds: each adds one change, which is on disk before anybody is told of it.

A round is a file of `fleet_trunk.py`: the whole trunk, what rounding has left, and the steps whose changes are settled.
The encoded changes of the newest rounds lie beside it, a file each, for devices that are a few rounds behind. Rounds
are in no checkpoint of the head, and never go back: devices have their trunks.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from adc_edge.arrays import Float32, Weights
from adc_edge.codec.trunk_changes import added, changes_bytes, decode_changes, encode_changes, shapes_of
from adc_edge.defaults import FleetPrecision
from adc_edge.errors import CheckpointError
from adc_edge.files import write_atomic
from adc_edge.storage.checkpoint import checkpoint_name, checkpoint_steps, load_checkpoint
from adc_edge.storage.fleet_trunk import ROUNDS, FleetTrunk, fleet_trunk_of, keep_fleet_trunk

KEPT_ROUNDS = 8  # whose changes are kept, and the most that a device's change may be behind
_MOST_SESSIONS = 4096  # whose last steps are remembered
_RESIDUAL = "residual."
_FLEET_BITS = 62
_DIGEST_BYTES = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)


class SettledStep(msgspec.Struct, frozen=True):
    """The newest step of a session whose change is settled: it is in ``round``, or ``why`` it is in none."""

    step: int
    round: int
    why: str = ""
    last: bool = False  # the session has come to its last step
    images: int = 0  # that the head has learned of the session until then


class Rounds:
    """The fleet's trunk, round after round.

    Args:
        trunk: the trunk of round 0, by timm name, fp32.
        precision: of the changes that devices get.
        run: run directory that keeps the rounds; None: they last as long as the process.

    Raises:
        CheckpointError: the newest round on disk is damaged, or that of another trunk.
    """

    def __init__(self, trunk: Weights, precision: FleetPrecision, run: Path | None = None) -> None:
        self.precision, self.shapes, self._run = precision, shapes_of(trunk), run
        self.newest = self.devices = 0  # number of the newest round, and of the changes in it
        self.fleet = secrets.randbits(_FLEET_BITS)  # a random number of this sequence of rounds, which it keeps
        self.trunk: Weights = trunk
        self._residual: dict[str, Float32] = {}
        self._changes: dict[int, bytes] = {}
        self._digests: dict[int, str] = {}  # SHA-256 of each of them
        self._whole = b""  # the newest trunk, encoded, once a device has got it whole
        self._settled: dict[int, SettledStep] = {}
        self._learned: dict[int, int] = {}
        if run is not None and (numbers := checkpoint_steps(run / ROUNDS)):
            self._resume(run, numbers[-1])

    def now(self) -> FleetTrunk:
        """Return the trunk of the newest round; no later one changes it."""
        return FleetTrunk(self.newest, dict(self.trunk), self._learned)

    def last_settled(self, session: int) -> SettledStep | None:
        """Return the newest step of a session whose change is settled, None if there is none."""
        return self._settled.get(session)

    def is_settled(self, session: int, step: int) -> bool:
        """Return whether a session's change before ``step`` is in a round already, or will be in none."""
        found = self._settled.get(session)
        return found is not None and step <= found.step

    def ended(self) -> dict[int, int]:
        """Return the last step of each session that has come to it."""
        return {session: settled.step for session, settled in self._settled.items() if settled.last}

    def going_on(self) -> set[int]:
        """Return the sessions that have contributed, and have not come to their last step."""
        return {session for session, settled in self._settled.items() if not settled.last}

    def leave_out(self, session: int, step: int, why: str, last: bool, images: int) -> None:
        """Settle a step whose change can be in no round; the next round writes it."""
        self._settled[session] = SettledStep(step, self.newest, why, last, images)

    def close(self, change: Weights, settled: Mapping[int, SettledStep]) -> int:
        """Add a change to the trunk, as the newest round, and return the size of its encoded bytes.

        Args:
            change: what the contributions have become, fp32 by name.
            settled: for each session that contributed, its step, in the round ``newest + 1``.

        Raises:
            OSError: the round cannot be written; nothing has changed.
        """
        wanted = added(change, self._residual) if self._residual else dict(change)
        encoded = encode_changes(wanted, self.precision)
        sent = decode_changes(encoded, self.shapes, self.precision)
        trunk, number = added(self.trunk, sent), self.newest + 1
        exact = self.precision == "fp32"
        residual = {} if exact else {name: np.subtract(wanted[name], value) for name, value in sent.items()}
        ahead = {s: one for s, one in self._settled.items() if s in settled and one.step > settled[s].step}
        newest_last = sorted((self._settled | dict(settled) | ahead).items(), key=lambda item: item[1].round)
        all_settled = dict(newest_last[-_MOST_SESSIONS:])
        counted = {session: found.step for session, found in settled.items() if not found.why}
        learned = {s: step for s, step in (self._learned | counted).items() if s in all_settled}
        digests = self._digests | {number: hashlib.sha256(encoded).hexdigest()}
        digests.pop(number - KEPT_ROUNDS, None)
        if self._run is not None:
            meta = {
                "settled": msgspec.to_builtins(all_settled, str_keys=True),
                "devices": len(counted),
                "fleet": self.fleet,
                "changes": {str(one): digest for one, digest in digests.items()},
            }
            self._write(self._run, FleetTrunk(number, dict(trunk), learned), encoded, residual, meta)
        self._digests = digests
        self.newest, self.trunk, self._residual, self.devices = number, trunk, residual, len(counted)
        self._settled, self._learned = all_settled, learned
        self._whole = b""
        self._changes[number] = encoded
        self._changes.pop(number - KEPT_ROUNDS, None)
        return len(encoded)

    def since(self, base: int) -> tuple[bool, bytes]:
        """Return what brings a trunk of round ``base`` to the newest: its changes in order, or (True) the trunk."""
        changes = [self._changes.get(number) for number in range(base + 1, self.newest + 1)]
        kept = [change for change in changes if change is not None]
        if len(kept) == len(changes) and (not kept or sum(map(len, kept)) < changes_bytes(self.shapes, "fp32")):
            return False, b"".join(kept)
        self._whole = self._whole or encode_changes(self.trunk, "fp32")  # the same bytes for all that join now
        return True, self._whole

    def _write(
        self,
        run: Path,
        trunk: FleetTrunk,
        encoded: bytes,
        residual: Mapping[str, Float32],
        meta: Mapping[str, Any],
    ) -> None:
        """Write the change before the trunk: a change without its round is overwritten by the next one."""
        write_atomic(_change_file(run, trunk.round), hashlib.sha256(encoded).digest() + encoded)
        more = {_RESIDUAL + name: value for name, value in residual.items()}
        keep_fleet_trunk(run, trunk, more, meta)
        with contextlib.suppress(OSError):  # the round is there; a file more is no harm
            _change_file(run, trunk.round - KEPT_ROUNDS).unlink(missing_ok=True)

    def _resume(self, run: Path, number: int) -> None:
        path = run / ROUNDS / checkpoint_name(number)
        try:
            checkpoint = load_checkpoint(path)
            kept = fleet_trunk_of(checkpoint)
            self._settled = msgspec.convert(checkpoint.meta["settled"], dict[int, SettledStep], strict=False)
            self.devices = int(checkpoint.meta["devices"])
            self.fleet = int(checkpoint.meta.get("fleet", self.fleet))
            self._digests = msgspec.convert(checkpoint.meta.get("changes", {}), dict[int, str], strict=False)
        except (KeyError, ValueError, msgspec.ValidationError) as error:
            raise _damaged(f"{path}: {error!r}") from None
        except CheckpointError as error:
            raise _damaged(error.received) from None
        if shapes_of(kept.weights) != self.shapes:
            raise _damaged(f"{path} holds another trunk than the bundle")
        self.newest, self.trunk, self._learned = number, kept.weights, dict(kept.learned)
        self._residual = {
            name[len(_RESIDUAL) :]: np.asarray(value, np.float32)
            for name, value in checkpoint.arrays.items()
            if name.startswith(_RESIDUAL)
        }
        for one in range(max(1, number - KEPT_ROUNDS + 1), number + 1):
            if (change := self._read_change(run, one)) is not None:
                self._changes[one] = change

    def _read_change(self, run: Path, number: int) -> bytes | None:
        """The change of a round; None if it is damaged: devices behind it then get the whole trunk."""
        path = _change_file(run, number)
        try:
            data = path.read_bytes()
        except OSError as error:
            logger.warning("%s: %s; devices behind that round get the whole trunk", path, error.strerror)
            return None
        digest, change = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        ours = hashlib.sha256(change)
        whole = ours.digest() == digest and len(change) == changes_bytes(self.shapes, self.precision)
        if whole and self._digests.get(number, ours.hexdigest()) == ours.hexdigest():  # or of a round that failed
            return change
        logger.warning("%s is damaged, or not that of the round; devices behind that round get the whole trunk", path)
        return None


def _change_file(run: Path, number: int) -> Path:
    return run / ROUNDS / f"change-{number:08d}"


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(
        why,
        "the newest round as the trainer wrote it: devices may have its trunk, so no older one can take its place",
        "restore the file from a copy, or start over with --fresh on the trainer and on every device",
    )
