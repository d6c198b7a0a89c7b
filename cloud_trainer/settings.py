"""The settings of `adc-edge trainer`, and the checks of them that need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from adc_edge import defaults
from adc_edge.cloud_trainer.fleet.settings import FleetSettings
from adc_edge.cloud_trainer.inference.head_source import find_head
from adc_edge.cloud_trainer.ranks.launch import bound_to, launched
from adc_edge.cloud_trainer.ranks.settings import RankSettings
from adc_edge.cloud_trainer.store.settings import StoreSettings
from adc_edge.data.sources import Dataset, load_dataset
from adc_edge.defaults import FleetMode, FleetPrecision, MergePasses, Placing, RobustRule
from adc_edge.errors import SettingError
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.security.keystore import load_pair
from adc_edge.storage.bundle import HEAD, TRUNK, Bundle
from adc_edge.storage.run_dir import check_run
from adc_edge.wire.sockets import check_endpoint, check_listening


class TrainerSettings(msgspec.Struct, frozen=True):
    """Settings of `adc-edge trainer`."""

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
    one_session: bool = False
    mode: FleetMode = "parallel"
    average_every: int = defaults.AVERAGE_EVERY
    average_wait: float = defaults.AVERAGE_WAIT_S
    average_precision: FleetPrecision = "int8"
    robust: RobustRule = "none"
    guard: Literal["on", "off"] = "on"
    data: str | None = None
    evaluate_every: int = 0
    evaluate_images: int = defaults.EVALUATION_IMAGES
    allow_broken: bool = False
    max_devices: int = 0
    merge_passes: MergePasses = "off"
    serve_only: bool = False
    store_max: float = defaults.STORE_BYTES
    store_drop: float = 0.0
    store_mix: float = 0.0
    sync: int = 1
    round_wait: float = defaults.ROUND_WAIT_S
    place: Placing = "load"
    advertise: str | None = None
    rank_timeout: float = defaults.RANK_TIMEOUT_S
    public_ranks: bool = False
    seed: int = 0
    threads: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()

    def fixed(self, bundle: Bundle) -> dict[str, Any]:
        """Return the settings that a resumed run must share."""
        own = {"role": "trainer", "bundle": bundle.digest, "optimizer": self.optimizer, "seed": self.seed}
        augmentation = {"store_drop": self.store_drop, "store_mix": self.store_mix}
        return own | {"mode": self.fleet.in_words()} | {name: value for name, value in augmentation.items() if value}

    @property
    def fleet(self) -> FleetSettings:
        """The settings of the fleet."""
        return FleetSettings(
            self.mode,
            self.average_every,
            self.average_wait,
            self.average_precision,
            self.robust,
            self.guard == "on",
            self.devices,
        )

    @property
    def store(self) -> StoreSettings:
        """The settings of the activation store."""
        return StoreSettings(self.store_max, self.store_drop, self.store_mix)

    @property
    def ranks(self) -> RankSettings:
        """The settings of the ranks that torchrun starts."""
        return RankSettings(
            self.sync,
            self.round_wait,
            self.place,
            self.advertise,
            self.rank_timeout,
            self.public_ranks,
        )

    def check(self) -> Bundle:
        """Return the bundle, once everything is checked that can be checked before torch is imported.

        Raises:
            SettingError: the address, the keys, or options that exclude each other; or the run is in use.
            BundleError: there is no bundle, or its head is missing or changed.
            CheckpointError: the run directory holds another run.
        """
        launch = launched()
        self.ranks.check(self, launch)
        self.store.check(self, launch is not None)
        if self.one_session and self.devices > 1:
            received = f"--one-session and --devices {self.devices}"
            raise SettingError(received, "--devices 1 at most: one session is one device's", "leave one out")
        self.fleet.check()
        self._check_data()
        if 0 < self.max_devices * (1 if launch is None else launch.world) < self.devices:
            received = f"--devices {self.devices} and --max-devices {self.max_devices}"
            raise SettingError(received, "room for all devices that are waited for", "raise --max-devices")
        check_endpoint(self.bind, self.insecure, self.keys is not None)
        if self.keys is not None:
            load_pair(self.keys)
        bundle = Bundle.load(self.bundle, need=(HEAD, TRUNK) if self.fleet.common or self.data is not None else (HEAD,))
        if self.serve_only:
            self._check_serving(bundle)
        elif launch is None or launch.rank == 0:  # which alone locks and writes it
            check_run(self.run, self.fixed(bundle), self.fresh)
        check_listening(self.bind if launch is None else bound_to(self.bind, launch.local_rank))
        return bundle

    def test_images(self) -> Dataset | None:
        """Return the data source whose test images the trainer evaluates with; None: it does not evaluate.

        Raises:
            DataError: there is no such source.
        """
        return None if self.data is None else load_dataset(self.data)

    def _check_data(self) -> None:
        """Refuse to evaluate where devices have no trunk in common, and to evaluate nothing every N steps."""
        if self.data is not None and self.mode == "parallel":
            raise SettingError(
                f"--data {self.data} in parallel mode, where each device has a trunk of its own",
                "a trunk that all devices have in common",
                "add --mode averaged, sequential or frozen, or leave --data out: devices evaluate themselves",
            )
        if self.evaluate_every and self.data is None:
            received = f"--eval-every {self.evaluate_every} without test images"
            raise SettingError(
                received, "a data source", "add --data SRC, or leave it out: devices evaluate themselves"
            )

    def _check_serving(self, bundle: Bundle) -> None:
        """Raise an error unless there is a head to serve, and no option of a training is given."""
        wishes = {
            "--fresh": self.fresh,
            "--one-session": self.one_session,
            f"--devices {self.devices}": self.devices,
            f"--mode {self.mode}": self.mode != "parallel",
            f"--data {self.data}": self.data is not None,
            f"--merge-passes {self.merge_passes}": self.merge_passes != "off",
            f"--max-devices {self.max_devices}": self.max_devices,
        }
        for wish in (name for name, given in wishes.items() if given):
            raise SettingError(
                f"--serve-only and {wish}", "no option of a training: nothing learns", f"leave {wish} out"
            )
        find_head(bundle, self.run)
