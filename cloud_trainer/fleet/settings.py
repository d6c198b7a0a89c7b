"""Settings of a fleet: its mode, and the terms on which the devices' trunks become one."""

from __future__ import annotations

import msgspec

from adc_edge import defaults
from adc_edge.defaults import COMMON_MODES, FleetMode, FleetPrecision, RobustRule
from adc_edge.errors import SettingError


class FleetSettings(msgspec.Struct, frozen=True):
    """Settings of a fleet; ``every`` counts steps of a device, ``wait_s`` seconds, ``devices`` 0 is any number."""

    mode: FleetMode = "parallel"
    every: int = defaults.AVERAGE_EVERY
    wait_s: float = defaults.AVERAGE_WAIT_S
    precision: FleetPrecision = "int8"
    robust: RobustRule = "none"
    guard: bool = True
    devices: int = 0

    @property
    def common(self) -> bool:
        """Whether the devices have one trunk in common."""
        return self.mode in COMMON_MODES

    def in_words(self) -> str:
        """Return the settings that reach a weight, which a resumed run must share."""
        if not self.common:
            return self.mode
        words = f"{self.mode}, every {self.every} steps, changes in {self.precision}"
        rule = f", robust {self.robust}, guard {'on' if self.guard else 'off'}"
        return words + rule if self.mode == "averaged" else words

    def check(self) -> None:
        """Raise SettingError for an option that means nothing in this mode."""
        usual = FleetSettings()
        given = {
            "--average-every": self.every != usual.every,
            "--average-wait": self.wait_s != usual.wait_s,
            "--average-precision": self.precision != usual.precision,
            "--robust": self.robust != usual.robust,
            "--guard": self.guard != usual.guard,
        }
        mean = list(given)[:3] if self.mode == "sequential" else list(given) if self.mode == "averaged" else []
        for option in (name for name, is_given in given.items() if is_given and name not in mean):
            modes = "--mode averaged" + ("" if option in ("--robust", "--guard") else " or sequential")
            raise SettingError(f"{option} with --mode {self.mode}", modes, f"leave {option} out, or choose the mode")
