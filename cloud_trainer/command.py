"""`adc-edge trainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adc_edge import defaults
from adc_edge.errors import SettingError
from adc_edge.options import (
    COUNT,
    IMAGES,
    FloatRange,
    GroupedCommand,
    broken_option,
    bundle_option,
    choices,
    data_option,
    heading,
    key_options,
    log_options,
    optimizer_options,
    run_options,
)
from adc_edge.quantities import BYTE_COUNT, StepsOrEvery
from adc_edge.watching.options import WatchSettings, watch_options

if TYPE_CHECKING:
    from rich.console import Console

RANK_OPTIONS = {"sync", "round_wait", "place", "advertise", "rank_timeout", "public_ranks"}
_SECONDS = FloatRange(min=0, finite=True)


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
    "--devices",
    default=0,
    type=COUNT,
    metavar="N",
    help="End once N devices are done; 0: serve until Ctrl-C. In the modes averaged and sequential a device that is "
    "done waits for the others, so that all end with the same trunk.",
)
@click.option(
    "--one-session",
    is_flag=True,
    help="Refuse a second session, so that options tried one after another each begin on a new head.",
)
@click.option(
    "--serve-only",
    is_flag=True,
    help="Train nothing: answer `adc-edge infer` with the bundle's head, or the newest in --run, which is only read.",
)
@click.option(
    "--max-devices",
    default=0,
    type=COUNT,
    metavar="N",
    help="Let a new device wait while N are connected, of each rank under torchrun; 0: as many as there is room for.",
)
@click.option(
    "--merge-passes",
    type=choices(defaults.MergePasses),
    default="off",
    help="Learn waiting steps of several devices in one pass: one optimizer step of the sum, or one for each.",
)
@click.option(
    "--store-max",
    default=defaults.STORE_BYTES,
    show_default="20GB",
    type=BYTE_COUNT,
    metavar="BYTES",
    help="Most bytes kept on disk of devices that send each image once (serve --send-epochs), until they are done.",
)
@click.option(
    "--store-drop",
    default=0.0,
    type=FloatRange(0, 0.95),
    metavar="SHARE",
    help="Leave out this share of the patch tokens, others in each step, in the steps that go on without the device.",
)
@click.option(
    "--store-mix",
    default=0.0,
    type=FloatRange(0, 100),
    metavar="ALPHA",
    help="Exchange patch tokens and as large a share of the labels between rows in these steps (CutMix). The share is "
    "drawn from Beta(ALPHA, ALPHA): 1 for any share alike; 0: no exchange.",
)
@heading("Fleet")
@click.option(
    "--mode",
    type=choices(defaults.FleetMode),
    default="parallel",
    help="Mode of the fleet. parallel: each device trains a trunk of its own. averaged: every few steps all trunks "
    "become their mean. sequential: one trunk goes from device to device. frozen: no device trains its trunk.",
)
@click.option(
    "--average-every",
    default=defaults.AVERAGE_EVERY,
    type=click.IntRange(min=1),
    metavar="K",
    help="Steps of a device between two of its changes (averaged), or in its turn (sequential).",
)
@click.option(
    "--average-wait",
    default=defaults.AVERAGE_WAIT_S,
    type=_SECONDS,
    metavar="SECONDS",
    help="Longest wait for devices that are late: from a round's first change on (averaged); for a device that has "
    "the turn and is away (sequential).",
)
@click.option(
    "--average-precision",
    type=choices(defaults.FleetPrecision),
    default="int8",
    help="Precision of the trunk's changes on the wire.",
)
@click.option(
    "--robust",
    type=choices(defaults.RobustRule),
    default="none",
    help="Rule by which changes become one (averaged): their mean by images, or one that a few wrong devices cannot "
    "move far.",
)
@click.option(
    "--guard",
    type=click.Choice(["on", "off"]),
    default="on",
    help="Leave out, and name, a device whose change is far larger than the others' or against them (averaged).",
)
@heading("Ranks (under torchrun)")
@click.option(
    "--sync",
    default="every",
    type=StepsOrEvery(),
    metavar="every|K",
    help="every: all ranks learn each round's steps together, as one trainer would. K: each rank learns alone, and "
    "every K steps the heads become their mean.",
)
@click.option(
    "--round-wait",
    default=defaults.ROUND_WAIT_S,
    type=_SECONDS,
    metavar="SECONDS",
    help="Longest wait of a rank without a step for a message of its devices, before it joins a round with none.",
)
@click.option(
    "--place",
    type=choices(defaults.Placing),
    default="load",
    help="Rule that chooses the rank of a new device: the least load, or a hash of the device's key or name.",
)
@click.option(
    "--advertise",
    metavar="tcp://HOST:PORT",
    help="Address of this host's first rank as devices reach it; the next ranks have the ports after it. "
    "Default: the address of --bind.",
)
@click.option(
    "--rank-timeout",
    default=defaults.RANK_TIMEOUT_S,
    type=FloatRange(min=1, finite=True),
    metavar="SECONDS",
    help="Longest silence of another rank; after it this rank ends, and torchrun starts all ranks anew.",
)
@click.option(
    "--public-ranks",
    is_flag=True,
    help="Allow ranks to talk through a public address, and torchrun to listen on a host that has one. Who reaches its "
    "ports can run code as this user: close them by a firewall first.",
)
@heading("Evaluation")
@data_option(help="Evaluate trunk and head here, on the test split of this data set (not in parallel mode):")
@click.option(
    "--eval-every",
    "evaluate_every",
    default=0,
    type=COUNT,
    metavar="N",
    help="Evaluate every N steps of the head, besides at the end.",
)
@click.option(
    "--eval-images",
    "evaluate_images",
    default=defaults.EVALUATION_IMAGES,
    type=COUNT,
    help="Most test images of an evaluation; 0: all.",
)
@broken_option
@heading("Optimisation")
@click.option("--seed", default=0, type=COUNT, help="Random seed for dropout.")
@optimizer_options
@heading("Watching")
@watch_options
@heading("Logging")
@log_options
def trainer(console: Console, watch: WatchSettings, **options: Any) -> None:
    """Train the head for the devices that connect, or answer inference with it (--serve-only)."""
    from adc_edge.cloud_trainer.ranks.launch import launched
    from adc_edge.cloud_trainer.ranks.stopping import RankStop
    from adc_edge.cloud_trainer.settings import TrainerSettings
    from adc_edge.config import chosen_options, resumed_options
    from adc_edge.optimizer.settings import take_settings
    from adc_edge.signals import INTERRUPTED, StopFlag
    from adc_edge.watching.process import watching

    launch = launched()
    stop = StopFlag() if launch is None else RankStop()
    kept = chosen_options(click.get_current_context())
    if launch is None:  # a run of ranks goes on without them; they stay in what it keeps
        for name in resumed_options(click.get_current_context()) & RANK_OPTIONS:
            del options[name]
    settings = TrainerSettings(optimizer=take_settings(options), **options)
    bundle = settings.check()
    if settings.serve_only:
        if watch.asked:
            raise SettingError("--serve-only with an option of watching", "a run to watch", "leave it out")
        from adc_edge.cloud_trainer.inference.serving import serve_head
        from adc_edge.cloud_trainer.runner import Trainer  # torch, whose import takes seconds

        serve_head(Trainer(settings, console, stop, kept, bundle))
        return
    if launch is not None:
        from adc_edge.cloud_trainer.ranks.command import run_rank

        assert isinstance(stop, RankStop), "made above"
        run_rank(settings, console, launch, watch, kept, bundle, stop)
        return
    dataset = settings.test_images()
    shown = click.get_current_context().with_resource(watching(settings.run, watch, stop))
    from adc_edge.cloud_trainer.runner import Trainer  # torch, whose import takes seconds

    complete = Trainer(settings, console, stop, kept, bundle, dataset).run(shown)
    if stop.by_ctrl_c and not complete:
        raise SystemExit(INTERRUPTED)
