"""`adc-edge trainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adc_edge import defaults
from adc_edge.options import (
    COUNT,
    IMAGES,
    GroupedCommand,
    bundle_option,
    heading,
    key_options,
    log_options,
    optimizer_options,
    run_options,
)
from adc_edge.watching.options import WatchSettings, watch_options

if TYPE_CHECKING:
    from rich.console import Console


@click.command(cls=GroupedCommand)
@heading("Bundle and link")
@bundle_option
@click.option(
    "--bind",
    default=defaults.TRAINER_ENDPOINT,
    metavar="tcp://HOST:PORT",
    help="Address to listen on; port * lets the system choose.",
)
@key_options
@heading("Run")
@run_options
@heading("Head")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--amp",
    type=click.Choice(["auto", "off"]),
    default="auto",
    help="bf16 autocast; auto: on CUDA devices that support it.",
)
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    help="Run the head through torch.compile; auto: on CUDA.",
)
@click.option("--max-images", default=defaults.MAX_IMAGES, type=IMAGES, help="Largest number of images in one message.")
@heading("Devices")
@click.option(
    "--devices", default=0, type=COUNT, metavar="N", help="End once N devices are done; 0: serve until Ctrl-C."
)
@click.option(
    "--one-session",
    is_flag=True,
    help="Refuse a second session, so that options tried one after another each begin on a new head.",
)
@heading("Optimisation")
@click.option("--seed", default=0, type=COUNT, help="Random seed for dropout.")
@optimizer_options
@heading("Watching")
@watch_options
@heading("Logging")
@log_options
def trainer(console: Console, watch: WatchSettings, **options: Any) -> None:
    """Train the head for the devices that connect."""
    from adc_edge.cloud_trainer.settings import TrainerSettings
    from adc_edge.config import chosen_options
    from adc_edge.optimizer.settings import take_settings
    from adc_edge.signals import INTERRUPTED, StopFlag
    from adc_edge.watching.process import watching

    stop = StopFlag()
    kept = chosen_options(click.get_current_context())
    settings = TrainerSettings(optimizer=take_settings(options), **options)
    bundle = settings.check()
    shown = click.get_current_context().with_resource(watching(settings.run, watch, stop))
    from adc_edge.cloud_trainer.runner import Trainer  # torch, whose import takes seconds

    complete = Trainer(settings, console, stop, kept, bundle).run(shown)
    if stop.by_ctrl_c and not complete:
        raise SystemExit(INTERRUPTED)
