"""`trainer`: puts bundle, head, server and run directory together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from rich.console import Console
from safetensors.torch import load_file

from adc_edge.bundle import HEAD, MANIFEST, Bundle
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.server import Server
from adc_edge.cloud_trainer.sessions import Sessions
from adc_edge.endpoint import check_endpoint
from adc_edge.errors import BundleError, CheckpointError, SettingError
from adc_edge.learning import OptimizerSettings
from adc_edge.run_dir import RunDir
from adc_edge.signals import StopFlag
from adc_edge.split import head_from_manifest

ENDPOINT = "endpoint"  # file in the run directory: where the trainer listens


class TrainerSettings(msgspec.Struct, frozen=True):
    """What `adc-edge trainer` was asked for."""

    bundle: Path
    bind: str = "tcp://127.0.0.1:5700"
    insecure: bool = False
    run: Path | None = None
    checkpoint_every: int = 100
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "off"] = "auto"
    max_images: int = 1024
    devices: int = 0
    seed: int = 0
    threads: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()


class Trainer:
    """One run of the trainer."""

    def __init__(self, settings: TrainerSettings, console: Console, stop: Callable[[], bool] | None = None) -> None:
        self.settings, self.console = settings, console
        self.stop = stop or StopFlag()
        check_endpoint(settings.bind.replace("*", "0"), settings.insecure)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.bundle = Bundle.load(settings.bundle, need=(HEAD,))
        self.training = self._training()

    def run(self) -> None:
        """Serve devices until Ctrl-C, or until ``devices`` of them are done."""
        settings = self.settings
        fixed = {"role": "trainer", "bundle": self.bundle.digest, "optimizer": settings.optimizer}
        self.run_dir = RunDir(settings.run, fixed, msgspec.to_builtins(settings, enc_hook=str))
        server = Server(
            self.bundle,
            self.training,
            settings.bind,
            self._resume(),
            max_images=settings.max_images,
            say=self._say,
            on_step=self._on_step,
        )
        self.server = server
        try:
            self.run_dir.keep(MANIFEST, (self.bundle.path / MANIFEST).read_bytes())
            self.run_dir.keep(ENDPOINT, server.endpoint.encode())
            manifest = self.bundle.manifest
            where = f"{self.training.device}{', bf16' if self.training.bf16 else ''}"
            self._say(
                f"head of {manifest.model} after block {manifest.split} on {where}; listening on {server.endpoint}"
            )
            if settings.insecure:
                self._say("warning: --insecure: anybody who reaches this address can train this head, in the clear")
            server.serve(lambda: self.stop() or 0 < settings.devices <= server.goodbyes)
        finally:
            server.close()
            self._checkpoint()
            self.run_dir.keep(HEAD, self.training.safetensors())
            self.run_dir.close()
        kept = f"; run kept in {settings.run}" if settings.run else ""
        self._say(f"stopped after {self.training.steps} steps{kept}")

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
        return HeadTraining(head, settings.optimizer, device, bf16)

    def _resume(self) -> Sessions:
        kept = self.run_dir.latest()
        if kept is None:
            return Sessions()
        try:
            applied = {int(key): int(value) for key, value in kept.meta["applied"].items()}
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.settings.run}: {error}", "a trainer's checkpoint", "use another --run"
            ) from None
        self.training.restore(kept.arrays, kept.step)
        self._say(f"resuming {self.settings.run} at step {kept.step}")
        return Sessions(applied)

    def _on_step(self, **values: Any) -> None:
        self.run_dir.metric(kind="step", **values)
        every = self.settings.checkpoint_every
        if every and self.training.steps % every == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        self.run_dir.checkpoint(
            self.training.steps, self.training.arrays(), {"applied": self.server.sessions.applied()}
        )

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
