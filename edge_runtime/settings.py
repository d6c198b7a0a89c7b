"""The settings of `adc-edge serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from adc_edge import defaults
from adc_edge.codec.by_epoch import PrecisionsByEpoch, parse_precisions
from adc_edge.defaults import Compute, EngineName, Precision, Provider, ShimDevice
from adc_edge.edge_runtime.frozen.length import is_frozen
from adc_edge.edge_runtime.noise import NoiseSettings
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Manifest
from adc_edge.storage.run_settings import SETTINGS

_WITH_PATH = ("folder", "npz", "csv", "cifar10", "cifar100", "food101")


class ServeSettings(msgspec.Struct, frozen=True):
    """The settings of one run of `adc-edge serve`; None means the bundle's default."""

    bundle: Path
    trainer: str
    data: str = defaults.DATA
    keys: Path | None = None
    insecure: bool = False
    steps: int | None = None
    epochs: int | None = None
    trunk: Literal["train", "frozen"] = "train"
    engine: EngineName | Literal["auto"] = "onnxruntime"
    provider: Provider | Literal["auto"] = "auto"
    compute: Compute | None = None
    engine_cache: Path | None = None
    shim_device: ShimDevice | Literal["auto"] = "auto"
    freeze_first: int = 0
    refresh_every: int = 1
    ratio: Ratio = Ratio()
    precision: str | None = None  # or a list by epoch: P,P,…
    gradient_precision: str | None = None
    batch_size: int | None = None
    micro_batches: int | Literal["auto"] = "auto"
    window: int = 0
    plan: Path | Literal["auto"] | None = None
    min_accuracy: float | None = None  # in points above uncompressed training
    augment: str = "none"
    send_epochs: int = 0  # epochs that a device with a frozen trunk sends; 0: every step of the run
    freeze_after: float | None = None  # epochs in which the trunk learns before it is frozen; None: as ``trunk`` says
    allow_broken: bool = False
    seed: int = 0
    workers: int = defaults.DECODING_THREADS
    threads: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()
    noise: NoiseSettings = NoiseSettings()
    evaluate_every: int = 0
    evaluate_images: int = defaults.EVALUATION_IMAGES
    evaluate_precision: Precision | None = None  # None: by the size of its messages
    keep_best: bool = False
    stop_after: int = 0
    checkpoint_every: int = defaults.CHECKPOINT_EVERY
    drift_every: int = 0
    run: Path | None = None
    fresh: bool = False
    report: Path | None = None
    wait_s: float | None = defaults.WAIT_S
    outage_s: float | None = None
    name: str = ""

    @property
    def computes(self) -> Compute:
        """The precision that the engine computes in."""
        return self.compute or ("fp16" if self.engine == "tensorrt" else "fp32")

    def by_epoch(self, manifest: Manifest) -> PrecisionsByEpoch:
        """Precisions of each epoch: the bundle's, or ``precision`` both ways where it is given.

        Raises:
            SettingError: a precision is unknown.
        """
        up: tuple[Precision, ...] = (manifest.precision,)
        down: tuple[Precision, ...] = (manifest.gradient_precision or manifest.precision,)
        if self.precision is not None:
            up = down = parse_precisions(self.precision)
        if self.gradient_precision is not None:
            down = parse_precisions(self.gradient_precision)
        return PrecisionsByEpoch(up, down)

    def precisions(self, manifest: Manifest) -> tuple[Precision, Precision]:
        """Precisions of activations and gradients in the first epoch; raises as ``by_epoch``."""
        return self.by_epoch(manifest).of_epoch(0)

    def check_compute(self) -> None:
        """Raise SettingError unless the engine can compute in this precision for this trunk."""
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

    def check_best(self) -> None:
        """Raise SettingError unless there are evaluations to choose the best of, and a place to keep it."""
        wishes = {"--keep-best": self.keep_best, f"--stop-after {self.stop_after}": self.stop_after > 0}
        for wish in (name for name, given in wishes.items() if given and not self.evaluate_every):
            received = f"{wish} with one evaluation, at the end"
            raise SettingError(received, "several evaluations to compare", f"add --eval-every N, or leave {wish} out")
        if self.keep_best and self.run is None:
            raise SettingError(
                "--keep-best without --run",
                "a run directory, where the best trunk is kept",
                "add --run DIR here and on the trainer, or leave --keep-best out",
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Number of steps of the whole run; raises SettingError if both steps and epochs are given."""
        if self.steps is not None and self.epochs is not None:
            raise SettingError("--steps and --epochs", "one of them", "leave one out")
        return self.steps if self.steps is not None else (self.epochs or 1) * steps_per_epoch

    def cut(self, ratio: Ratio, manifest: Manifest, micro_batches: int) -> Shape:
        """The shape that each of so many micro-batches sends; raises SettingError if the batch cannot be divided so."""
        images = self.batch_size or manifest.batch_size
        if images % micro_batches:
            raise SettingError(
                f"--micro-batches {micro_batches} of a batch of {images}",
                "a number that divides the batch",
                "choose another, or another --batch-size",
            )
        return ratio.shape(images // micro_batches, manifest.tokens, manifest.prefix)

    def fixed(
        self, bundle: str, precisions: tuple[str, str], shape: Shape, micro_batches: int | Literal["auto"]
    ) -> dict[str, Any]:
        """The settings that a resumed run must share, with the bundle's defaults filled in.

        ``data`` is spelt as in the run that ``run`` holds if that names the same data.
        """
        more: dict[str, Any] = {"send_epochs": self.send_epochs} if self.send_epochs else {}
        more |= {} if self.freeze_after is None else {"freeze_after": self.freeze_after}
        return more | {
            "role": "device",
            "bundle": bundle,
            "data": same_source(self.data, self.run),
            "seed": self.seed,
            "augment": self.augment,
            "trunk": self.trunk,
            "compute": self.computes,
            "optimizer": self.optimizer,
            "noise": self.noise,
            "precision": precisions[0],
            "gradient_precision": precisions[1],
            "shape": msgspec.to_builtins(shape),
            "micro_batches": micro_batches,
            "refresh_every": self.refresh_every,
            "freeze_first": self.freeze_first,
        }


class StepSettings(msgspec.Struct, frozen=True):
    """The settings that every step of a run shares."""

    session: int
    shape: Shape  # of a micro-batch
    prefix: int
    dim: int
    classes: int
    precision: Precision
    gradient_precision: Precision
    planned_steps: int  # that the device does
    run_steps: int = 0  # with those that the trainer does alone: the trunk's schedule is of all; 0: there are none
    frozen_from: int | None = None  # step from which on a trunk that has learned is frozen
    micro_batches: int = 1
    window: int = 1  # most micro-batches in flight
    varies: bool = False  # the number of micro-batches changes in this run, so each message tells it
    drift_every: int = 0
    noise: NoiseSettings = NoiseSettings()
    seed: int = 0  # of the noise
    outage_s: float | None = None  # how long to wait for a trainer that went away; None: for ever
    by_epoch: PrecisionsByEpoch | None = None  # precisions of each epoch; None: those above hold for all steps
    steps_per_epoch: int = 0  # of the data; 0: not known

    @property
    def lasting_precision(self) -> Precision:
        """Precision of the activations in the last of the listed epochs, and from then on."""
        return self.precision if self.by_epoch is None else self.by_epoch.up[-1]

    def is_frozen_at(self, step: int) -> bool:
        """Whether a trunk that has learned is frozen in ``step``."""
        return is_frozen(self.frozen_from, step)

    def figures(self, frozen: bool) -> dict[str, float | str | None]:
        """Return ξ, precisions (None: no gradient is sent), micro-batches and images of a step, for the record."""
        return {
            "xi": self.shape.xi,
            "precision": self.precision,
            "gradient_precision": None if frozen else self.gradient_precision,
            "micro_batches": self.micro_batches,
            "images": self.micro_batches * self.shape.images,
        }


def same_source(source: str, run: Path | None) -> str:
    """Return the data source as ``run`` has it if that names the same one: ``./x``, ``x/``, a link, the whole path.

    Where the run's own is gone, as in a project that was moved, the spelling typed last time means the same too.
    """
    where = resolved_source(source)
    try:
        old = json.loads((run / SETTINGS).read_bytes()) if run is not None else {}
        kept, typed = old["fixed"]["data"], old["free"]["data"]
    except (OSError, ValueError, KeyError, TypeError):  # no run; or a damaged one, which RunDir refuses by name
        return where
    kept = str(kept)
    moved = source == typed and not Path(kept.partition(":")[2]).exists()
    return kept if moved or where == resolved_source(kept) else where


def resolved_source(source: str) -> str:
    """Return a data source with its whole path; a name without one, as of a Python function, stays as it is."""
    kind, _, where = source.partition(":")
    return f"{kind}:{Path(where).resolve()}" if where and kind in _WITH_PATH else source
