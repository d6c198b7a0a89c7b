"""`adc-edge serve`."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from adc_edge import defaults
from adc_edge.options import (
    COUNT,
    IMAGES,
    NUMBER,
    OUTPUT_FILE,
    PATH,
    PRECISION,
    FloatRange,
    GroupedCommand,
    broken_option,
    bundle_option,
    choices,
    data_option,
    engine_cache_option,
    engine_options,
    heading,
    key_options,
    log_options,
    noise_options,
    optimizer_options,
    ratio_options,
    run_options,
)
from adc_edge.quantities import ByEpoch, OrAuto
from adc_edge.watching.options import WatchSettings, watch_options

if TYPE_CHECKING:
    from adc_edge.logs import AnyConsole

_POSITIVE = click.IntRange(min=1)


@click.command(cls=GroupedCommand)
@heading("Bundle and trainer")
@bundle_option
@click.option("--trainer", required=True, metavar="tcp://HOST:PORT", help="Address where `adc-edge trainer` listens.")
@heading("Data")
@data_option(default=defaults.DATA)
@click.option("--steps", type=COUNT, help="Optimizer steps.")
@click.option("--epochs", type=_POSITIVE, help="Passes over the data, instead of --steps; default: 1.")
@click.option("--batch-size", type=IMAGES, help="Images a step; default: the bundle's.")
@click.option(
    "--augment", default="none", metavar="LIST", help="Augmentations: flip, jitter, randaugment; comma-separated."
)
@broken_option
@click.option("--workers", default=defaults.DECODING_THREADS, type=_POSITIVE, help="Threads that decode images.")
@click.option(
    "--seed", default=0, type=COUNT, help="Random seed for data order, augmentation and k-means initialisation."
)
@heading("Compression")
@partial(ratio_options, auto=True)
@click.option(
    "--precision",
    type=ByEpoch(PRECISION),
    metavar="P,…",
    help="Precision on the wire, both ways; default: the bundle's. A list as pca4,pca1,pca0.5 has one for each epoch, "
    f"the last one from then on. One of {', '.join(PRECISION.choices)}.",
)
@click.option(
    "--gradient-precision",
    type=ByEpoch(PRECISION),
    metavar="P,…",
    help="Precision of gradients, or a list by epoch, if it is another.",
)
@heading("Optimisation")
@click.option(
    "--trunk",
    type=click.Choice(["train", "frozen"]),
    default="train",
    help="Train the trunk or keep it frozen; a frozen trunk needs no torch.",
)
@click.option(
    "--send-epochs",
    default=0,
    type=COUNT,
    metavar="K",
    help="With a frozen trunk: send K epochs only (1: each image once); 0: send every step. The trainer keeps them and "
    "does the other steps alone: this device may then be switched off.",
)
@click.option(
    "--freeze-after",
    type=FloatRange(0, finite=True),
    metavar="E",
    help="Train the trunk for E epochs, which need not be whole, then freeze it; --send-epochs K counts from there.",
)
@optimizer_options
@click.option(
    "--freeze-first",
    default=0,
    type=COUNT,
    metavar="K",
    help="Freeze embedding and blocks 1..K, which are then not recomputed.",
)
@click.option(
    "--eval-every",
    "evaluate_every",
    default=0,
    type=COUNT,
    metavar="N",
    help="Evaluate every N steps, besides at the end.",
)
@click.option(
    "--eval-images",
    "evaluate_images",
    default=defaults.EVALUATION_IMAGES,
    type=COUNT,
    help="Most test images of an evaluation; 0: all.",
)
@click.option(
    "--eval-precision",
    "evaluate_precision",
    type=PRECISION,
    metavar="P",
    help="Precision of the activations of an evaluation; default: that of training, its last one if it changes by "
    "epoch, where it is pca1 to pca4 or dct1 to dct2, pca1 or dct1 below, pca4 for all others, and int8 where messages "
    "have few tokens. A run that goes on keeps its own.",
)
@click.option(
    "--keep-best",
    is_flag=True,
    help="Keep both halves of the best evaluation, besides the last; needs --run on both sides. See merge --best.",
)
@click.option(
    "--stop-after",
    default=0,
    type=COUNT,
    metavar="N",
    help="End the run after N evaluations in a row without a new best; 0: never.",
)
@heading("Engine")
@click.option(
    "--engine",
    type=choices(defaults.EngineName, "auto"),
    default="onnxruntime",
    help="Engine of the forward pass; auto measures ONNX Runtime and torch and keeps the one with the shorter step.",
)
@engine_options
@engine_cache_option
@click.option(
    "--shim-device",
    type=choices(defaults.ShimDevice, "auto"),
    default="auto",
    help="Device on which PyTorch trains the trunk; auto: CUDA if torch's works on this board, or else the CPU.",
)
@click.option(
    "--refresh-every",
    default=1,
    type=_POSITIVE,
    metavar="K",
    help="Steps between refreshes of the engine's weights; above 1 the engine drifts, which is reported.",
)
@heading("Run")
@run_options
@click.option("--report", type=OUTPUT_FILE, metavar="FILE", help="JSON file for the result.")
@heading("Link")
@key_options
@click.option(
    "--micro-batches",
    default="auto",
    type=OrAuto(click.IntRange(1, defaults.MOST_MICRO_BATCHES)),
    metavar="M",
    help="Messages a step, so that device, link and trainer work at the same time, each on another message; auto "
    "measures the link and the first batch, and the run keeps its choice.",
)
@click.option(
    "--window",
    default=0,
    type=COUNT,
    metavar="W",
    help="Most micro-batches in flight, which bounds memory; 0: all of a step, or as --micro-batches auto chooses.",
)
@click.option(
    "--plan",
    type=OrAuto(PATH),
    metavar="auto|FILE",
    help="Follow the link as it changes: auto, among settings of little loss (--min-accuracy), or FILE of plan --json, "
    "whose setting the run begins with.",
)
@click.option(
    "--min-accuracy",
    type=FloatRange(max=0, finite=True),
    metavar="POINTS",
    help="Least accuracy with --plan auto, in points relative to uncompressed training; default: -1.",
)
@click.option(
    "--wait",
    "wait_s",
    default=defaults.WAIT_S,
    type=NUMBER,
    help="Seconds to try to reach the trainer at the start; inf: for ever.",
)
@click.option(
    "--outage",
    "outage_s",
    default=math.inf,
    type=NUMBER,
    help="Seconds to wait for a trainer that went away; inf: for ever.",
)
@click.option("--name", default="", show_default="the host's name", help="Label of this device in the trainer's log.")
@heading("Studies")
@noise_options
@click.option(
    "--drift-every", default=0, type=COUNT, metavar="N", help="Log max |engine - PyTorch| every N steps; 0: never."
)
@heading("Watching")
@watch_options
@heading("Logging")
@log_options
def serve(
    console: AnyConsole,
    watch: WatchSettings,
    wait_s: float,
    outage_s: float,
    snr_up: float | None,
    snr_down: float | None,
    bit_errors: float,
    **rest: Any,
) -> None:
    """Train from this device: run trunk + ADC on its data, send activations, apply the gradients that come back."""
    import json
    import logging
    import shlex

    from adc_edge.config import chosen_options
    from adc_edge.edge_runtime.noise import NoiseSettings
    from adc_edge.edge_runtime.runner import Serve
    from adc_edge.edge_runtime.screen.result import report_table
    from adc_edge.edge_runtime.settings import ServeSettings, resolved_source
    from adc_edge.files import write_atomic
    from adc_edge.optimizer.settings import take_settings
    from adc_edge.signals import INTERRUPTED, StopFlag
    from adc_edge.watching.process import watching

    settings = ServeSettings(
        optimizer=take_settings(rest),
        noise=NoiseSettings(snr_up, snr_down, bit_errors),
        wait_s=None if math.isinf(wait_s) else wait_s,
        outage_s=None if math.isinf(outage_s) else outage_s,
        **rest,
    )
    stop, logger = StopFlag(), logging.getLogger(__name__)
    options = chosen_options(click.get_current_context()) | {"data": resolved_source(settings.data)}
    device = Serve(settings, console, stop, options)
    shown = click.get_current_context().with_resource(watching(settings.run, watch, stop))
    report = device.run(shown)
    as_json = click.get_current_context().params["log_json"]
    if not as_json:
        console.print(report_table(report))
    if settings.report is not None:  # after the table: if this fails, the result is on the screen
        write_atomic(settings.report, json.dumps(report, indent=2).encode() + b"\n")
    if settings.run is not None:
        go_on = "" if report["complete"] else "; type the same command to go on"
        logger.info("run kept in %s%s", settings.run, go_on)
        if report["complete"] and not as_json:
            if "steps_alone" in report:
                logger.info("both halves can be merged once the trainer has come to step %d:", device.length.planned)
            run = shlex.quote(str(settings.run))
            console.say_next(f"adc-edge merge --run-device {run} --run-trainer RUN_OF_THE_TRAINER -o model.safetensors")
    elif not report["complete"]:
        logger.info("without --run nothing of this run is kept")
    if stop.by_ctrl_c and not report["complete"]:
        raise SystemExit(INTERRUPTED)
    if not report["complete"] and not stop():  # the trainer did not acknowledge the end, as the log says
        raise SystemExit(1)
