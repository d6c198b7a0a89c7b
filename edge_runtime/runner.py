"""`serve`: assembles bundle, data, engine, shim, session and run directory, and runs the steps."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET
from rich.console import Console

from adc_edge.data import augment
from adc_edge.data import sources as data
from adc_edge.data.loader import Loader
from adc_edge.data.unreadable import check_images
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.edge_runtime.course import Course, MessageForm
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.factory import ENGINE, WHERE, check_provider, make_engine, make_shim
from adc_edge.edge_runtime.loop import DeviceLoop
from adc_edge.edge_runtime.screen.display import Display
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.edge_runtime.state import RunState
from adc_edge.edge_runtime.training import Training
from adc_edge.edge_runtime.trunk.device import check_shim_device, choose_shim_device
from adc_edge.edge_runtime.trunk.refresher import Refresher
from adc_edge.machine.description import describe_machine
from adc_edge.machine.threads import divide_cores
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.signals import StopFlag
from adc_edge.storage.bundle import MANIFEST, TRUNK, Bundle
from adc_edge.storage.decisions import Decisions
from adc_edge.storage.halves import label_weights
from adc_edge.storage.run_dir import RunDir
from adc_edge.terminal import readable
from adc_edge.wire.connection import ClientKeys
from adc_edge.wire.messages import VERSION, Hello
from adc_edge.wire.sockets import check_endpoint

if TYPE_CHECKING:  # the shim needs torch, which a frozen device lacks
    from adc_edge.edge_runtime.trunk.trainer import Shim

logger = logging.getLogger(__name__)


class Serve:
    """One run of a device; ``console`` shows its progress, and ``options`` are kept for ``--resume``."""

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
        self.bundle = Bundle.load(settings.bundle, () if self._torchless else (TRUNK,))
        self.graph = None if settings.engine == "torch" else self.bundle.client(settings.computes)
        self.manifest = self.bundle.manifest
        self.precision, self.gradient_precision = settings.precisions(self.manifest)
        self.batch_size = settings.batch_size or self.manifest.batch_size
        ratio = self.manifest.ratio if settings.ratio == Ratio() else settings.ratio.check()
        self.shape: Shape = settings.cut(ratio, self.manifest)  # of a micro-batch
        check_shim_device(settings.shim_device, self._torchless)  # last: it may import torch

    @property
    def _torchless(self) -> bool:
        return self.settings.trunk == "frozen" and self.settings.engine != "torch"

    def run(self) -> dict[str, Any]:
        """Train to the end, or until ``stop`` returns True, as after Ctrl-C; returns the report."""
        settings = self.settings
        threads = divide_cores(settings.threads)
        dataset = data.load_dataset(settings.data)
        self.classes = DeviceClasses(dataset, self.manifest)
        check_images(dataset, settings.allow_broken)
        with ExitStack() as stack:
            train = self._loader(dataset.train, self.batch_size, augment.parse_augmentation(settings.augment))
            test = self._loader(dataset.test, min(self.shape.images, len(dataset.test.labels)))
            stack.callback(train.close)
            stack.callback(test.close)
            total = settings.total_steps(train.steps_per_epoch)
            fixed = settings.fixed(self.bundle.digest, (self.precision, self.gradient_precision), self.shape)
            free = msgspec.to_builtins(settings, enc_hook=str)
            now = describe_machine(engine=settings.engine, provider=settings.provider, threads=threads)
            run_dir = RunDir(settings.run, fixed, free, now, options=self.options, fresh=settings.fresh)
            stack.callback(run_dir.close)
            run_dir.keep(MANIFEST, (self.bundle.path / MANIFEST).read_bytes())
            shim = None if self._torchless else self._shim(run_dir)  # last: torch's import takes seconds
            learning = shim if settings.trunk == "train" else None
            refresher = None if learning is None else Refresher(learning, settings.refresh_every)
            self.decisions = Decisions(run_dir, settings.micro_batches)
            self.state = RunState(run_dir, refresher, self.decisions.micro_batches)
            self._resume(run_dir)
            self.classes.resume(run_dir, self.state.step)
            engines = stack.enter_context(ExitStack())  # its own stack: `--engine auto` may exchange the engine
            engine = engines.enter_context(self._engine(run_dir, shim))
            self._check_engine(run_dir, engine)
            if refresher is not None:
                refresher.follow(engine)
            display = Display(self.console, total, self.state.step, settings.insecure)
            session = self._session(display, total)
            stack.callback(session.close)
            step_settings = self._step_settings(total)
            loop = DeviceLoop(engine, learning, refresher, train, session, self.state.journal, step_settings)
            course = Course(step_settings, self.decisions)
            training = Training(
                settings,
                self.manifest,
                loop,
                course,
                self._forms(),
                engines,
                self.state,
                run_dir,
                test,
                display,
                total,
                self.stop,
            )
            with display:
                training.run()
            broken = train.broken, test.broken
            first = next((found.first for found in broken if found.first), None)
            stopped = None if training.stop_reason is None else {"step": self.state.step, "why": training.stop_reason}
            more = {
                "broken_images": sum(map(len, broken)),
                "first_broken_image": first,
                "stopped": stopped,
                "changes": course.changes,
            }
            return self._finish(run_dir, shim, more, total)

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

    def _session(self, display: Display, total: int) -> DeviceSession:
        return DeviceSession(
            self.settings.trainer,
            lambda: self._hello(total),
            self.state.journal,
            self.manifest.dim,
            keys=self.keys,
            stop=self.stop,
            loopback_alone=self.keys is None and not self.settings.insecure,
            on_outage=display.outage,
            classes=self.classes,
            micro_batches=self.decisions.micro_batches,
        )

    def _step_settings(self, total: int) -> StepSettings:
        return StepSettings(
            session=self.state.session,
            shape=self.shape,
            prefix=self.manifest.prefix,
            dim=self.manifest.dim,
            classes=self.manifest.classes,
            precision=self.precision,
            gradient_precision=self.gradient_precision,
            planned_steps=total,
            micro_batches=self.settings.micro_batches,
            window=min(self.settings.window or self.settings.micro_batches, self.settings.micro_batches),
            drift_every=self.settings.drift_every,
            noise=self.settings.noise,
            seed=self.settings.seed,
            outage_s=self.settings.outage_s,
        )

    def _forms(self) -> list[MessageForm]:
        return []

    def _loader(self, split: data.Split, batch_size: int, changes: Any = ()) -> Loader:
        settings, preprocessing = self.settings, self.manifest.preprocessing
        return Loader(split, preprocessing, batch_size, settings.seed, changes, settings.workers, settings.allow_broken)

    def _hello(self, total: int) -> Hello:
        name = self.settings.name or socket.gethostname()
        state = self.state
        return Hello(
            version=VERSION,
            bundle=self.bundle.digest,
            session=state.session,
            incarnation=state.incarnation,
            device=readable(name)[:64],
            next_step=state.step,
            durable=state.durable,
            oldest=state.oldest,
            steps=total,
            micro_batches=self.decisions.micro_batches(state.oldest),
            changes=self.decisions.changes(state.oldest) or UNSET,
            class_names=True,
            named=bool(self.settings.name) or UNSET,
        )

    def _shim(self, run_dir: RunDir) -> Shim:
        device = choose_shim_device(self.settings.shim_device, run_dir)
        return make_shim(self.bundle, self.settings, device)

    def _engine(self, run_dir: RunDir, shim: Shim | None) -> Engine:
        name: str = self.settings.engine
        if name == "auto":  # ONNX Runtime until the choice is made, which the run keeps
            name = (run_dir.kept(ENGINE) or b"onnxruntime").decode()
        return make_engine(name, self.bundle, self.settings, self.shape, self.graph, shim)

    def _finish(self, run_dir: RunDir, shim: Shim | None, more: dict[str, Any], total: int) -> dict[str, Any]:
        """Write the weights and return the report, also of a run that was interrupted."""
        source, frozen = self.bundle.path / TRUNK, self.settings.trunk == "frozen"
        if shim is not None or source.is_file():
            weights = source.read_bytes() if shim is None else shim.safetensors()
            step = self.state.step
            run_dir.keep(TRUNK, label_weights(weights, {self.state.session: step}, step, frozen))
        return self.state.tally.report(
            self.shape,
            self.manifest.dim,
            frozen,
            precision=self.precision,
            gradient_precision=self.gradient_precision,
            micro_batches=self.settings.micro_batches,
            complete=self.state.step >= total or more["stopped"] is not None,
            **more,
        )
