"""One rank with a real socket, whose rounds the test can hold; its world has no other rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.devices.door import Door
from adc_edge.cloud_trainer.ranks.devices.owners import Owners
from adc_edge.cloud_trainer.ranks.learning.local_steps import LocalSteps
from adc_edge.cloud_trainer.ranks.learning.lockstep import Lockstep
from adc_edge.cloud_trainer.ranks.learning.rows import RankRow
from adc_edge.cloud_trainer.ranks.members import RankMembers
from adc_edge.cloud_trainer.ranks.rounds import RankRounds
from adc_edge.cloud_trainer.ranks.server import RankServer
from adc_edge.cloud_trainer.ranks.state.checkpoints import RankCheckpoints
from adc_edge.cloud_trainer.ranks.state.classes import RankClasses
from adc_edge.cloud_trainer.ranks.state.shared_run import WrittenLines
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.run_dir import RunDir

_LONGEST_S = 60


class HeldExchange:
    """The exchange of a rank that is alone.

    While ``hold`` is set, a round whose row ``holds`` accepts waits, as if another rank were late.
    """

    def __init__(self) -> None:
        self.hold, self.entered = threading.Event(), threading.Event()
        self.holds: Callable[[RankRow], object] = lambda row: True
        self.rounds = 0
        self.idle: Callable[[], None] = lambda: None

    def rows(self, row: Sequence[int]) -> list[list[int]]:
        self.rounds += 1
        while self.hold.is_set() and self.holds(RankRow(*row)):
            self.entered.set()
            self.idle()
            time.sleep(0.002)
        return [list(row)]

    def blobs(self, mine: bytes, sizes: Sequence[int] | None = None) -> list[bytes]:
        assert sizes in (None, [len(mine)])
        return [mine]

    def least(self, value: int) -> int:
        return value

    def sum(self, flat: torch.Tensor) -> None:
        pass


class OneRank:
    """The parts of a rank, as ``RankTrainer`` assembles them; ``fault`` is what has ended its loop."""

    def __init__(
        self, bundle: Bundle, training: HeadTraining, run: Path, sync: int = 1, round_wait_s: float = 0.02
    ) -> None:
        self.run_dir, self.exchange = RunDir(run, {}, {}), HeldExchange()
        self.sessions = SessionRegistry(self.run_dir.journal)
        owners = Owners(0, 1, "", self.sessions)
        self.checkpoints = RankCheckpoints(training, self.sessions, self.run_dir, 0, self.exchange, owners, 0)
        lines = WrittenLines(self.run_dir)
        self.checkpoints.resume(lines.take_in)
        classes = RankClasses(bundle.manifest, self.run_dir, self.exchange.least)
        self.server = RankServer(
            bundle,
            training,
            "tcp://127.0.0.1:*",
            self.sessions,
            checkpoints=self.checkpoints,
            classes=classes,
            sync=sync,
            round_wait_s=round_wait_s,
        )
        owners.announce(self.server.endpoint)
        learner = (
            Lockstep(training, self.server.steps, self.exchange, 0)
            if sync == 1
            else LocalSteps(training, self.server.steps, self.exchange, 0, sync)
        )
        members = RankMembers({"lines": lines, "classes": classes, "owners": owners})
        rounds = RankRounds(self.exchange, learner, self.checkpoints, members, RankMembers({"lines": lines}))
        self.server.join(rounds, Door(owners))
        self.exchange.idle = self.server.idle
        self.fault: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @contextmanager
    def held(self, holds: Callable[[RankRow], object] = lambda row: True) -> Iterator[None]:
        """Hold the next round that ``holds`` accepts until the end of the block."""
        self.exchange.entered.clear()
        self.exchange.holds = holds
        self.exchange.hold.set()
        try:
            yield
        finally:
            self.exchange.hold.clear()

    def wait_until_held(self) -> None:
        """Wait until the round that is to be held has begun."""
        assert self.exchange.entered.wait(_LONGEST_S)

    def _serve(self) -> None:
        try:
            self.server.serve(self._over.is_set)
        except BaseException as fault:
            self.fault = fault

    def __enter__(self) -> OneRank:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.exchange.hold.clear()
        self._over.set()
        self._thread.join()
        self.server.close()
        self.run_dir.close()
        if self.fault is not None:
            raise self.fault
