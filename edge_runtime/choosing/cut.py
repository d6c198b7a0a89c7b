"""The cut of a run's steps into messages: as it is named, as the run was given it, or still to be chosen.

A run keeps what `--micro-batches auto` has chosen, whatever the link is when a process comes back: another number of
messages would change what is sent.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import msgspec

from adc_edge.defaults import Precision
from adc_edge.edge_runtime.frozen.length import RunLength
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.errors import CheckpointError
from adc_edge.files import json_bytes
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.planning.micro_batches import CutTime, possible_cuts
from adc_edge.storage.bundle import Manifest
from adc_edge.storage.run_dir import MICRO_BATCHES, RunDir, has_begun_in
from adc_edge.storage.run_settings import SETTINGS, RunSettings


class CutRecord(msgspec.Struct, frozen=True):
    """The cut that a run was given before its first step, with predicted seconds of a step."""

    micro_batches: int
    window: int
    seconds: float
    seconds_alone: float | None = None  # with one message; None: it was not predicted


def read_cut(run: Path | None) -> CutRecord | None:
    """Return the record in a run directory, None if there is none; raises CheckpointError if it is damaged."""
    file = None if run is None else run / MICRO_BATCHES
    if file is None or not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=CutRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file}: {error}",
            "a record as adc-edge wrote it",
            "use another --run directory, or start over with --fresh",
        ) from None


class RunCut:
    """The cut of a run's steps: M micro-batches, of which ``window`` are in flight at most, each of ``shape``.

    Args:
        settings: of the run.
        manifest: the bundle's.

    Raises:
        SettingError: the ratio makes no sense, or the batch cannot be divided as it is named.
        CheckpointError: the run's record is damaged.
    """

    def __init__(self, settings: ServeSettings, manifest: Manifest) -> None:
        self._settings, self._manifest = settings, manifest
        self._ratio = manifest.ratio if settings.ratio == Ratio() else settings.ratio.check()
        self.images = settings.batch_size or manifest.batch_size  # B, of a step
        known = settings.micro_batches
        if known == "auto":
            known = (None if settings.fresh else _micro_batches_in(settings.run)) or "auto"
        if known == "auto" or (settings.micro_batches == "auto" and self.images % known):
            known = "auto"  # of another batch size the run is another, which is refused by its settings
        self.known: int | Literal["auto"] = known
        self._use(1 if known == "auto" else known, 0)

    def shape_of(self, micro_batches: int) -> Shape:
        """Return the shape of each of so many micro-batches; raises SettingError if there is none."""
        return self._settings.cut(self._ratio, self._manifest, micro_batches)

    def open_shapes(self, run_dir: RunDir) -> dict[int, Shape]:
        """Return the shape of a micro-batch for each M that may be chosen; the run's own alone if it is settled."""
        settled = run_dir.has_begun or run_dir.kept(MICRO_BATCHES) is not None
        if self._settings.micro_batches != "auto" or settled:
            record = read_cut(self._settings.run)
            self._use(self.micro_batches, 0 if record is None else record.window)
            return {self.micro_batches: self.shape}
        found = possible_cuts(self.images, self.shape_of)
        if len(found) == 1:
            self.settle(run_dir, CutTime(1, 1, 0.0), None)
        return found

    def settle(self, run_dir: RunDir, cut: CutTime, alone: float | None) -> None:
        """Use a cut from now on, and keep it with the run before its first step."""
        self._use(cut.micro_batches, cut.window)
        run_dir.settle(micro_batches=cut.micro_batches, shape=msgspec.to_builtins(self.shape))
        run_dir.keep(MICRO_BATCHES, json_bytes(CutRecord(cut.micro_batches, self.window, cut.seconds, alone)))

    def step_settings(self, session: int, precisions: tuple[Precision, Precision], length: RunLength) -> StepSettings:
        """Return the settings of a run's steps.

        Args:
            session: of the run.
            precisions: of activations and of gradients.
            length: of the run.
        """
        settings, manifest = self._settings, self._manifest
        return StepSettings(
            session=session,
            shape=self.shape,
            prefix=manifest.prefix,
            dim=manifest.dim,
            classes=manifest.classes,
            precision=precisions[0],
            gradient_precision=precisions[1],
            planned_steps=length.sent,
            run_steps=length.planned,
            frozen_from=length.frozen_from,
            micro_batches=self.micro_batches,
            window=self.window,
            drift_every=settings.drift_every,
            noise=settings.noise,
            seed=settings.seed,
            outage_s=settings.outage_s,
        )

    def _use(self, micro_batches: int, window: int) -> None:
        self.micro_batches, self.shape = micro_batches, self.shape_of(micro_batches)
        self.window = min(self._settings.window or window or micro_batches, micro_batches)


def _micro_batches_in(run: Path | None) -> int | None:
    """Return M of the run in a directory: as it was chosen, or as it was named when it began; None: it is open."""
    record = read_cut(run)
    if record is not None:
        return record.micro_batches
    if run is None or not has_begun_in(run):
        return None
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):  # a damaged one is refused by name
        found = msgspec.json.decode((run / SETTINGS).read_bytes(), type=RunSettings).fixed.get("micro_batches")
        return found if isinstance(found, int) else None
    return None
