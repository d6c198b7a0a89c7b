"""Settings of a run, and the manifest of its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from adc_edge.storage.bundle import MANIFEST
from adc_edge.storage.run_settings import SETTINGS
from adc_edge.watch.reading.values import branch, flat, number, read_object, text, whole

Role = Literal["device", "trainer", ""]


class About:
    """The settings of a run, as far as they can be read.

    Args:
        path: the run's directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: list[tuple[int, int] | None] = []  # of settings and manifest as they were read
        self.role: Role = ""
        self.model, self.split, self.version = "", 0, ""
        self.settings: dict[str, Any] = {}  # flat, such as optimizer.lr; of the machine: machine.cores
        self.manifest: dict[str, Any] = {}
        self.steps_planned = 0  # 0: not known
        self.damaged = False

    def refresh(self) -> bool:
        """Read the files if they have changed; return whether they have."""
        stamps = [_stamp(self._path / name) for name in (SETTINGS, MANIFEST)]
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        if stamps[0] is None:
            self.damaged = True
            return False
        self._take(read_object(self._path / SETTINGS) or {}, read_object(self._path / MANIFEST) or {})
        return True

    def _take(self, settings: Mapping[str, Any], manifest: dict[str, Any]) -> None:
        fixed, machine = branch(settings, "fixed"), branch(settings, "machine")
        role = text(fixed, "role")
        self.role = "device" if role == "device" else "trainer" if role == "trainer" else ""
        self.damaged = not self.role
        self.settings = flat(branch(settings, "free")) | flat(fixed) | flat({"machine": machine})
        self.version = text(machine, "adc-edge", 40)
        self.manifest, self.model, self.split = manifest, text(manifest, "model", 200), whole(manifest, "split")
        self.steps_planned = whole(self.settings, "steps")

    @property
    def images(self) -> int:
        """Images of a device's step; 0 if that is not known."""
        return whole(self.settings, "batch_size") or whole(self.manifest, "batch_size")

    @property
    def frozen(self) -> bool:
        """Whether a device's trunk does not learn, so that no gradient comes back."""
        return self.settings.get("trunk") == "frozen"

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return whole(self.manifest, "tokens")

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's activations as fp32; 0 if that is not known."""
        return self.tokens * whole(self.manifest, "dim") * 4

    def xi(self) -> float | None:
        """Return ξ of the settings with which a device's run began."""
        found = [number(self.settings, f"shape.{name}") or 0.0 for name in ("clusters", "kept", "images", "tokens")]
        return found[0] * found[1] / (found[2] * found[3]) if all(found) else None


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return what changes with a file's content; None if there is no file."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino
