"""`trainer`: puts bundle, head, server and run directory together."""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from rich.console import Console
from safetensors.torch import load_file

from adc_edge import defaults, machine
from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.served_session import SessionRecord
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import BundleError, CheckpointError, SettingError
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.signals import StopFlag
from adc_edge.storage.bundle import HEAD, MANIFEST, Bundle
from adc_edge.storage.checkpoint import KEPT, Checkpoint
from adc_edge.storage.journal import LIMIT_BYTES
from adc_edge.storage.run_dir import RunDir
from adc_edge.wire.sockets import check_endpoint

ENDPOINT = "endpoint"  # file in the run directory: where the trainer listens
OPEN = "insecure: anybody who reaches this address can train this head and read what is sent"


class TrainerSettings(msgspec.Struct, frozen=True):
    """What `adc-edge trainer` was asked for."""

    bundle: Path
    bind: str = defaults.TRAINER_ENDPOINT
    keys: Path | None = None
    insecure: bool = False
    run: Path | None = None
    fresh: bool = False
    checkpoint_every: int = defaults.CHECKPOINT_EVERY
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "off"] = "auto"
    compiled: Literal["auto", "on", "off"] = "auto"
    max_images: int = defaults.MAX_IMAGES
    devices: int = 0
    seed: int = 0
    threads: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()


class Trainer:
    """One run of the trainer."""

    def __init__(self, settings: TrainerSettings, console: Console, stop: Callable[[], bool] | None = None) -> None:
        self.settings, self.console = settings, console
        self.stop = stop or StopFlag()
        check_endpoint(settings.bind.replace("*", "0"), settings.insecure, settings.keys is not None)
        self.access = None if settings.keys is None else Access(settings.keys)
        if settings.threads:
            torch.set_num_threads(settings.threads)
            machine.limit_threads(settings.threads)
        self.bundle = Bundle.load(settings.bundle, need=(HEAD,))
        self.training = self._training()
        # Standings of the checkpoints that a damaged newest one would fall back on.
        self._kept: deque[tuple[int, dict[int, SessionRecord]]] = deque(maxlen=KEPT)
        self._unkept_bytes = 0  # of steps since the last checkpoint: devices keep them until the next

    def run(self) -> None:
        """Serve devices until Ctrl-C, or until ``devices`` of them are done."""
        settings = self.settings
        fixed = {
            "role": "trainer",
            "bundle": self.bundle.digest,
            "optimizer": settings.optimizer,
            "seed": settings.seed,
        }
        free = msgspec.to_builtins(settings, enc_hook=str)
        _raise_descriptor_limit()
        with ExitStack() as stack:
            run_dir = self.run_dir = RunDir(settings.run, fixed, free, self._machine(), fresh=settings.fresh)
            stack.callback(run_dir.close)
            for change in run_dir.changes:
                self._say(f"warning: {change} since this run was last at work: the last bits may differ")
            self.sessions = SessionRegistry(run_dir.journal)
            self._resume()
            server = self.server = Server(
                self.bundle,
                self.training,
                settings.bind,
                self.sessions,
                access=self.access,
                max_images=settings.max_images,
                say=self._say,
                on_step=self._on_step,
                on_bye=self._checkpoint,
                go_back=self._go_back,
            )
            stack.callback(server.close)
            self._note_durable()
            run_dir.keep(MANIFEST, (self.bundle.path / MANIFEST).read_bytes())
            run_dir.keep(ENDPOINT, server.endpoint.encode())
            self._greet(server.endpoint)
            if settings.insecure and self.console.is_terminal:
                stack.enter_context(self.console.status(f"[bold red]{OPEN}"))  # stays on the screen
            try:
                server.serve(lambda: self.stop() or 0 < settings.devices <= self.sessions.finished())
            finally:
                self._checkpoint()
                run_dir.keep(HEAD, self.training.safetensors())
        kept = f"; run kept in {settings.run}" if settings.run else ""
        self._say(f"stopped after {self.training.steps} steps{kept}")

    def _greet(self, endpoint: str) -> None:
        manifest, training = self.bundle.manifest, self.training
        where = f"{training.device}{', bf16' if training.bf16 else ''}{', compiled' if training.compiled else ''}"
        self._say(f"head of {manifest.model} after block {manifest.split} on {where}; listening on {endpoint}")
        if self.access is not None:
            allowed = "adc-edge keys list shows who may connect"
            self._say(f"encrypted with key {self.access.fingerprint}; {allowed}")
            for file, fault in self.access.devices.faults.items():
                self._say(f"warning: {file} lets nobody in: {fault}")
        if self.settings.insecure:
            self._say(f"warning: {OPEN}")
        if training.device.type == "cuda":
            self._say(
                "CUDA sums in no fixed order: an interrupted run equals an undisturbed one nearly, not bit for bit"
            )
        if 0 < self.settings.devices <= self.sessions.finished():
            self._say("this run's devices are done already; to train them further, leave --devices out")
        if self.settings.run is None:
            self._say("without --run nothing outlives this process: if it dies, its devices must start over")

    def _training(self) -> HeadTraining:
        settings = self.settings
        cuda = torch.cuda.is_available()
        if settings.device == "cuda" and not cuda:
            raise SettingError("--device cuda, and torch finds no CUDA device", "a CUDA device", "use --device auto")
        device = "cuda" if cuda and settings.device != "cpu" else "cpu"
        bf16 = device == "cuda" and settings.amp == "auto" and torch.cuda.is_bf16_supported()
        head = head_from_manifest(self.bundle.manifest)
        try:
            head.vit.load_state_dict(load_file(self.bundle.path / HEAD), strict=True)
        except RuntimeError as error:
            raise BundleError(f"{HEAD}: {error}", "the weights of the manifest's head", "export it again") from None
        compiled = settings.compiled == "on" or (settings.compiled == "auto" and device == "cuda")
        return HeadTraining(head, settings.optimizer, device, bf16, settings.seed, compiled)

    def _machine(self) -> dict[str, Any]:
        return machine.describe_machine(
            device=str(self.training.device),
            bf16=self.training.bf16,
            compiled=self.training.compiled,
            threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )

    def _resume(self) -> None:
        kept = self.run_dir.latest()
        if kept is None:  # what a process did that was killed before its first checkpoint is to be done again
            self.run_dir.rewind(0, lambda line: False)
        else:
            self._restore(kept)
            self._say(f"resuming {self.settings.run} at step {kept.step}")

    def _restore(self, kept: Checkpoint) -> None:
        try:
            sessions = msgspec.convert(kept.meta["sessions"], dict[int, SessionRecord], strict=False)
        except (KeyError, msgspec.ValidationError) as error:
            raise CheckpointError(
                f"{self.settings.run}: {error}", "a trainer's checkpoint", "use another --run, or --fresh"
            ) from None
        self.training.restore(kept.arrays, kept.step)
        self.sessions.restore(sessions)
        self.run_dir.rewind(kept.step, lambda line: line.get("head_step", 0) <= kept.step)
        self._kept.clear()
        self._kept.append((kept.step, msgspec.convert(msgspec.to_builtins(sessions), dict[int, SessionRecord])))

    def _go_back(self, session: int, step: int) -> bool:
        """Return to a checkpoint in which ``session`` stood at ``step`` or before, if no other device loses by it."""
        others = any(s.id != session and not s.standing.finished and s.applied for s in self.sessions)
        until = self.training.steps
        while not others:
            try:
                kept = self.run_dir.latest(until)
            except CheckpointError:
                break
            if kept is None:
                break
            stood = kept.meta["sessions"].get(str(session))
            if stood is None or stood["applied"] <= step:
                self._say(f"the log of answers is damaged: going back to the checkpoint of step {kept.step}")
                self._restore(kept)
                self._note_durable()
                return True
            until = kept.step - 1
        return False

    def _on_step(self, **values: Any) -> None:
        self.run_dir.metric(kind="step", **values)
        self._unkept_bytes += values["body_bytes_up"]
        every = self.settings.checkpoint_every
        due = every and self.training.steps % every == 0
        if self.settings.run is not None and (due or self._unkept_bytes > LIMIT_BYTES // KEPT):
            try:
                self._checkpoint()
            except OSError as error:  # what was kept before stays, and so do the devices' journals
                self._say(f"warning: no checkpoint at step {self.training.steps}: {error}; going on")

    def _checkpoint(self) -> None:
        if self.settings.run is None:
            return
        self.sessions.sync()
        standings = msgspec.to_builtins(self.sessions.standings(), str_keys=True)
        kept = self.training.steps, msgspec.convert(standings, dict[int, SessionRecord], strict=False)
        if self._kept and self._kept[-1] == kept:  # as at the end, after the last goodbye
            return
        self.run_dir.checkpoint(self.training.steps, self.training.arrays(), {"sessions": standings})
        if self._kept and self._kept[-1][0] == self.training.steps:
            self._kept.pop()  # it has taken the place of that one
        self._kept.append(kept)
        self._unkept_bytes = 0
        self._note_durable()

    def _note_durable(self) -> None:
        """Tell devices how far back this trainer may still come: to the older of two checkpoints, or to nothing."""
        if self.settings.run is not None:
            older = self._kept[0][1] if len(self._kept) == KEPT else {}
            self.server.answers.durable = {number: standing.applied for number, standing in older.items()}

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _raise_descriptor_limit() -> None:
    """Room for as many connections as the guard admits, and more, where the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
