"""Settings of the activation store, and the reasons for which a trainer has none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from adc_edge import defaults
from adc_edge.errors import SettingError
from adc_edge.quantities import as_typed
from adc_edge.storage.run_dir import STORE, WHOLE_FILE

if TYPE_CHECKING:
    from adc_edge.cloud_trainer.settings import TrainerSettings


class StoreSettings(msgspec.Struct, frozen=True):
    """Settings of the store: bytes of all sessions together; drop and mix as `TokenAugmentation` has them."""

    most_bytes: float = defaults.STORE_BYTES
    drop: float = 0.0
    mix: float = 0.0

    @property
    def augments(self) -> str:
        """The options that augment stored rows, as a user types them; empty: none does."""
        return as_typed({"--store-drop": self.drop, "--store-mix": self.mix})

    def check(self, settings: TrainerSettings, ranks: bool) -> None:
        """Raise SettingError for a trainer without a store, if stored rows are augmented or its run needs the store."""
        if self.augments and (why := reason_for_none(settings, ranks)):
            raise SettingError(
                f"{self.augments} with {why}",
                "a trainer that keeps what devices send",
                "leave the augmentation out, or change the other",
            )
        if settings.run is not None and not (settings.fresh or settings.serve_only):
            check_none_waits(settings.run / STORE, reason_for_none(settings, ranks))


def check_none_waits(directory: Path, why_none: str) -> None:
    """Raise SettingError if a trainer keeps no messages, and its run has a session that goes on with those it has.

    Args:
        directory: of the stores of the run.
        why_none: the reason why it keeps none; empty: it does.
    """
    waits = sorted(directory.glob(f"*/{WHOLE_FILE}")) if why_none else []
    if waits:
        raise SettingError(
            f"{why_none}, and {waits[0].parent}: messages of a device that may be switched off (--send-epochs)",
            "a trainer that goes on with them",
            "start it as it was, until that device's steps are done; or delete that directory",
        )


def reason_for_none(settings: TrainerSettings, ranks: bool) -> str:
    """Return why a trainer with these settings keeps no messages to go on without the device; empty: it does."""
    reasons = {
        "several ranks under torchrun": ranks,
        "--serve-only": settings.serve_only,
        "--merge-passes each": settings.merge_passes == "each",
        f"--mode {settings.mode}": settings.fleet.common,
        "no run directory (--run)": settings.run is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
