"""`adc-edge trainer`."""

from __future__ import annotations

from typing import Any

import click

from adc_edge import defaults
from adc_edge.options import (
    GroupedCommand,
    bundle_option,
    heading,
    key_options,
    log_options,
    optimizer_options,
    run_options,
)


@click.command(cls=GroupedCommand)
@heading("Bundle and link")
@bundle_option
@click.option(
    "--bind",
    default=defaults.TRAINER_ENDPOINT,
    show_default=True,
    metavar="tcp://HOST:PORT",
    help="Address to listen on; port * lets the system choose.",
)
@key_options
@heading("Run")
@run_options
@heading("Head")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--amp",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="bf16 autocast; auto: on CUDA devices that support it.",
)
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Run the head through torch.compile; auto: on CUDA.",
)
@click.option(
    "--max-images",
    default=defaults.MAX_IMAGES,
    show_default=True,
    type=click.IntRange(min=2),
    help="Largest number of images in one message.",
)
@heading("Devices")
@click.option(
    "--devices",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="End once N devices are done; 0: serve until Ctrl-C.",
)
@heading("Optimisation")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Random seed for dropout.")
@optimizer_options
@heading("Logging")
@log_options
def trainer(verbose: bool, quiet: bool, log_json: bool, **options: Any) -> None:
    """Train the head for the devices that connect."""
    from rich.console import Console

    from adc_edge import logs
    from adc_edge.cloud_trainer.runner import Trainer, TrainerSettings
    from adc_edge.optimizer.settings import take_settings

    console = Console()
    logs.configure(console, verbose - quiet, log_json)
    Trainer(TrainerSettings(optimizer=take_settings(options), **options), console).run()
