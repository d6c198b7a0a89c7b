"""The settings of `adc-edge infer`, and the checks of them that load nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from adc_edge import defaults
from adc_edge.defaults import Compute, EngineName, Precision, Provider
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Ratio
from adc_edge.planning.place import InferPlace
from adc_edge.storage.bundle import WHOLE, Bundle

STDOUT = Path("-")
_FORMATS = (".jsonl", ".csv")
_WHOLE_AGAIN = "export it again with --whole"


class InferSettings(msgspec.Struct, frozen=True):
    """Settings of `adc-edge infer`."""

    bundle: Path
    images: tuple[Path, ...] = ()  # files and folders
    watch: Path | None = None
    trainer: str | None = None
    mode: Literal["auto"] | InferPlace = "auto"
    weights: Path | None = None  # run directory of `serve`
    keys: Path | None = None
    insecure: bool = False
    engine: EngineName = "onnxruntime"
    provider: Provider | Literal["auto"] = "auto"
    compute: Compute | None = None
    engine_cache: Path | None = None
    adc: bool = False
    ratio: Ratio = Ratio()
    precision: Precision | None = None
    batch_size: int | None = None
    deadline_s: float | None = None
    wait_s: float | None = defaults.WAIT_S
    output: Path | None = None
    fresh: bool = False
    allow_broken: bool = False
    report: Path | None = None
    workers: int = defaults.DECODING_THREADS
    threads: int = 0

    @property
    def compresses(self) -> bool:
        """Whether ADC merges images and drops tokens."""
        return self.adc or self.ratio != Ratio()

    def images_at_once(self, bundle: Bundle) -> int:
        """Return the most images of a batch: one, or with ADC the bundle's batch."""
        return self.batch_size or (bundle.manifest.batch_size if self.compresses else 1)

    def wire_precision(self, bundle: Bundle) -> Precision:
        """Return the precision of activations: int8, or with ADC the bundle's."""
        return self.precision or (bundle.manifest.precision if self.compresses else "int8")

    def engine_settings(self) -> ServeSettings:
        """Return the settings that make an engine as `serve` makes it."""
        return ServeSettings(
            self.bundle,
            self.trainer or "",
            trunk="frozen" if self.weights is None else "train",
            engine=self.engine,
            provider=self.provider,
            compute=self.compute,
            engine_cache=self.engine_cache,
            threads=self.threads,
        )

    def check(self) -> None:
        """Raise SettingError for options that exclude each other, or that lack another one."""
        if bool(self.images) == (self.watch is not None):
            received = "IMAGES and --watch" if self.images else "no images"
            raise SettingError(received, "files and folders to judge, or --watch DIR", "name one of the two")
        if self.watch is not None and not self.watch.is_dir():
            raise SettingError(f"--watch {self.watch}: no such directory", "a directory", "make it, or check the path")
        for path in self.images:
            if not path.exists():
                raise SettingError(f"{path}: no such file or folder", "images", "check the path")
        if self.output not in (None, STDOUT) and self.output.suffix not in _FORMATS:
            raise SettingError(f"-o {self.output}", f"a file of {' or '.join(_FORMATS)}, or -", "choose another name")
        if self.mode == "split" and self.trainer is None:
            raise _no_trainer("--mode split without --trainer")

    def places(self, bundle: Bundle, learned: bool) -> tuple[bool, bool]:
        """Return whether split and local inference are possible, as far as the options and the bundle tell.

        Args:
            bundle: loaded.
            learned: the trunk is that of a run, which the bundle's whole model has not learned.

        Raises:
            SettingError: what is asked for is not, or neither.
        """
        split, whole = self.trainer is not None and self.mode != "local", WHOLE in bundle.manifest.files
        if self.mode == "local" and self.weights is not None:
            received = f"--mode local with --weights {self.weights}: {WHOLE} has not learned that run"
            raise SettingError(received, "the bundle's own weights", f"leave --weights out, or {_merge()}")
        if not split and learned:
            received = f"no head anywhere: no --trainer, and {WHOLE} has not learned --weights {self.weights}"
            raise _no_trainer(received, _merge())
        if not split and not whole:
            if self.mode == "local":
                raise SettingError(f"{bundle.path} has no {WHOLE}", "a bundle with the whole model", _WHOLE_AGAIN)
            raise _no_trainer(f"no head anywhere: no --trainer, and {bundle.path} has no {WHOLE}")
        return split, whole and not learned


def _no_trainer(received: str, otherwise: str = _WHOLE_AGAIN) -> SettingError:
    return SettingError(
        received,
        "a trainer that answers inference, or a bundle with the whole model",
        f"start `adc-edge trainer --serve-only` and name it with --trainer; or {otherwise}",
    )


def _merge() -> str:
    return "merge it with its head: adc-edge merge, then export --weights FILE --whole"
