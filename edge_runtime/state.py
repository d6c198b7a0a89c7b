"""The position of a device's run, and its checkpoints: everything that a killed process resumes with."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from adc_edge.edge_runtime.fleet.state import FleetState
from adc_edge.edge_runtime.frozen.length import is_frozen
from adc_edge.edge_runtime.tally import Tally
from adc_edge.edge_runtime.trunk.refresher import Refresher
from adc_edge.errors import CheckpointError
from adc_edge.storage.decisions import Decisions
from adc_edge.storage.halves import FROZEN_FROM
from adc_edge.storage.journal import Journal
from adc_edge.storage.position import MicroBatches
from adc_edge.storage.run_dir import RunDir
from adc_edge.terminal import readable
from adc_edge.wire.fleet_messages import DeviceNeeds, SentSteps
from adc_edge.wire.messages import VERSION, Hello

_ID_BITS = 63


class RunState:
    """A run at the beginning of ``step``.

    Args:
        run_dir: keeps the checkpoints.
        trunk: the trunk that learns; None if it is frozen.
        micro_batches: gives their number in a step.
        frozen_from: step from which on a trunk that has learned is frozen.
    """

    def __init__(
        self,
        run_dir: RunDir,
        trunk: Refresher | None,
        micro_batches: MicroBatches = lambda step: 1,
        frozen_from: int | None = None,
    ) -> None:
        self._run_dir, self._trunk, self._micro_batches = run_dir, trunk, micro_batches
        self._frozen_from = frozen_from
        self.step = 0
        self.session = secrets.randbits(_ID_BITS)
        self.incarnation = secrets.randbits(_ID_BITS)  # of this process
        self.tally = Tally()
        self.fleet = FleetState()
        self.parted = 0  # planned steps of a run that its trainer goes on with alone, as it has acknowledged
        self._saved: tuple[int, dict[str, Any]] | None = None  # content of the newest checkpoint
        self.journal = Journal(run_dir.journal)

    @property
    def durable(self) -> int | None:
        """The oldest step that this run may come back to; None: the run is not kept."""
        return None if self._run_dir.path is None else self._run_dir.oldest(self.step)

    @property
    def oldest(self) -> int:
        """The first step from which on the journal can feed a trainer."""
        return self.journal.oldest(self.step, self._micro_batches)

    def resume(self, until: int | None = None) -> bool:
        """Return to the newest checkpoint (of a step up to ``until``); False if there is none.

        Raises:
            CheckpointError: the checkpoint is damaged, or not a device's.
        """
        kept = self._run_dir.latest(until)
        if kept is None:
            return False
        try:
            session, tally = int(kept.meta["session"]), msgspec.convert(kept.meta["tally"], Tally)
        except (KeyError, msgspec.ValidationError) as error:
            raise CheckpointError(
                f"{self._run_dir.path}: {error}", "a checkpoint of `serve`", "use another --run, or --fresh"
            ) from None
        self.step, self.session, self.tally, self._saved = kept.step, session, tally, None
        self.parted = int(kept.meta.get("parted", 0))
        self.fleet = FleetState.restored(kept.meta, kept.arrays)
        if self._trunk is not None:
            self._trunk.restore(kept.arrays)
        self._forget_later()
        return True

    def hello(
        self,
        bundle: str,
        name: str,
        steps: int,
        decisions: Decisions,
        needs: DeviceNeeds | UnsetType = UNSET,
        sends: SentSteps | UnsetType = UNSET,
    ) -> Hello:
        """Return the Hello of the present state.

        Args:
            bundle: digest of the bundle.
            name: of this device; empty: the host's.
            steps: planned.
            decisions: tell how many micro-batches the steps have.
            needs: by which the trainer admits a new session; UNSET: it is not told.
            sends: the steps that this device sends; UNSET: all.
        """
        return Hello(
            version=VERSION,
            bundle=bundle,
            session=self.session,
            incarnation=self.incarnation,
            device=readable(name or socket.gethostname())[:64],
            next_step=self.step,
            durable=self.durable,
            oldest=self.oldest,
            steps=steps,
            micro_batches=decisions.micro_batches(self.oldest),
            changes=decisions.changes(self.oldest) or UNSET,
            class_names=True,
            named=bool(name) or UNSET,
            fleet=self._trunk is not None,
            needs=needs,
            moves=True,
            sends=sends,
        )

    def save(self) -> None:
        """Make a checkpoint; after an OSError the earlier checkpoints are still there."""
        self.journal.sync()  # first: a state must not be durable before the messages that led to it
        meta = {"session": self.session, "tally": msgspec.to_builtins(self.tally), **self.fleet.meta()}
        meta |= {"parted": self.parted} if self.parted else {}
        if is_frozen(self._frozen_from, self.step):
            meta[FROZEN_FROM] = self._frozen_from
        if self._saved == (self.step, meta):  # as at the end, after the session was closed
            return
        arrays = {} if self._trunk is None else self._trunk.arrays() | self.fleet.arrays()
        self._run_dir.checkpoint(self.step, arrays, meta)
        self._saved = self.step, meta

    def try_to_save(self) -> OSError | None:
        """Make a checkpoint as ``save`` does, but return the error if it fails."""
        try:
            self.save()
        except OSError as error:
            return error
        return None

    def _forget_later(self) -> None:
        """Forget the steps after the checkpoint, which are to be done again, but count their cost."""
        dropped = self._run_dir.rewind(self.step, self._before)
        self.tally.repeat(dropped)
        if dropped:
            self.try_to_save()  # or the next kill would lose that count

    def _before(self, line: Mapping[str, Any]) -> bool:
        """Whether a line of the metrics belongs to the time before the checkpoint."""
        step = int(line.get("step", 0))
        judged = line.get("kind") == "evaluation" and any(e.step == step for e in self.tally.evaluations)
        averaged = line.get("kind") == "average" and step == self.fleet.averaged
        averaged = averaged and int(line.get("round", 0)) <= self.fleet.round  # or of a run that was extended here
        return step < self.step or judged or averaged
