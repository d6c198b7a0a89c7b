"""Assembly of one rank of a trainer: the process group, the shared run directory, and a server that takes rounds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.ranks.devices.door import Door
from adc_edge.cloud_trainer.ranks.devices.owners import Owners
from adc_edge.cloud_trainer.ranks.exchange import Exchange
from adc_edge.cloud_trainer.ranks.launch import Launch, advertised, bound_to
from adc_edge.cloud_trainer.ranks.learning.local_steps import LocalSteps
from adc_edge.cloud_trainer.ranks.learning.lockstep import Lockstep
from adc_edge.cloud_trainer.ranks.members import RankMember, RankMembers
from adc_edge.cloud_trainer.ranks.rounds import RankRounds
from adc_edge.cloud_trainer.ranks.server import RankServer
from adc_edge.cloud_trainer.ranks.state.agreement import check_agreed, common
from adc_edge.cloud_trainer.ranks.state.checkpoints import RankCheckpoints
from adc_edge.cloud_trainer.ranks.state.classes import RankClasses
from adc_edge.cloud_trainer.ranks.state.shared_run import QueuedLines, SharedRun, WrittenLines
from adc_edge.cloud_trainer.ranks.state.turn import TURN, RunTurn, take_turn
from adc_edge.cloud_trainer.ranks.world import World
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.runner import ENDPOINT, Trainer, raise_descriptor_limit
from adc_edge.cloud_trainer.settings import TrainerSettings
from adc_edge.machine.supervisor import note_at_work
from adc_edge.storage.bundle import HEAD, MANIFEST, Bundle
from adc_edge.storage.halves import label_weights
from adc_edge.storage.recorder import STOPPED, Recorder
from adc_edge.storage.run_dir import RunDir

_AGREED = ("sync", "devices", "checkpoint_every", "merge_passes", "place", "max_images", "max_devices")

logger = logging.getLogger(__name__)


class RankTrainer(Trainer):
    """One rank of a run of the trainer.

    Args:
        settings: the settings of the run, the same on all ranks.
        console: shows the head and the devices of all ranks, on rank 0.
        launch: this rank's place.
        stop: asked between messages; where it says so on one rank, all ranks end.
        options: kept for ``--resume``.
        bundle: that of checked settings.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        console: Console,
        launch: Launch,
        stop: Callable[[], bool],
        options: Mapping[str, Any] | None = None,
        bundle: Bundle | None = None,
    ) -> None:
        self.launch = launch
        if settings.device != "cpu" and torch.cuda.is_available():  # before the head is put there
            torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
        super().__init__(settings, console, stop, options, bundle)
        if launch.rank:
            _name_lines(launch.rank)

    def run(self, shown: Path | None = None) -> bool:
        """Serve devices until a rank is asked to end, or ``devices`` of them are done on all ranks.

        Args:
            shown: not used: ranks have a run directory.

        Raises:
            RanksLost: another rank is gone; this process has to end, so that torchrun starts all anew.
            RunError: the ranks were started differently, their heads have come apart, or nothing can be kept.
            SettingError: this host does not see the run directory of rank 0.
        """
        settings, rank = self.settings, self.launch.rank
        raise_descriptor_limit()
        with ExitStack() as stack:
            device, public = self.training.device.type, settings.ranks.public_ranks
            world = World(self.launch, settings.ranks.rank_timeout_s, device, public)
            exchange = Exchange(stack.enter_context(world))
            check_agreed(exchange.blobs(self._agreed()))
            assert settings.run is not None, "the settings were checked"
            opened = self._run_dir(None) if rank == 0 else SharedRun(settings.run, rank)
            run_dir = stack.enter_context(closing(opened))
            turn = RunTurn(settings.run / TURN, exchange.blobs(take_turn(run_dir) if rank == 0 else b"")[0])
            turn.find()
            recorder = stack.enter_context(Recorder(run_dir, lambda: self.training.steps))
            for change in run_dir.changes:
                logger.warning("%s since this run was last at work: the last bits may differ", change)
            sessions = SessionRegistry(run_dir.journal)
            owners = Owners(rank, self.launch.world, "", sessions, settings.ranks.place)
            checkpoints = RankCheckpoints(
                self.training, sessions, run_dir, settings.checkpoint_every, exchange, owners, rank
            )
            lines = run_dir.lines if isinstance(run_dir, SharedRun) else WrittenLines(run_dir)
            checkpoints.resume(lines.take_in if isinstance(lines, WrittenLines) else None)
            classes = RankClasses(self.bundle.manifest, run_dir, exchange.least)
            server = self._server(sessions, checkpoints, classes, run_dir)
            stack.callback(server.close)
            owners.rooms.look = server.room
            owners.announce(advertised(settings.ranks.advertise, server.endpoint, self.launch.local_rank))
            members: dict[str, RankMember] = {"lines": lines, "classes": classes, "owners": owners}
            server.join(self._rounds(exchange, server, checkpoints, members, owners), self._door(owners))
            exchange.idle = server.idle
            server.turn = turn
            if rank == 0:
                self._begin(stack, run_dir, recorder, server, checkpoints, classes)
            else:
                logger.info("listens  %s", server.endpoint)
            note_at_work()
            server.serve(self.stop)
            if isinstance(lines, QueuedLines):
                lines.all_written()
            complete = len(checkpoints.finished_sessions()) >= settings.devices
            if rank == 0:
                weights = label_weights(self.training.safetensors(), checkpoints.learned(), self.training.steps)
                run_dir.keep(HEAD, weights)
                recorder.ending(complete, "" if complete else STOPPED)
        if rank == 0:
            go_on = "" if complete else "; type the same command to go on"
            logger.info("stopped after %d steps; run kept in %s%s", self.training.steps, settings.run, go_on)
        return complete

    def _agreed(self) -> bytes:
        """The settings and the hardware that all ranks must have in common."""
        own = self.settings.fixed(self.bundle) | {name: getattr(self.settings, name) for name in _AGREED}
        return common(own, self.training, None if self.access is None else self.access.fingerprint)

    def _server(
        self, sessions: SessionRegistry, checkpoints: RankCheckpoints, classes: RankClasses, run_dir: RunDir
    ) -> RankServer:
        settings = self.settings
        steps = partial(getattr, self.training, "steps")
        fleet = DeviceFleet(settings.fleet, self.bundle, sessions, checkpoints.record, run_dir.path, steps)
        return RankServer(
            self.bundle,
            self.training,
            bound_to(settings.bind, self.launch.local_rank),
            sessions,
            checkpoints=checkpoints,
            classes=classes,
            sync=settings.ranks.sync,
            round_wait_s=settings.ranks.round_wait_s,
            access=self.access,
            max_images=settings.max_images,
            fleet=fleet,
            merge_passes=settings.merge_passes,
            max_devices=settings.max_devices,
        )

    def _rounds(
        self,
        exchange: Exchange,
        server: RankServer,
        checkpoints: RankCheckpoints,
        members: dict[str, RankMember],
        owners: Owners,
    ) -> RankRounds:
        rank, every, use = self.launch.rank, self.settings.ranks.sync, checkpoints.record.use
        steps = server.steps
        learner = (
            Lockstep(self.training, steps, exchange, rank, use)
            if every == 1
            else LocalSteps(self.training, steps, exchange, rank, every, use)
        )
        lines = RankMembers({"lines": members["lines"]})
        return RankRounds(
            exchange, learner, checkpoints, RankMembers(members), lines, self.settings.devices, owners.worked
        )

    def _door(self, owners: Owners) -> Door:
        access = self.access
        return Door(owners) if access is None else Door(owners, access.name)

    def _begin(
        self,
        stack: ExitStack,
        run_dir: RunDir,
        recorder: Recorder,
        server: RankServer,
        checkpoints: RankCheckpoints,
        classes: RankClasses,
    ) -> None:
        """Show on rank 0 what is trained, and where."""
        run_dir.show(MANIFEST, (self.bundle.path / MANIFEST).read_bytes())
        run_dir.keep(ENDPOINT, server.endpoint.encode())
        recorder.begun("trainer", server.endpoint)
        self._log_start(server.endpoint, len(checkpoints.finished_sessions()), classes.names)
        logger.info("ranks    %d, %s", self.launch.world, _sync_in_words(self.settings.ranks.sync))
        stack.enter_context(self._screen(run_dir, server.endpoint, server.sessions, checkpoints.records))


def _sync_in_words(sync: int) -> str:
    return "one head, in lockstep" if sync == 1 else f"which learn alone and average every {sync} steps"


def _name_lines(rank: int) -> None:
    """Begin the lines that adc-edge logs in this process with the rank."""
    make = logging.getLogRecordFactory()

    def named(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        if record.name.startswith("adc_edge"):
            record.msg = f"rank {rank}: {record.msg}"
        return record

    logging.setLogRecordFactory(named)
