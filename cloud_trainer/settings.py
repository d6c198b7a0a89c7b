"""The settings of `adc-edge trainer`, and the checks of them that need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from adc_edge import defaults
from adc_edge.errors import SettingError
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.security.keystore import load_pair
from adc_edge.storage.bundle import HEAD, Bundle
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
    seed: int = 0
    threads: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()

    def fixed(self, bundle: Bundle) -> dict[str, Any]:
        """Return the settings that a resumed run must share."""
        return {"role": "trainer", "bundle": bundle.digest, "optimizer": self.optimizer, "seed": self.seed}

    def check(self) -> Bundle:
        """Return the bundle, once everything is checked that can be checked before torch is imported.

        Raises:
            SettingError: the address, the keys, or options that exclude each other; or the run is in use.
            BundleError: there is no bundle, or its head is missing or changed.
            CheckpointError: the run directory holds another run.
        """
        if self.one_session and self.devices > 1:
            received = f"--one-session and --devices {self.devices}"
            raise SettingError(received, "--devices 1 at most: one session is one device's", "leave one out")
        check_endpoint(self.bind, self.insecure, self.keys is not None)
        if self.keys is not None:
            load_pair(self.keys)
        bundle = Bundle.load(self.bundle, need=(HEAD,))
        check_run(self.run, self.fixed(bundle), self.fresh)
        check_listening(self.bind)
        return bundle
