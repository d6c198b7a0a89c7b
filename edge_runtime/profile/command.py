"""`adc-edge profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adc_edge import defaults
from adc_edge.options import (
    COUNT,
    IMAGES,
    NUMBER,
    OUTPUT_FILE,
    bundle_option,
    choices,
    data_option,
    engine_cache_option,
    engine_options,
    key_options,
    log_options,
    ratio_options,
)

if TYPE_CHECKING:
    from adc_edge.logs import AnyConsole


@click.command()
@bundle_option
@click.option("--trainer", metavar="tcp://HOST:PORT", help="Trainer to ask for the speed of its head.")
@key_options
@click.option("--wait", "wait_s", default=10.0, type=NUMBER, help="Seconds to wait for the trainer.")
@data_option(default=defaults.DATA, help="Data set to take images from:")
@click.option("--batch-size", type=IMAGES, help="Images of the largest micro-batch; default: the bundle's batch.")
@ratio_options
@click.option(
    "--trunk",
    type=click.Choice(["train", "frozen"]),
    default="train",
    help="Whether `serve` trains the trunk; a frozen trunk needs no torch.",
)
@click.option("--engine", type=choices(defaults.EngineName), default="onnxruntime", help="Engine of the forward pass.")
@engine_options
@engine_cache_option
@click.option(
    "--shim-device",
    type=choices(defaults.ShimDevice, "auto"),
    default="auto",
    help="Device on which PyTorch trains the trunk; auto: CUDA if torch's works on this board, or else the CPU.",
)
@click.option("--threads", default=0, type=COUNT, help="Threads of torch and the engine; 0: all cores.")
@click.option("--json", "json_file", type=OUTPUT_FILE, metavar="FILE", help="JSON file for the profile.")
@log_options
def profile(console: AnyConsole, trainer: str | None, json_file: Path | None, wait_s: float, **options: Any) -> None:
    """Measure the speed of this device with a bundle, and of a trainer's head, for `adc-edge plan`.

    The device takes less than half a minute. The trainer measures once, in pieces between the messages of its devices,
    and keeps what it measured until it ends.
    """
    from msgspec import UNSET, UnsetType

    from adc_edge.edge_runtime.profile.device import DeviceMeasurement
    from adc_edge.edge_runtime.profile.report import profile_lines, profile_tables
    from adc_edge.edge_runtime.profile.trainer import ask_share, ask_trainer, trainer_channel
    from adc_edge.edge_runtime.settings import ServeSettings
    from adc_edge.files import json_bytes, write_atomic
    from adc_edge.planning.profile import Profile, TrainerProfile, TrainerShare

    settings = ServeSettings(trainer=trainer or "", wait_s=wait_s, **options)
    measurement = DeviceMeasurement(settings)
    head: TrainerProfile | None = None
    share: TrainerShare | UnsetType = UNSET
    with console.status("measuring") as status:
        if trainer is not None:
            status.update("measuring the trainer's head")
            with trainer_channel(settings) as channel:
                share = ask_share(channel)
                head = ask_trainer(channel, measurement.bundle.digest)
        device = measurement.run(lambda text: status.update(f"measuring {text}"))
    result = Profile(device, head, share)
    for line in profile_lines(result):
        console.say_wrapped(line, indent=9)
    for table in profile_tables(result):
        console.print(table)
    if json_file is not None:
        write_atomic(json_file, json_bytes(result))
