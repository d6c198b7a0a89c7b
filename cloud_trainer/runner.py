"""Assembly of a trainer: bundle, head, run directory, checkpoints and server."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from safetensors.torch import load

from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.central.assembly import central_evaluator
from adc_edge.cloud_trainer.central.evaluator import CentralEvaluator
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.cloud_trainer.fleet.device_fleet import DeviceFleet
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.state.shared_run import WrittenLines
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.screen.trainer_screen import TrainerScreen
from adc_edge.cloud_trainer.served_session import SessionRecord
from adc_edge.cloud_trainer.server import Server
from adc_edge.cloud_trainer.settings import TrainerSettings as TrainerSettings
from adc_edge.cloud_trainer.store.alone import AloneTraining
from adc_edge.cloud_trainer.store.seal import StoreSeal
from adc_edge.cloud_trainer.store.settings import check_none_waits, reason_for_none
from adc_edge.cloud_trainer.store.stores import ActivationStores
from adc_edge.data.classes import short_list
from adc_edge.data.sources import Dataset
from adc_edge.errors import BundleError, SettingError
from adc_edge.machine.description import describe_machine
from adc_edge.machine.threads import divide_cores
from adc_edge.method.split import head_from_manifest
from adc_edge.method.token_augmentation import TokenAugmentation
from adc_edge.signals import StopFlag
from adc_edge.storage.bundle import HEAD, MANIFEST, Bundle
from adc_edge.storage.halves import label_weights
from adc_edge.storage.recorder import STOPPED, Recorder
from adc_edge.storage.run_dir import STORE, RunDir

ENDPOINT = "endpoint"  # file in the run directory: where the trainer listens
OPEN = "insecure: anybody who reaches this address can train this head and read what is sent"

logger = logging.getLogger(__name__)


class Trainer:
    """One run of the trainer.

    Args:
        settings: the settings of the run.
        console: shows the head and the devices while it serves.
        stop: asked between messages; None: the run ends at Ctrl-C and SIGTERM.
        options: kept for ``--resume``.
        bundle: that of checked settings.
        dataset: that of the settings.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        console: Console,
        stop: Callable[[], bool] | None = None,
        options: Mapping[str, Any] | None = None,
        bundle: Bundle | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        self.settings, self.console, self.options = settings, console, options
        self.stop = stop or StopFlag()
        self.bundle = bundle or settings.check()
        self.dataset = dataset or settings.test_images()
        self.access = None if settings.keys is None else Access(settings.keys)
        torch.set_num_threads(divide_cores(settings.threads))
        self.training = self._training()

    def run(self, shown: Path | None = None) -> bool:
        """Serve devices until Ctrl-C, or until ``devices`` of them are done; False if some of these are not.

        Args:
            shown: an empty directory for what others watch of a run that is not kept.
        """
        settings = self.settings
        raise_descriptor_limit()
        with ExitStack() as stack:
            run_dir = stack.enter_context(closing(self._run_dir(shown)))
            recorder = stack.enter_context(Recorder(run_dir, lambda: self.training.steps))
            for change in run_dir.changes:
                logger.warning("%s since this run was last at work: the last bits may differ", change)
            sessions = SessionRegistry(run_dir.journal, settings.one_session, self._stores(run_dir))
            checkpoints = TrainerCheckpoints(self.training, sessions, run_dir, settings.checkpoint_every)
            checkpoints.resume()
            if run_dir.path is not None:  # ranks may have worked here before
                WrittenLines(run_dir).take_in(sessions.records(), checkpoints.record.evaluated_late)
            classes = HeadClasses(self.bundle.manifest, run_dir)
            fleet = DeviceFleet(
                settings.fleet,
                self.bundle,
                sessions,
                checkpoints.record,
                run_dir.path,
                lambda: self.training.steps,
            )
            server = Server(
                self.bundle,
                self.training,
                settings.bind,
                sessions,
                checkpoints,
                self.access,
                settings.max_images,
                classes=classes,
                fleet=fleet,
                merge_passes=settings.merge_passes,
                max_devices=settings.max_devices,
            )
            stack.callback(server.close)
            central = self._central(stack, classes, sessions, checkpoints.record, fleet)
            alone = self._alone(sessions, checkpoints)
            server.between = lambda busy: alone.work(busy) | (central is not None and central.work(busy))
            run_dir.show(MANIFEST, (self.bundle.path / MANIFEST).read_bytes())
            run_dir.keep(ENDPOINT, server.endpoint.encode())
            recorder.begun("trainer", server.endpoint)
            self._log_start(server.endpoint, sessions.finished(), classes.names)
            fleet.log_start()
            stack.enter_context(self._screen(run_dir, server.endpoint, sessions, sessions.records()))
            try:
                server.serve(lambda: self.stop() or 0 < settings.devices <= sessions.finished())
            finally:
                checkpoints.save()
                weights = label_weights(self.training.safetensors(), checkpoints.learned(), self.training.steps)
                run_dir.keep(HEAD, weights)
            if central is not None:
                central.finish(self.stop)
            complete = sessions.finished() >= settings.devices
            recorder.ending(complete, "" if complete else STOPPED)
        kept = f"; run kept in {settings.run}" if settings.run else ""
        go_on = "" if complete or not kept else "; type the same command to go on"
        logger.info("stopped after %d steps%s%s", self.training.steps, kept, go_on)
        return complete

    def _stores(self, run_dir: RunDir) -> ActivationStores:
        """The stores of devices that send each image once; raises SettingError if one is needed and cannot be used."""
        why = reason_for_none(self.settings, ranks=False)
        if run_dir.path is None or why:
            return ActivationStores(why_none=why)
        try:
            seal = StoreSeal(None if self.access is None else self.access.secret)
        except SettingError as error:  # other devices need no store
            if self.settings.store.augments:
                raise
            why = error.received.removeprefix("a trainer with ")
            check_none_waits(run_dir.path / STORE, why)
            return ActivationStores(why_none=why)
        return ActivationStores(
            run_dir.path / STORE, self.settings.store.most_bytes, seal, augments=self.settings.store.augments
        )

    def _alone(self, sessions: SessionRegistry, checkpoints: TrainerCheckpoints) -> AloneTraining:
        settings, manifest = self.settings, self.bundle.manifest
        augmentation = TokenAugmentation(drop=settings.store_drop, mix=settings.store_mix)
        return AloneTraining(manifest, self.training, sessions, checkpoints, settings.seed, augmentation)

    def _central(
        self,
        stack: ExitStack,
        classes: HeadClasses,
        sessions: SessionRegistry,
        record: TrainerRecord,
        fleet: DeviceFleet,
    ) -> CentralEvaluator | None:
        if self.dataset is None:
            return None
        collaborators = self.bundle, self.dataset, self.training, classes, sessions, record
        return central_evaluator(stack, self.settings, *collaborators, fleet.trunk)

    def _run_dir(self, shown: Path | None) -> RunDir:
        settings = self.settings
        fixed = settings.fixed(self.bundle)
        free = msgspec.to_builtins(settings, enc_hook=str)
        now = describe_machine(
            device=str(self.training.device),
            bf16=self.training.bf16,
            compiled=self.training.compiled,
            threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return RunDir(settings.run, fixed, free, now, options=self.options, fresh=settings.fresh, shown=shown)

    def _screen(
        self,
        run_dir: RunDir,
        endpoint: str,
        sessions: SessionRegistry,
        known: Mapping[int, SessionRecord],
    ) -> TrainerScreen:
        manifest = self.bundle.manifest
        title = f"{manifest.model}, blocks {manifest.split + 1} to {manifest.depth} on {endpoint}"
        screen = TrainerScreen(self.console, title, manifest.tokens, OPEN if self.settings.insecure else "")
        screen.fleet.head_step = self.training.steps
        for number, record in known.items():
            screen.fleet.seed(f"{number:016x}", record.device, record.applied, record.finished)
        screen.fleet.is_paused = lambda session: sessions.waiting.fair.is_paused(int(session, 16))
        if screen.live:
            run_dir.follower = screen.fleet.take
        return screen

    def _log_start(self, endpoint: str, finished: int, names: list[str]) -> None:
        manifest, training = self.bundle.manifest, self.training
        where = f"{training.device}{', bf16' if training.bf16 else ''}{', compiled' if training.compiled else ''}"
        logger.info("model    %s, cut after block %d of %d", manifest.model, manifest.split, manifest.depth)
        logger.info("head     blocks %d to %d trained here, on %s", manifest.split + 1, manifest.depth, where)
        if names:
            logger.info("classes  %s (%d of %d)", short_list(names), len(names), manifest.classes)
        self.log_access()
        logger.info("listens  %s, %s", endpoint, self._end_in_words())
        if training.device.type == "cuda":
            logger.info(
                "CUDA sums in no fixed order: an interrupted run equals an undisturbed one nearly, not bit for bit"
            )
        if 0 < self.settings.devices <= finished:
            logger.info("this run's devices are done already; to train them further, leave --devices out")
        if self.settings.run is None:
            logger.info("without --run nothing outlives this process: if it dies, its devices must start over")

    def log_access(self) -> None:
        """Log who may connect."""
        if self.access is not None:
            logger.info("keys     encrypted; this trainer's key: %s", self.access.fingerprint)
            allowed = self.access.devices.names()
            logger.info("devices  %s", short_list(allowed) if allowed else "no key is allowed yet: adc-edge keys allow")
            for file, fault in self.access.devices.faults.items():
                logger.warning("%s admits no device: %s", file, fault)
        if self.settings.insecure:
            logger.warning(OPEN)

    def _end_in_words(self) -> str:
        devices = self.settings.devices
        return f"until {devices} device{'s are' if devices > 1 else ' is'} done" if devices else "until Ctrl-C"

    def _training(self) -> HeadTraining:
        settings = self.settings
        cuda = torch.cuda.is_available()
        if settings.device == "cuda" and not cuda:
            raise SettingError("--device cuda, and torch finds no CUDA device", "a CUDA device", "use --device auto")
        device = "cuda" if cuda and settings.device != "cpu" else "cpu"
        bf16 = device == "cuda" and settings.amp == "auto" and torch.cuda.is_bf16_supported()
        head = head_from_manifest(self.bundle.manifest)
        try:
            head.vit.load_state_dict(load((self.bundle.path / HEAD).read_bytes()), strict=True)
        except RuntimeError as error:
            raise BundleError(f"{HEAD}: {error}", "the weights of the manifest's head", "export it again") from None
        compiled = settings.compiled == "on" or (settings.compiled == "auto" and device == "cuda")
        return HeadTraining(head, settings.optimizer, device, bf16, settings.seed, compiled)


def raise_descriptor_limit() -> None:
    """Allow as many open connections as the system permits, since the guard admits more than the usual limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
