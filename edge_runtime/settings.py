"""What `adc-edge serve` can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from adc_edge.codec.precision import Precision
from adc_edge.edge_runtime.noise import NoiseSettings
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Compute, Manifest


class ServeSettings(msgspec.Struct, frozen=True):
    """What `adc-edge serve` was asked for; None means the bundle's default."""

    bundle: Path
    trainer: str
    data: str = "digits"
    keys: Path | None = None
    insecure: bool = False
    steps: int | None = None
    epochs: int | None = None
    trunk: Literal["train", "frozen"] = "train"
    engine: Literal["onnxruntime", "tensorrt", "torch", "auto"] = "onnxruntime"
    provider: Literal["cpu", "cuda", "tensorrt", "xnnpack", "auto"] = "auto"
    compute: Compute | None = None
    engine_cache: Path | None = None
    freeze_first: int = 0
    refresh_every: int = 1
    ratio: Ratio = Ratio()
    precision: Precision | None = None
    gradient_precision: Precision | None = None
    batch_size: int | None = None
    micro_batches: int = 1
    window: int = 0
    augment: str = "none"
    seed: int = 0
    workers: int = 2
    threads: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()
    noise: NoiseSettings = NoiseSettings()
    evaluate_every: int = 0
    evaluate_images: int = 1000
    evaluate_precision: Precision = "fp16"
    checkpoint_every: int = 100
    drift_every: int = 0
    run: Path | None = None
    fresh: bool = False
    report: Path | None = None
    wait_s: float | None = 30.0
    outage_s: float | None = None
    name: str = ""

    @property
    def computes(self) -> Compute:
        """What the engine computes in."""
        return self.compute or ("fp16" if self.engine == "tensorrt" else "fp32")

    def precisions(self, manifest: Manifest) -> tuple[Precision, Precision]:
        """Of activations and gradients: the bundle's, or where the first is asked for, both ways the same."""
        up, down = manifest.precision, manifest.gradient_precision
        if self.precision is not None:
            up, down = self.precision, None
        return up, self.gradient_precision or down or up

    def check_compute(self) -> None:
        """Raise SettingError unless the engine can compute so for this trunk."""
        compute, engine = self.computes, self.engine
        if compute == "int8" and self.trunk == "train":
            raise SettingError(
                "--compute int8 with a trunk that trains",
                "--trunk frozen: int8 is forward only, since its scales would have to follow the weights",
                "add --trunk frozen, or leave --compute int8 out",
            )
        if compute != "fp32" and engine in ("torch", "auto"):
            raise SettingError(
                f"--compute {compute} with --engine {engine}",
                "--engine onnxruntime or tensorrt",
                "name the engine, or leave --compute out",
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run; raises SettingError if both steps and epochs are given."""
        if self.steps is not None and self.epochs is not None:
            raise SettingError("--steps and --epochs", "one of them", "leave one out")
        return self.steps if self.steps is not None else (self.epochs or 1) * steps_per_epoch

    def cut(self, ratio: Ratio, manifest: Manifest) -> Shape:
        """What each micro-batch of a step sends; raises SettingError if the batch cannot be cut so."""
        images = self.batch_size or manifest.batch_size
        if images % self.micro_batches:
            raise SettingError(
                f"--micro-batches {self.micro_batches} of a batch of {images}",
                "a number that divides the batch",
                "choose another, or another --batch-size",
            )
        return ratio.shape(images // self.micro_batches, manifest.tokens, manifest.prefix)

    def fixed(self, bundle: str, precisions: tuple[Precision, Precision], shape: Shape) -> dict[str, Any]:
        """What a resumed run must share, of these and of what the bundle's defaults have made of them."""
        return {
            "role": "device",
            "bundle": bundle,
            "data": self.data,
            "seed": self.seed,
            "augment": self.augment,
            "trunk": self.trunk,
            "compute": self.computes,
            "optimizer": self.optimizer,
            "noise": self.noise,
            "precision": precisions[0],
            "gradient_precision": precisions[1],
            "shape": msgspec.to_builtins(shape),
            "micro_batches": self.micro_batches,
            "refresh_every": self.refresh_every,
            "freeze_first": self.freeze_first,
        }
