"""`adc-edge serve`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from adc_edge.options import (
    PRECISION,
    bundle_option,
    data_option,
    engine_cache_option,
    engine_options,
    key_options,
    noise_options,
    optimizer_options,
    ratio_options,
    run_options,
)


@click.command()
@bundle_option
@click.option("--trainer", required=True, metavar="tcp://HOST:PORT", help="Where `adc-edge trainer` listens.")
@data_option(default="digits", show_default=True)
@click.option("--steps", type=click.IntRange(min=0), help="Optimizer steps.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the data, instead of --steps; default 1.")
@click.option(
    "--trunk", type=click.Choice(["train", "frozen"]), default="train", show_default=True, help="frozen needs no torch."
)
@click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "tensorrt", "torch", "auto"]),
    default="onnxruntime",
    show_default=True,
    help="auto measures ONNX Runtime and torch here and keeps the one with the shorter step.",
)
@engine_options
@engine_cache_option
@click.option(
    "--freeze-first",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="K",
    help="Freeze embedding and blocks 1..K: they are not recomputed.",
)
@click.option(
    "--refresh-every",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="K",
    help="Steps from one refresh of the engine's weights to the next; above 1 the engine drifts, which is reported.",
)
@ratio_options
@click.option("--precision", type=PRECISION, help="On the wire, both ways; default: the bundle's.")
@click.option("--gradient-precision", type=PRECISION, help="Of gradients, if it is another.")
@click.option("--batch-size", type=click.IntRange(min=2), help="Images a step; default: the bundle's.")
@click.option(
    "--micro-batches",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    metavar="M",
    help="Messages a step: device, link and cloud work at the same time, each on another.",
)
@click.option(
    "--window",
    default=0,
    type=click.IntRange(min=0),
    metavar="W",
    help="Micro-batches in flight at most, which bounds memory; default: all of a step.",
)
@click.option(
    "--augment", default="none", show_default=True, metavar="LIST", help="flip, jitter, randaugment; comma-separated."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of order, augmentation and k-means."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Threads that decode images.")
@optimizer_options
@click.option(
    "--eval-every",
    "evaluate_every",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Evaluate every N steps, besides at the end.",
)
@click.option(
    "--eval-images",
    "evaluate_images",
    default=1000,
    show_default=True,
    type=click.IntRange(min=0),
    help="Test images at most; 0: all.",
)
@click.option("--eval-precision", "evaluate_precision", type=PRECISION, default="fp16", show_default=True)
@click.option(
    "--drift-every",
    default=0,
    type=click.IntRange(min=0),
    metavar="N",
    help="Log max |engine - PyTorch| every N steps.",
)
@run_options
@click.option("--report", type=click.Path(path_type=Path), help="JSON file for the result.")
@click.option(
    "--wait",
    "wait_s",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to try to reach the trainer at the start; inf: for ever.",
)
@click.option(
    "--outage",
    "outage_s",
    default=math.inf,
    type=click.FloatRange(min=0),
    help="Seconds to wait for a trainer that went away; default: for ever.",
)
@noise_options
@click.option("--name", default="", help="Label of this device in the trainer's log; default: the host's name.")
@key_options
def serve(
    ratio: float | None,
    batch_ratio: float | None,
    token_ratio: float | None,
    wait_s: float,
    outage_s: float,
    snr_up: float | None,
    snr_down: float | None,
    bit_errors: float,
    **rest: Any,
) -> None:
    """Train from this device: run trunk + ADC on its data, send activations, apply the gradients that come back."""
    from rich.console import Console

    from adc_edge.edge_runtime.display import report_table
    from adc_edge.edge_runtime.noise import NoiseSettings
    from adc_edge.edge_runtime.runner import Serve
    from adc_edge.edge_runtime.settings import ServeSettings
    from adc_edge.method.ratio import Ratio
    from adc_edge.optimizer.settings import take_settings

    console = Console()
    settings = ServeSettings(
        ratio=Ratio(ratio, batch_ratio, token_ratio),
        optimizer=take_settings(rest),
        noise=NoiseSettings(snr_up, snr_down, bit_errors),
        wait_s=None if math.isinf(wait_s) else wait_s,
        outage_s=None if math.isinf(outage_s) else outage_s,
        **rest,
    )
    report = Serve(settings, console).run()
    console.print(report_table(report))
    if settings.run is not None:
        console.print(f"run kept in {settings.run}", highlight=False)
