"""`serve`: assembles bundle, data, engine, shim, session and run directory, and runs the steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from adc_edge.data import augment
from adc_edge.data import sources as data
from adc_edge.data.loader import Loader
from adc_edge.data.unreadable import check_images
from adc_edge.edge_runtime.choosing.choice import OpenChoices, choose_step
from adc_edge.edge_runtime.choosing.course import Course
from adc_edge.edge_runtime.choosing.cut import RunCut
from adc_edge.edge_runtime.choosing.link import probe_link
from adc_edge.edge_runtime.choosing.measuring import FirstBatch
from adc_edge.edge_runtime.choosing.plan import forms_to_follow, needs_of, with_plan
from adc_edge.edge_runtime.choosing.precisions import largest_precision, reported, with_epochs
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.factory import ENGINE, WHERE, check_provider, make_engine, make_shim
from adc_edge.edge_runtime.frozen.length import begin_epochs_anew, run_length, with_steps
from adc_edge.edge_runtime.frozen.send_epochs import UNPARTED, check_send_epochs, sent_steps
from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.edge_runtime.screen.display import Display
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.edge_runtime.state import RunState
from adc_edge.edge_runtime.training import Training
from adc_edge.edge_runtime.trunk.device import check_shim_device, choose_shim_device
from adc_edge.edge_runtime.trunk.refresher import Refresher
from adc_edge.edge_runtime.waiting import TrainerWaits
from adc_edge.machine.description import describe_machine
from adc_edge.machine.threads import divide_cores
from adc_edge.planning.message_sizes import sizes_of_messages
from adc_edge.signals import StopFlag
from adc_edge.storage.bundle import MANIFEST, TRUNK, Bundle
from adc_edge.storage.decisions import Decisions
from adc_edge.storage.halves import label_weights
from adc_edge.storage.recorder import STOPPED, Recorder
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.connection import ClientKeys, Stopped
from adc_edge.wire.messages import Hello
from adc_edge.wire.sockets import check_endpoint

if TYPE_CHECKING:  # the shim needs torch, which a frozen device lacks
    from adc_edge.edge_runtime.trunk.trainer import Shim

logger = logging.getLogger(__name__)


class Serve:
    """One run of a device.

    Args:
        settings: the settings of the run.
        console: shows its progress.
        stop: asked between steps and while waiting; None: the run ends at Ctrl-C and SIGTERM.
        options: kept for ``--resume``.
    """

    def __init__(
        self,
        settings: ServeSettings,
        console: Console,
        stop: Callable[[], bool] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self.console, self.options = console, options
        self.stop = stop or StopFlag()
        check_endpoint(settings.trainer, settings.insecure, settings.keys is not None, connecting=True)
        self.keys = None if settings.keys is None else ClientKeys.load(settings.keys)
        settings.noise.check()
        settings.check_compute()
        settings.check_best()
        check_send_epochs(settings)
        self.bundle = Bundle.load(settings.bundle, () if self._torchless else (TRUNK,))
        self.graph = None if settings.engine == "torch" else self.bundle.client(settings.computes)
        self.manifest = self.bundle.manifest
        settings, self.plan = with_plan(settings, self.bundle)
        self.settings = settings
        self.by_epoch = settings.by_epoch(self.manifest)
        settings.noise.check_precisions(self.by_epoch.pairs())
        self.cut = RunCut(settings, self.manifest)
        check_shim_device(settings.shim_device, self._torchless)  # last: it may import torch

    @property
    def _torchless(self) -> bool:
        return self.settings.trunk == "frozen" and self.settings.engine != "torch"

    @property
    def _largest_images(self) -> int:
        """Images of the largest message, now or in a step of the record."""
        return self.cut.images // self.decisions.fewest_micro_batches(self.cut.micro_batches)

    def run(self, shown: Path | None = None) -> dict[str, Any]:
        """Train to the end, or until ``stop`` returns True, as after Ctrl-C; returns the report.

        Args:
            shown: an empty directory for what others watch of a run that is not kept.
        """
        settings = self.settings
        threads = divide_cores(settings.threads)
        dataset = data.load_dataset(settings.data)
        self.classes = DeviceClasses(dataset, self.manifest)
        check_images(dataset, settings.allow_broken)
        with ExitStack() as stack:
            train = self._loader(dataset.train, self.cut.images, augment.parse_augmentation(settings.augment))
            stack.callback(train.close)
            self.length = run_length(settings, train.steps_per_epoch)
            begin_epochs_anew(train, settings, self.length)
            total = self.length.sent
            run_dir = stack.enter_context(closing(self._run_dir(threads, shown)))
            recorder = stack.enter_context(Recorder(run_dir, lambda: self.state.step))
            run_dir.show(MANIFEST, (self.bundle.path / MANIFEST).read_bytes())
            shim = None if self._torchless else self._shim(run_dir)  # last: torch's import takes seconds
            learning = shim if settings.trunk == "train" else None
            refresher = None if learning is None else Refresher(learning, settings.refresh_every)
            self.decisions = Decisions(run_dir)
            self.state = RunState(run_dir, refresher, self.decisions.micro_batches, self.length.frozen_from)
            self._resume(run_dir)
            recorder.begun("device", settings.trainer, total)
            self.classes.resume(run_dir, self.state.step)
            engines = stack.enter_context(ExitStack())  # its own stack: `--engine auto` may exchange the engine
            engine = engines.enter_context(self._engine(run_dir, shim))
            self._check_engine(run_dir, engine)
            if refresher is not None:
                refresher.follow(engine)
            display = stack.enter_context(self._display(total))
            session = self._session(TrainerWaits(run_dir, display.outage), len(dataset.test.labels))
            display.follow(session.channel)
            stack.callback(session.close)
            why = ""
            with suppress(Stopped):  # Training finds the wish to stop again, and says so
                before = engine
                engine, why = self._choose(run_dir, engines, engine, learning, session, train, total)
                if refresher is not None and engine is not before:
                    refresher.follow(engine)
            self.decisions.begin(self.cut.micro_batches)
            test = self._loader(dataset.test, min(self.cut.shape.images, len(dataset.test.labels)))
            stack.callback(test.close)
            step_settings = self.cut.step_settings(self.state.session, self.by_epoch.of_epoch(0), self.length)
            loop = DeviceLoop(engine, learning, refresher, train, session, self.state.journal, step_settings)
            forms = forms_to_follow(settings, self.plan, self.manifest, step_settings, self._largest_images)
            course = Course(with_epochs(step_settings, self.by_epoch, train), self.decisions, forms, settings.window)
            state, length, stop = self.state, self.length, self.stop
            training = Training(settings, self.manifest, loop, course, why, state, run_dir, test, display, length, stop)
            length.foretell()
            training.run()
            broken = train.broken, test.broken
            first = next((found.first for found in broken if found.first), None)
            stopped = None if training.stop_reason is None else {"step": self.state.step, "why": training.stop_reason}
            more: dict[str, Any] = {"broken_images": sum(map(len, broken)), "first_broken_image": first}
            more |= {"stopped": stopped, "changes": course.changes} | length.report() | reported(self.by_epoch)
            report = self._finish(run_dir, shim, more, training.is_complete, course.at(self.state.step))
            early = "" if training.is_complete else STOPPED if stop() else UNPARTED
            recorder.ending(training.is_complete, training.stop_reason or early)
            return report

    def _run_dir(self, threads: int, shown: Path | None) -> RunDir:
        settings = self.settings
        fixed = settings.fixed(self.bundle.digest, self.by_epoch.texts, self.cut.shape, self.cut.known)
        fixed = with_steps(settings, fixed, self.length)
        free = msgspec.to_builtins(settings, enc_hook=str)
        now = describe_machine(engine=settings.engine, provider=settings.provider, threads=threads)
        return RunDir(settings.run, fixed, free, now, options=self.options, fresh=settings.fresh, shown=shown)

    def _resume(self, run_dir: RunDir) -> None:
        if self.state.resume():
            logger.info("resuming %s at step %d", self.settings.run, self.state.step)
        else:
            self.state.save()  # a process that is killed in its first steps resumes the same session
        for change in run_dir.changes:
            logger.warning("%s since this run was last at work: the last bits may differ", change)

    def _check_engine(self, run_dir: RunDir, engine: Engine) -> None:
        """Check an engine that still has the bundle's weights, and warn if the run has computed with another one."""
        check_provider(engine, self.bundle, self.settings.computes)
        if self.settings.engine == "auto":  # chosen later; the run keeps that choice
            return
        now = f"{engine.name} ({engine.description.partition(':')[0]})"
        before = (run_dir.kept(WHERE) or now.encode()).decode()
        if before != now:
            logger.warning("this run has computed with %s so far, now %s: the last bits may differ", before, now)
        run_dir.keep(WHERE, now.encode())

    def _choose(
        self,
        run_dir: RunDir,
        engines: ExitStack,
        engine: Engine,
        learning: Shim | None,
        session: DeviceSession,
        train: Loader,
        total: int,
    ) -> tuple[Engine, str]:
        """Choose what the run leaves open, before its first step: engine and cut.

        Returns the engine, which may be another now, and why it was chosen; nothing where it was named.
        """
        settings, dim, state = self.settings, self.manifest.dim, self.state
        shapes, names, why = self.cut.open_shapes(run_dir), [engine.name], ""
        if settings.engine == "auto":
            why = "auto: chosen when this run began" if learning is not None else "auto: a frozen trunk needs no other"
            if learning is not None and run_dir.kept(ENGINE) is None:
                names = ["onnxruntime", "torch"]
        if (len(shapes) == 1 and len(names) == 1) or state.step >= total:
            return engine, why
        precisions = self.by_epoch.up[-1], None if learning is None else self.by_epoch.down[-1]  # of most steps
        up, down = sizes_of_messages(self.cut.shape, dim, precisions)
        link = probe_link(session.channel, up, down, settings.wait_s)
        state.tally.probe(*session.channel.totals())
        batch = FirstBatch(engine, learning, train, state.step, self.manifest.prefix, precisions)
        window = settings.window if len(shapes) > 1 else self.cut.window
        choice = choose_step(batch, link, OpenChoices(shapes, names, window), dim, precisions)
        logger.debug(choice.details)
        if len(names) > 1:
            run_dir.keep(ENGINE, choice.engine.encode())
            why = choice.why_engine
        if len(shapes) > 1:
            logger.log(logging.DEBUG if choice.alone is None else logging.INFO, choice.why_cut)
            self.cut.settle(run_dir, choice.cut, choice.alone)
        state.try_to_save()  # with the bytes of the probes
        if choice.engine != engine.name or (engine.name == "tensorrt" and self.cut.micro_batches > 1):
            engines.close()
            engine = engines.enter_context(self._engine(run_dir, learning, choice.engine))
        return engine, why

    def _display(self, total: int) -> Display:
        settings, manifest = self.settings, self.manifest
        blocks = f"blocks 1 to {manifest.split} of {manifest.depth}"
        title, frozen = f"{manifest.model}, {blocks} → {settings.trainer}", settings.trunk == "frozen"
        return Display(self.console, total, self.state.step, settings.insecure, title, frozen)

    def _session(self, waits: TrainerWaits, test_images: int) -> DeviceSession:
        settings = self.settings
        hello = partial(self.state.hello, self.bundle.digest, settings.name, self.length.planned, self.decisions)

        def now() -> Hello:
            largest = largest_precision(self.by_epoch, self.cut.shape, self.manifest.dim)
            needs = needs_of(self.cut.shape, self.manifest.dim, (largest, None), self.plan)
            return hello(needs, sent_steps(settings, self.cut, self.manifest, self.length, test_images))

        return DeviceSession(
            settings.trainer,
            now,
            self.state.journal,
            self.manifest.dim,
            keys=self.keys,
            stop=self.stop,
            loopback_alone=self.keys is None and not settings.insecure,
            on_outage=waits.outage,
            on_try=waits.tried,
            classes=self.classes,
            micro_batches=self.decisions.micro_batches,
        )

    def _loader(self, split: data.Split, batch_size: int, changes: Any = ()) -> Loader:
        settings, preprocessing = self.settings, self.manifest.preprocessing
        return Loader(split, preprocessing, batch_size, settings.seed, changes, settings.workers, settings.allow_broken)

    def _shim(self, run_dir: RunDir) -> Shim:
        device = choose_shim_device(self.settings.shim_device, run_dir)
        return make_shim(self.bundle, self.settings, device)

    def _engine(self, run_dir: RunDir, shim: Shim | None, name: str = "") -> Engine:
        name = name or self.settings.engine
        if name == "auto":  # ONNX Runtime until the choice is made, which the run keeps
            name = (run_dir.kept(ENGINE) or b"onnxruntime").decode()
        shape = msgspec.structs.replace(self.cut.shape, images=self._largest_images)
        return make_engine(name, self.bundle, self.settings, shape, self.graph, shim)

    def _finish(
        self, run_dir: RunDir, shim: Shim | None, more: dict[str, Any], complete: bool, now: StepSettings
    ) -> dict[str, Any]:
        """Write the weights and return the report, also of a run that was interrupted."""
        source, frozen = self.bundle.path / TRUNK, self.settings.trunk == "frozen"
        if shim is not None or source.is_file():
            weights = source.read_bytes() if shim is None else shim.safetensors()
            step, final = self.length.trunk_steps(self.state.step), self.length.is_final(self.state.step)
            run_dir.keep(TRUNK, label_weights(weights, {self.state.session: step}, step, frozen, final=final))
        return self.state.tally.report(
            now.shape,
            self.manifest.dim,
            frozen,
            precision=now.precision,
            gradient_precision=now.gradient_precision,
            micro_batches=now.micro_batches,
            complete=complete,
            **more,
        )
