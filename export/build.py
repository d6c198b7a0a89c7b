"""Export of a timm model to a bundle directory, which is written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from adc_edge.codec.precision import Precision
from adc_edge.errors import SettingError
from adc_edge.export.classes import check_number, read_class_names
from adc_edge.method.ratio import Ratio
from adc_edge.storage.bundle import MANIFEST, is_run
from adc_edge.weights.opening import check_origin

if TYPE_CHECKING:
    from adc_edge.export.parity import ParityRow


class ExportSettings(msgspec.Struct, frozen=True):
    """The options of `adc-edge export`.

    The default ratio and precisions send 2 % of the uncompressed bytes, at no measurable loss at 224 px
    (docs/results.md).
    """

    model: str
    split: int
    output: Path
    ratio: Ratio = Ratio(xi=1.0)
    batch_size: int = 32
    precision: Precision | None = None
    gradient_precision: Precision | None = None
    weights: Path | None = None
    pretrained: bool = False
    allow_missing: tuple[str, ...] = ()
    classes: int | None = None
    class_names: str | None = None  # a file or a data source
    model_args: Mapping[str, Any] = msgspec.field(default_factory=dict)
    crop_pct: float | None = None  # None: the model's own
    seed: int = 0
    force: bool = False
    fp16: bool = False
    tensorrt: bool = False
    whole: bool = False

    @property
    def precisions(self) -> tuple[Precision, Precision]:
        """Precisions of activations and gradients; a precision given for activations alone holds for both."""
        if self.precision is None:
            return "pca1", self.gradient_precision or "pca0.25"
        return self.precision, self.gradient_precision or self.precision

    def check(self) -> list[str]:
        """Return the class names, once everything is checked that can be checked before torch is imported.

        Raises:
            SettingError, DataError, ModelError: see ``export_bundle``.
        """
        _check_output(self.output, self.force)
        self.ratio.check()
        check_origin(self.weights, self.pretrained, self.allow_missing)
        names = [] if self.class_names is None else read_class_names(self.class_names)
        check_number(names, self.classes)
        return names


def export_bundle(settings: ExportSettings) -> list[ParityRow]:
    """Write the bundle and return the parity report.

    Raises:
        SettingError: the output exists and is no bundle, the ratio fits no batch, or the class names are no list.
        DataError: a class name is empty or there twice, or their source cannot be read.
        ModelError: the model cannot be made or cut, or no TensorRT would take it although one is asked for.
        ParityError: the graph differs from PyTorch; nothing is written.
    """
    names = settings.check()
    from adc_edge.export.writing import write_bundle  # torch, whose import takes seconds

    return write_bundle(settings, names)


def _check_output(output: Path, force: bool) -> None:
    if not output.exists():
        return
    bundle = (output / MANIFEST).is_file() and not is_run(output)  # a run directory has a manifest too
    if not output.is_dir() or (any(output.iterdir()) and not bundle):
        raise SettingError(f"{output} exists and is no bundle", "a new directory, or a bundle", "choose another -o")
    if any(output.iterdir()) and not force:
        raise SettingError(f"{output} holds a bundle already", "a new directory", "choose another -o, or type --force")
