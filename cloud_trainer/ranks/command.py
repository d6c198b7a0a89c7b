"""The part of `adc-edge trainer` that runs where torchrun has started it as one rank of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from adc_edge.cloud_trainer.ranks.launch import Launch
    from adc_edge.cloud_trainer.ranks.stopping import RankStop
    from adc_edge.cloud_trainer.settings import TrainerSettings
    from adc_edge.storage.bundle import Bundle
    from adc_edge.watching.options import WatchSettings


def run_rank(
    settings: TrainerSettings,
    console: Console,
    launch: Launch,
    watch: WatchSettings,
    options: Mapping[str, Any],
    bundle: Bundle,
    stop: RankStop,
) -> None:
    """Run one rank until all end. Rank 0 has the run watched.

    An end that was asked for is one with exit code 0 on every rank: torchrun starts all anew if one ends otherwise.
    A host whose ranks end only because another host leaves has not been asked: its torchrun starts them anew.

    Raises:
        RanksLost: another rank is gone, or ranks of another host were asked to end, and these were not.
    """
    from adc_edge.cloud_trainer.ranks.launch import die_with_parent, share_threads
    from adc_edge.errors import RanksLost
    from adc_edge.watching.process import watching

    die_with_parent()
    share_threads(launch)
    if launch.rank == 0:
        click.get_current_context().with_resource(watching(settings.run, watch, stop))
    from adc_edge.cloud_trainer.ranks.runner import RankTrainer  # torch, whose import takes seconds

    complete = RankTrainer(settings, console, launch, stop, options, bundle).run()
    if launch.nodes > 1 and not (complete and settings.devices) and not stop.comes_soon():
        raise RanksLost(
            "the ranks of another host were asked to end",
            "the same wish on this host, if the run is to end",
            "stop the supervisor of each host; otherwise torchrun starts the ranks of this one again",
        )
