"""Records of a study: the task that all runs share, a run, its evaluations, and the plan on disk."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from adc_edge.errors import SettingError
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.study.setting import Setting
from adc_edge.optimizer.settings import OptimizerSettings

STUDY_FORMAT = 1


class Study(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One task for every method: model, data, order, optimizer and length.

    A run ends after ``epochs``. With a ``budget`` it goes on until it has spent this share of the bytes that an
    uncompressed run of ``epochs`` takes, up to ``max_epochs``.
    """

    data: str
    model: str = "deit_tiny_patch16_224"
    weights: str | None = None
    pretrained: bool = False
    allow_missing: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET  # left out of study.json when not given
    model_args: dict[str, Any] = {}
    crop_pct: float | Literal["model"] | None = None  # "model": its own; None, as in studies of 0.6: no timm crop
    split: int = 3
    batch_size: int = 128
    epochs: float = 8.0
    budget: float | None = None
    max_epochs: float | None = None
    evaluate_every: float = 1.0  # epochs
    train_images: int = 0  # size of a fixed random sample; 0: all
    test_images: int = 0
    augment: str = "flip"
    store_drop: float | msgspec.UnsetType = msgspec.UNSET  # as `trainer` has them, once the trainer goes on alone
    store_mix: float | msgspec.UnsetType = msgspec.UNSET
    optimizer: OptimizerSettings = OptimizerSettings(name="adam")
    trunk_lr: float | msgspec.UnsetType = msgspec.UNSET  # that of ``optimizer``
    device: str = "cpu"  # "auto" until torch is asked (`on_device`); never in study.json
    compute: Literal["fp32", "bf16"] = "fp32"

    @property
    def trunk_optimizer(self) -> OptimizerSettings:
        """The trunk's optimizer: that of the head, with a learning rate of its own if it has one."""
        own = self.optimizer.lr if self.trunk_lr is msgspec.UNSET else self.trunk_lr
        return msgspec.structs.replace(self.optimizer, lr=own)

    def check(self) -> Study:
        """Return self, or raise SettingError for a number out of range."""
        positive = {"--epochs": self.epochs, "--eval-every": self.evaluate_every, "--budget": self.budget or 1.0}
        for option, value in positive.items():
            if not value > 0:
                raise SettingError(f"{option} {value}", "more than 0", f"leave {option} out for its default")
        if self.max_epochs is not None and self.max_epochs < self.epochs:
            raise SettingError(
                f"--max-epochs {self.max_epochs:g}", f"at least --epochs {self.epochs:g}", "raise it or leave it out"
            )
        return self


class Point(msgspec.Struct, frozen=True, omit_defaults=True):
    """One evaluation of a run. Accuracies are in 0..1; bytes are those on the wire since the run's start.

    In a fleet whose devices have trunks of their own, accuracies are means over the trunks.
    """

    step: int
    epoch: float
    bytes_up: int
    bytes_down: int
    accuracy: float  # test activations not compressed
    accuracy_through: float | None  # test activations compressed, for methods that do so
    loss: float  # mean training loss since the last point
    seconds: float
    accuracy_lowest: float | None = None  # of the trunks, compared as ``best``; None: there is one trunk
    accuracy_highest: float | None = None
    bytes_trunk_up: int = 0  # of bytes_up, those of the trunk's changes
    bytes_trunk_down: int = 0
    left_out: int = 0  # changes that did not fit the others

    @property
    def best(self) -> float:
        """The higher of both accuracies, by which rivals are judged."""
        return max(self.accuracy, self.accuracy_through or 0.0)


class Guess(msgspec.Struct, frozen=True):
    """The test split as a model without knowledge sees it: its images, and the share of its commonest class."""

    images: int
    chance: float


class Run(msgspec.Struct, frozen=True, omit_defaults=True):
    """One setting with one seed, from start to end."""

    setting: str
    seed: int
    ratio: float  # share of the values that is sent up
    uncompressed_step_bytes: int  # of a step of plain split learning at fp32, both ways
    steps_per_epoch: int
    curve: tuple[Point, ...]
    machine: dict[str, Any] = {}
    guess: Guess | None = None  # None in runs of 0.7 and older
    fleet: StudyFleet | None = None  # None: one device with all images
    device_images: tuple[int, ...] = ()  # number of training images of each device of a fleet

    @property
    def share(self) -> float:
        """Bytes of a step, both ways, as a share of an uncompressed step's."""
        last = self.curve[-1]
        return (last.bytes_up + last.bytes_down) / (last.step * self.uncompressed_step_bytes)


class StudyPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A study with its settings, seeds and fleets: study.json in the output directory."""

    format: int
    study: Study
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    fleets: tuple[StudyFleet | None, ...] | msgspec.UnsetType = msgspec.UNSET  # left out for one device alone

    @property
    def all_fleets(self) -> tuple[StudyFleet | None, ...]:
        """The fleets; None is one device with all images."""
        return (None,) if self.fleets is msgspec.UNSET else self.fleets


def run_name(setting: Setting | str, seed: int, fleet: StudyFleet | None = None) -> str:
    """File name of a run."""
    return f"{run_stem(setting, seed, fleet)}.json"


def run_stem(setting: Setting | str, seed: int, fleet: StudyFleet | None = None) -> str:
    """Name of a run in names of files."""
    devices = "" if fleet is None else f".{fleet.stem}"
    return str(setting).replace("/", "_").replace(":", "-") + f"{devices}.seed{seed}"
