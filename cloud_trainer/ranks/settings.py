"""The settings of trainer ranks under torchrun, and the checks of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from adc_edge import defaults
from adc_edge.cloud_trainer.ranks.launch import Launch, bound_to, is_wildcard, no_address
from adc_edge.defaults import Placing
from adc_edge.errors import SettingError
from adc_edge.wire.addresses import parse_address

if TYPE_CHECKING:
    from adc_edge.cloud_trainer.settings import TrainerSettings


class RankSettings(msgspec.Struct, frozen=True):
    """Settings of the ranks. ``sync`` 1: every step of all ranks is learned together; K: their mean every K steps."""

    sync: int = 1
    round_wait_s: float = defaults.ROUND_WAIT_S
    place: Placing = "load"
    advertise: str | None = None
    rank_timeout_s: float = defaults.RANK_TIMEOUT_S
    public_ranks: bool = False

    def check(self, settings: TrainerSettings, launch: Launch | None) -> None:
        """Check these settings against all of the trainer's, with or without torchrun.

        Raises:
            SettingError: options that have no meaning under torchrun, or none without it; no run directory; no address
                that devices can be told; two ranks of a host on one port.
        """
        if launch is None:
            self._check_unused()
            return
        self._check_refused(settings)
        if settings.run is None:
            raise SettingError(
                "ranks under torchrun without --run",
                "a run directory that all ranks share: after the loss of a rank all begin at its last checkpoint",
                "add --run DIR, on storage that every host reaches under this path",
            )
        bound_to(settings.bind, launch.local_rank)
        if self.advertise is None:
            if is_wildcard(settings.bind):
                raise no_address(settings.bind)
        elif parse_address(self.advertise, listening=True).host == "*":
            raise SettingError(
                f"--advertise {self.advertise}", "an address to which devices can connect", "name a host instead of *"
            )
        else:
            bound_to(self.advertise, launch.local_rank)

    def _check_unused(self) -> None:
        """Refuse options of ranks where there are none."""
        for name, option in _OPTIONS.items():
            if getattr(self, name) != getattr(_DEFAULT, name):
                raise SettingError(
                    f"{option} without torchrun",
                    "several ranks, which torchrun starts",
                    f"leave {option} out, or start with: torchrun --nproc-per-node N -m -- adc_edge trainer …",
                )

    def _check_refused(self, settings: TrainerSettings) -> None:
        """Refuse options that ranks have no meaning for."""
        merge, mode = settings.merge_passes, settings.mode
        wishes = {
            "--merge-passes each": (merge == "each", "ranks learn one sum of all their steps", "leave it out"),
            f"--mode {mode}": (
                settings.fleet.common,
                "a trunk for each device: ranks do not make one of them",
                "use --mode parallel or frozen, or one trainer without torchrun",
            ),
            f"--data {settings.data}": (
                settings.data is not None,
                "devices that evaluate themselves",
                "leave it out, or use one trainer without torchrun",
            ),
            "--serve-only": (settings.serve_only, "a training", "start it without torchrun: it needs no ranks"),
            "--one-session": (settings.one_session, "room for several devices", "leave it out"),
            "--fresh": (
                settings.fresh,
                "a run that goes on: every restart of the ranks would delete it",
                "delete the run directory yourself, or name another",
            ),
        }
        for wish, (given, expected, remedy) in wishes.items():
            if given:
                raise SettingError(f"{wish} under torchrun", expected, remedy)


_DEFAULT = RankSettings()
_OPTIONS = {
    "sync": "--sync",
    "round_wait_s": "--round-wait",
    "place": "--place",
    "advertise": "--advertise",
    "rank_timeout_s": "--rank-timeout",
    "public_ranks": "--public-ranks",
}
