"""`serve`: puts bundle, data, engine, shim, channel and run directory together, and runs the steps."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.filesize import decimal

from adc_edge import augment, data, machine
from adc_edge.bundle import CLIENT, MANIFEST, TRUNK, Bundle
from adc_edge.checkpoint import KEPT
from adc_edge.connection import ClientKeys, Stopped
from adc_edge.device_channel import Behind, DeviceChannel
from adc_edge.edge_runtime.display import Display
from adc_edge.edge_runtime.engine import Engine
from adc_edge.edge_runtime.loop import DeviceLoop, StepSettings
from adc_edge.edge_runtime.onnx_engine import OnnxEngine
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.state import State
from adc_edge.endpoint import check_endpoint
from adc_edge.errors import CheckpointError, LinkError
from adc_edge.files import write_atomic
from adc_edge.journal import LIMIT_BYTES
from adc_edge.loader import Loader
from adc_edge.precision import encoded_bytes
from adc_edge.protocol import VERSION, Gradient, Hello
from adc_edge.ratio import Ratio, Shape
from adc_edge.run_dir import RunDir
from adc_edge.signals import StopFlag

if TYPE_CHECKING:  # torch is imported only if the trunk trains or the engine is torch
    from adc_edge.edge_runtime.shim import Shim


class Serve:
    """One run of a device."""

    def __init__(self, settings: ServeSettings, console: Console, stop: Callable[[], bool] | None = None) -> None:
        self.settings = settings
        self.console = console
        self.stop = stop or StopFlag()
        check_endpoint(settings.trainer, settings.insecure, settings.keys is not None)
        self.keys = None if settings.keys is None else ClientKeys.load(settings.keys)
        settings.noise.check()
        need = (CLIENT,) if self._torchless else (CLIENT, TRUNK)
        self.bundle = Bundle.load(settings.bundle, need)
        self.manifest = self.bundle.manifest
        self.precision = settings.precision or self.manifest.precision
        self.batch_size = settings.batch_size or self.manifest.batch_size
        ratio = self.manifest.ratio if settings.ratio == Ratio() else settings.ratio.check()
        self.shape: Shape = ratio.shape(self.batch_size, self.manifest.tokens, self.manifest.prefix)
        self._unkept_bytes = 0  # of gradients since the last checkpoint: the trainer keeps them until the next
        self._trouble: OSError | None = None  # why that one failed

    @property
    def _torchless(self) -> bool:
        return self.settings.trunk == "frozen" and self.settings.engine != "torch"

    def run(self) -> dict[str, Any]:
        """Train to the end, or to the first Ctrl-C; returns the report."""
        settings = self.settings
        dataset = data.load(settings.data)
        data.check_labels(dataset, self.manifest.classes)
        with ExitStack() as stack:
            train = self._loader(dataset.train, self.batch_size, augment.parse(settings.augment))
            test = self._loader(dataset.test, min(self.batch_size, len(dataset.test.labels)))
            stack.callback(train.close)
            stack.callback(test.close)
            total = settings.total_steps(train.steps_per_epoch)
            shim = None if self._torchless else self._shim()
            fixed = settings.fixed(self.bundle.digest, self.precision, self.shape)
            free = msgspec.to_builtins(settings, enc_hook=str)
            run_dir = RunDir(settings.run, fixed, free, self._machine(), fresh=settings.fresh)
            stack.callback(run_dir.close)
            run_dir.keep(MANIFEST, (self.bundle.path / MANIFEST).read_bytes())
            learning = shim if settings.trunk == "train" else None
            self.state = State(run_dir, learning)
            self._resume(run_dir)
            engine = stack.enter_context(self._engine(shim))
            if shim is not None:
                engine.refresh(shim.weights())
            display = Display(self.console, total, self.state.step, settings.insecure)
            channel = self._channel(display, total, lambda gradient: loop.gradient_bytes(gradient))
            stack.callback(channel.close)
            loop = DeviceLoop(engine, learning, train, channel, self.state.journal, self._step_settings(total))
            with display:
                self._train(loop, test, run_dir, display, total)
            return self._finish(run_dir, shim, {"broken_images": len(train.broken) + len(test.broken)}, total)

    def _resume(self, run_dir: RunDir) -> None:
        if self.state.resume():
            self._say(f"resuming {self.settings.run} at step {self.state.step}")
        else:
            self.state.save()  # a process that is killed in its first steps must come back as the same session
        for change in run_dir.changes:
            self._say(f"warning: {change} since this run was last at work: the last bits may differ")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _channel(self, display: Display, total: int, gradient_bytes: Callable[[Gradient], int]) -> DeviceChannel:
        return DeviceChannel(
            self.settings.trainer,
            lambda: self._hello(total),
            self.state.journal,
            keys=self.keys,
            notify=display.link,
            stop=self.stop,
            gradient_bytes=gradient_bytes,
        )

    def _step_settings(self, total: int) -> StepSettings:
        return StepSettings(
            session=self.state.session,
            shape=self.shape,
            prefix=self.manifest.prefix,
            classes=self.manifest.classes,
            precision=self.precision,
            planned_steps=total,
            drift_every=self.settings.drift_every,
            noise=self.settings.noise,
            seed=self.settings.seed,
            outage_s=self.settings.outage_s,
        )

    def _train(self, loop: DeviceLoop, test: Loader, run_dir: RunDir, display: Display, total: int) -> None:
        state = self.state
        try:
            try:
                self._greet(loop, test, display)
            except LinkError:
                if state.step < total or self._evaluation_due(total):
                    raise
                display.note("this run is complete, and its trainer has ended too: nothing is left to do")
                return
            while not self.stop():
                try:
                    if self._evaluation_due(total):
                        self._evaluate(loop, test, run_dir, display)
                    if state.step >= total:
                        state.save()  # first: the trainer forgets what it answered
                        loop.channel.farewell(state.session)
                        return
                    self._step(loop, run_dir, display)
                except Behind as behind:
                    self._go_back(behind, loop, display)
        except Stopped:
            display.note("stopped while waiting for the trainer; the step in flight is dropped")
        finally:
            state.save()

    def _greet(self, loop: DeviceLoop, test: Loader, display: Display) -> None:
        settings = self.settings
        try:
            loop.channel.open(settings.wait_s)
        except Behind as behind:
            self._go_back(behind, loop, display)
        display.note(
            f"training {self.manifest.model} split {self.manifest.split} with {settings.trainer}: "
            f"B={self.batch_size}, T={self.shape.clusters}, k={self.shape.kept} of {self.manifest.tokens}, "
            f"ξ={self.shape.xi:.3f}, {self.precision}, trunk {settings.trunk}, engine {loop.engine.name}"
            + (f", noise {settings.noise}" if settings.noise.any else "")
        )
        display.note(self._evaluation_note(test))

    def _step(self, loop: DeviceLoop, run_dir: RunDir, display: Display) -> None:
        settings, state = self.settings, self.state
        record = loop.step(state.step, state.durable)
        state.tally.add(record, self.batch_size)
        self._note_link(loop)
        run_dir.metric(kind="step", **msgspec.to_builtins(record))
        display.step(state.step, state.tally)
        state.step += 1
        self._unkept_bytes += record.bytes_down
        every = settings.checkpoint_every
        if (every and state.step % every == 0) or self._unkept_bytes > LIMIT_BYTES // KEPT:
            self._trouble = state.try_to_save()
            self._unkept_bytes = 0
        display.trouble(self._trouble or loop.trouble or run_dir.trouble)

    def _go_back(self, behind: Behind, loop: DeviceLoop, display: Display) -> None:
        """The journal cannot bring the trainer forward: return to a checkpoint that both have had, and reconnect."""
        stood = self.state.step
        # A trainer that knows nothing of this run is the wrong one, or has lost it: what this device has must stay.
        if behind.applied == 0 or not self.state.resume(behind.applied):
            raise CheckpointError(
                f"the trainer stands at step {behind.applied}, this device at {stood}, and its journal cannot fill "
                "the gap",
                "a trainer that has kept its run (--run)",
                "start the trainer with the --run directory it had, or start both sides over with --fresh",
            )
        display.note(f"the journal is damaged: going back from step {stood} to the checkpoint of {self.state.step}")
        loop.rewound()
        self._open(loop, display)

    def _open(self, loop: DeviceLoop, display: Display) -> None:
        try:
            loop.channel.open(self.settings.outage_s)
        except Behind as behind:
            self._go_back(behind, loop, display)

    def _evaluation_due(self, total: int) -> bool:
        """Evaluations belong to the step that follows, so that a checkpoint of that step comes before them."""
        step, every, done = self.state.step, self.settings.evaluate_every, self.state.tally.evaluations
        due = step == total or (every > 0 and step > 0 and step % every == 0)
        return due and not (done and done[-1].step == step)

    def _evaluation_note(self, test: Loader) -> str:
        """What each evaluation will cost: whole activations weigh more than a step's, which matters on a slow link."""
        settings = self.settings
        images = sum(len(indices) for indices in test.sample(settings.evaluate_images))
        size = encoded_bytes((images, self.manifest.tokens, self.manifest.dim), settings.evaluate_precision)
        often = f"every {settings.evaluate_every} steps and " if settings.evaluate_every else ""
        return f"evaluating {images} test images {often}at the end: {decimal(size)} up each time (--eval-images)"

    def _evaluate(self, loop: DeviceLoop, test: Loader, run_dir: RunDir, display: Display) -> None:
        settings, tally, start = self.settings, self.state.tally, time.monotonic()
        result, up, down = loop.evaluate(self.state.step, test, settings.evaluate_images, settings.evaluate_precision)
        tally.evaluations.append(result)
        tally.bytes_evaluation_up += up
        tally.bytes_evaluation_down += down
        tally.seconds_evaluation += time.monotonic() - start
        self._note_link(loop)
        run_dir.metric(kind="evaluation", **msgspec.to_builtins(result), bytes_up=up, bytes_down=down)
        display.evaluated(result)

    def _note_link(self, loop: DeviceLoop) -> None:
        tally, channel = self.state.tally, loop.channel
        tally.outages += channel.outages
        tally.bytes_repeated_up += channel.repeated[0]
        tally.bytes_repeated_down += channel.repeated[1]
        channel.outages, channel.repeated = 0, [0, 0]
        tcp = channel.tcp()
        if tcp is not None:
            tally.link(tcp.rtt_ms, tcp.delivery_mbit_s, loop.down_mbit_s)

    def _loader(self, split: data.Split, batch_size: int, changes: Any = ()) -> Loader:
        how = self.manifest.preprocessing
        return Loader(split, how, batch_size, self.settings.seed, changes, self.settings.workers)

    def _hello(self, total: int) -> Hello:
        name = self.settings.name or socket.gethostname()
        state = self.state
        return Hello(
            version=VERSION,
            bundle=self.bundle.digest,
            session=state.session,
            life=state.life,
            device=name[:64],
            next_step=state.step,
            durable=state.durable,
            oldest=state.oldest,
            steps=total,
        )

    def _machine(self) -> dict[str, Any]:
        return machine.describe(engine=self.settings.engine, threads=self.settings.threads or os.cpu_count())

    def _engine(self, shim: Shim | None) -> Engine:
        settings = self.settings
        if settings.engine == "torch":
            from adc_edge.edge_runtime.shim import TorchEngine

            assert shim is not None
            return TorchEngine(shim)
        return OnnxEngine(self.bundle.path / CLIENT, self.manifest.trunk, settings.threads)

    def _shim(self) -> Shim:
        import torch

        from adc_edge.edge_runtime.shim import Shim

        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        learning = self.settings.optimizer if self.settings.trunk == "train" else None
        return Shim(self.manifest.trunk, self.bundle.path / TRUNK, learning)

    def _finish(self, run_dir: RunDir, shim: Shim | None, more: dict[str, Any], total: int) -> dict[str, Any]:
        """Write weights and report; a run that was interrupted leaves them too."""
        source = self.bundle.path / TRUNK
        if shim is not None:
            run_dir.keep(TRUNK, shim.safetensors())
        elif source.is_file():
            run_dir.keep(TRUNK, source.read_bytes())
        frozen = self.settings.trunk == "frozen"
        report = self.state.tally.report(
            self.shape, self.manifest.dim, self.precision, frozen, complete=self.state.step >= total, **more
        )
        if self.settings.report is not None:
            write_atomic(self.settings.report, json.dumps(report, indent=2).encode() + b"\n")
        return report
