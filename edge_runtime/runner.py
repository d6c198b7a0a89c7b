"""`serve`: puts bundle, data, engine, shim, channel and run directory together, and runs the steps."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from rich.console import Console
from rich.filesize import decimal

from adc_edge import augment, data
from adc_edge.bundle import CLIENT, MANIFEST, TRUNK, Bundle
from adc_edge.channel import DeviceChannel, Stopped
from adc_edge.edge_runtime.display import Display
from adc_edge.edge_runtime.engine import Engine
from adc_edge.edge_runtime.loop import DeviceLoop, StepSettings
from adc_edge.edge_runtime.onnx_engine import OnnxEngine
from adc_edge.edge_runtime.tally import Tally
from adc_edge.endpoint import check_endpoint
from adc_edge.errors import CheckpointError, SettingError
from adc_edge.files import write_atomic
from adc_edge.learning import OptimizerSettings
from adc_edge.loader import Loader
from adc_edge.precision import Precision, encoded_bytes
from adc_edge.protocol import VERSION, Hello
from adc_edge.ratio import Ratio, Shape
from adc_edge.run_dir import RunDir
from adc_edge.signals import StopFlag

if TYPE_CHECKING:  # torch is imported only if the trunk trains or the engine is torch
    from adc_edge.edge_runtime.shim import Shim


class ServeSettings(msgspec.Struct, frozen=True):
    """What `adc-edge serve` was asked for; None means the bundle's default."""

    bundle: Path
    trainer: str
    data: str = "digits"
    insecure: bool = False
    steps: int | None = None
    epochs: int | None = None
    trunk: Literal["train", "frozen"] = "train"
    engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    ratio: Ratio = Ratio()
    precision: Precision | None = None
    batch_size: int | None = None
    augment: str = "none"
    seed: int = 0
    workers: int = 2
    threads: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()
    evaluate_every: int = 0
    evaluate_images: int = 1000
    evaluate_precision: Precision = "fp16"
    checkpoint_every: int = 100
    drift_every: int = 0
    run: Path | None = None
    report: Path | None = None
    wait_s: float | None = 30.0
    name: str = ""


class Serve:
    """One run of a device."""

    def __init__(self, settings: ServeSettings, console: Console, stop: Callable[[], bool] | None = None) -> None:
        self.settings = settings
        self.console = console
        self.stop = stop or StopFlag()
        check_endpoint(settings.trainer, settings.insecure)
        need = (CLIENT,) if self._torchless else (CLIENT, TRUNK)
        self.bundle = Bundle.load(settings.bundle, need)
        self.manifest = self.bundle.manifest
        self.precision = settings.precision or self.manifest.precision
        self.batch_size = settings.batch_size or self.manifest.batch_size
        ratio = self.manifest.ratio if settings.ratio == Ratio() else settings.ratio.check()
        self.shape: Shape = ratio.shape(self.batch_size, self.manifest.tokens, self.manifest.prefix)
        self.step = 0
        self.session = secrets.randbits(63)
        self.tally = Tally()

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
            total = self._total_steps(train)
            run_dir = RunDir(settings.run, self._fixed(), msgspec.to_builtins(settings, enc_hook=str))
            stack.callback(run_dir.close)
            run_dir.keep(MANIFEST, (self.bundle.path / MANIFEST).read_bytes())
            shim = None if self._torchless else self._shim()
            self._resume(run_dir, shim)
            engine = stack.enter_context(self._engine(shim))
            if shim is not None:
                engine.refresh(shim.weights())
            display = Display(self.console, total, self.step)
            channel = DeviceChannel(
                settings.trainer,
                lambda: self._hello(total),
                notify=display.note,
                stop=self.stop,
                gradient_bytes=lambda gradient: loop.gradient_bytes(gradient),
            )
            stack.callback(channel.close)
            fixed = StepSettings(
                session=self.session,
                shape=self.shape,
                prefix=self.manifest.prefix,
                classes=self.manifest.classes,
                precision=self.precision,
                planned_steps=total,
                drift_every=settings.drift_every,
            )
            loop = DeviceLoop(engine, shim if settings.trunk == "train" else None, train, channel, fixed)
            with display:
                self._train(loop, test, run_dir, display, total)
            return self._finish(run_dir, shim, {"broken_images": len(train.broken) + len(test.broken)}, total)

    def _train(self, loop: DeviceLoop, test: Loader, run_dir: RunDir, display: Display, total: int) -> None:
        settings, channel, outages = self.settings, loop.channel, self.tally.outages
        try:
            channel.open(settings.wait_s)
            display.note(
                f"training {self.manifest.model} split {self.manifest.split} with {settings.trainer}: "
                f"B={self.batch_size}, T={self.shape.clusters}, k={self.shape.kept} of {self.manifest.tokens}, "
                f"ξ={self.shape.xi:.3f}, {self.precision}, trunk {settings.trunk}, engine {loop.engine.name}"
            )
            display.note(self._evaluation_note(test))
            while self.step < total and not self.stop():
                record = loop.step(self.step)
                self.tally.add(record, self.batch_size)
                self.tally.outages = outages + channel.outages
                self._note_link(loop)
                run_dir.metric(kind="step", **msgspec.to_builtins(record))
                display.step(self.step, self.tally)
                self.step += 1
                every = settings.evaluate_every
                if (every and self.step % every == 0) or self.step == total:
                    self._evaluate(loop, test, run_dir, display)
                if settings.checkpoint_every and self.step % settings.checkpoint_every == 0:
                    self._checkpoint(run_dir, loop.shim)
            if self.step >= total:  # else it means to come back
                channel.farewell(self.session)
        except Stopped:
            display.note("stopped while waiting for the trainer; the step in flight is dropped")
        finally:
            self._checkpoint(run_dir, loop.shim)

    def _evaluation_note(self, test: Loader) -> str:
        """What each evaluation will cost: whole activations weigh more than a step's, which matters on a slow link."""
        settings = self.settings
        images = sum(len(indices) for indices in test.sample(settings.evaluate_images))
        size = encoded_bytes((images, self.manifest.tokens, self.manifest.dim), settings.evaluate_precision)
        often = f"every {settings.evaluate_every} steps and " if settings.evaluate_every else ""
        return f"evaluating {images} test images {often}at the end: {decimal(size)} up each time (--eval-images)"

    def _evaluate(self, loop: DeviceLoop, test: Loader, run_dir: RunDir, display: Display) -> None:
        settings, start = self.settings, time.monotonic()
        result, up, down = loop.evaluate(self.step, test, settings.evaluate_images, settings.evaluate_precision)
        self.tally.evaluations.append(result)
        self.tally.bytes_evaluation_up += up
        self.tally.bytes_evaluation_down += down
        self.tally.seconds_evaluation += time.monotonic() - start
        run_dir.metric(kind="evaluation", **msgspec.to_builtins(result), bytes_up=up, bytes_down=down)
        display.evaluated(result)

    def _note_link(self, loop: DeviceLoop) -> None:
        tcp = loop.channel.tcp()
        if tcp is not None:
            self.tally.link(tcp.rtt_ms, tcp.delivery_mbit_s, loop.down_mbit_s)

    def _loader(self, split: data.Split, batch_size: int, changes: Any = ()) -> Loader:
        how = self.manifest.preprocessing
        return Loader(split, how, batch_size, self.settings.seed, changes, self.settings.workers)

    def _total_steps(self, train: Loader) -> int:
        settings = self.settings
        if settings.steps is not None and settings.epochs is not None:
            raise SettingError("--steps and --epochs", "one of them", "leave one out")
        return settings.steps if settings.steps is not None else (settings.epochs or 1) * train.steps_per_epoch

    def _fixed(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "role": "device",
            "bundle": self.bundle.digest,
            "data": settings.data,
            "seed": settings.seed,
            "augment": settings.augment,
            "trunk": settings.trunk,
            "optimizer": settings.optimizer,
            "precision": self.precision,
            "shape": msgspec.to_builtins(self.shape),
        }

    def _hello(self, total: int) -> Hello:
        name = self.settings.name or socket.gethostname()
        return Hello(VERSION, self.bundle.digest, self.session, name[:64], self.step, total)

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

    def _resume(self, run_dir: RunDir, shim: Shim | None) -> None:
        kept = run_dir.latest()
        if kept is None:
            return
        try:
            self.session = int(kept.meta["session"])
            self.tally = msgspec.convert(kept.meta["tally"], Tally)
        except (KeyError, msgspec.ValidationError) as error:
            raise CheckpointError(
                f"{self.settings.run}: {error}", "a checkpoint of `serve`", "use another --run"
            ) from None
        self.step = kept.step
        if shim is not None and self.settings.trunk == "train":
            shim.restore(kept.arrays)
        self.console.print(f"resuming {self.settings.run} at step {self.step}", highlight=False)

    def _checkpoint(self, run_dir: RunDir, shim: Shim | None) -> None:
        meta = {"session": self.session, "tally": msgspec.to_builtins(self.tally)}
        run_dir.checkpoint(self.step, {} if shim is None else shim.arrays(), meta)

    def _finish(self, run_dir: RunDir, shim: Shim | None, more: dict[str, Any], total: int) -> dict[str, Any]:
        """Write weights and report; a run that was interrupted leaves them too."""
        source = self.bundle.path / TRUNK
        if shim is not None:
            run_dir.keep(TRUNK, shim.safetensors())
        elif source.is_file():
            run_dir.keep(TRUNK, source.read_bytes())
        frozen = self.settings.trunk == "frozen"
        report = self.tally.report(
            self.shape, self.manifest.dim, self.precision, frozen, complete=self.step >= total, **more
        )
        if self.settings.report is not None:
            write_atomic(self.settings.report, json.dumps(report, indent=2).encode() + b"\n")
        return report
