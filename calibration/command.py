"""`adc-edge link` and `adc-edge calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adc_edge.options import (
    COUNT,
    NUMBER,
    OUTPUT_FILE,
    FloatRange,
    broken_option,
    bundle_option,
    data_option,
    key_options,
    log_options,
)

if TYPE_CHECKING:
    from adc_edge.logs import AnyConsole


@click.command()
@click.option("--trainer", required=True, metavar="tcp://HOST:PORT", help="Address of `adc-edge trainer`.")
@click.option("--seconds", default=5.0, type=FloatRange(min=0.5), help="Duration of the measurement.")
@click.option("--json", "json_file", type=OUTPUT_FILE, help="JSON file for the result.")
@click.option("--wait", "wait_s", default=10.0, type=NUMBER, help="Seconds to wait for the trainer.")
@key_options
@log_options
def link(
    console: AnyConsole,
    trainer: str,
    seconds: float,
    json_file: Path | None,
    wait_s: float,
    keys: Path | None,
    insecure: bool,
) -> None:
    """Measure round trip and rates to a running trainer, over the trainer's own socket."""
    import json

    from rich.table import Table

    from adc_edge.calibration.link.measure import measure_link
    from adc_edge.files import write_atomic
    from adc_edge.wire.channel import Channel
    from adc_edge.wire.connection import ClientKeys
    from adc_edge.wire.sockets import check_endpoint

    endpoint = check_endpoint(trainer, insecure, keys is not None, connecting=True)
    pinned = None if keys is None else ClientKeys.load(keys)
    channel = Channel(endpoint, keys=pinned, loopback_alone=pinned is None and not insecure)
    try:
        channel.open(wait_s)
        result = measure_link(channel, seconds)
    finally:
        channel.close()
    table = Table(title=f"link to {result.trainer}, measured for {result.seconds:.1f} s")
    for name in ("up Mbit/s", "down Mbit/s", "RTT min ms", "p50", "p95", "p99"):
        table.add_column(name, justify="right")
    rtts = (result.rtt_min_ms, result.rtt_p50_ms, result.rtt_p95_ms, result.rtt_p99_ms)
    table.add_row(f"{result.up_mbit_s:.2f}", f"{result.down_mbit_s:.2f}", *(f"{rtt:.2f}" for rtt in rtts))
    console.print(table)
    if json_file is not None:
        write_atomic(json_file, json.dumps(result._asdict(), indent=2).encode() + b"\n")


@click.command()
@bundle_option
@data_option(required=True)
@broken_option
@click.option("--images", default=256, metavar="N", help="Training images to take the ranges from.")
@click.option(
    "--method",
    type=click.Choice(["minmax", "percentile", "entropy"]),
    default="percentile",
    help="Rule for the range of activations that INT8 covers.",
)
@click.option(
    "--percentile",
    type=FloatRange(50, 100),
    metavar="P",
    help="Percentage of values inside the range, with --method percentile.  [default: 99.99]",
)
@click.option(
    "--max-drop",
    default=1.0,
    type=NUMBER,
    metavar="POINTS",
    help="Largest drop of top-1 on the test split; a larger one writes nothing.",
)
@click.option("--eval-images", default=1000, type=COUNT, metavar="N", help="Test images to judge by; 0: all.")
@click.option("--seed", default=0, type=COUNT, help="Random seed for the choice of images.")
@log_options
def calibrate(console: AnyConsole, **options: Any) -> None:
    """Write the bundle's INT8 graph, for a device with a frozen trunk, and report its accuracy, size and speed.

    INT8 is forward only: its scales do not follow weights that learn.
    """
    import shlex

    from adc_edge.calibration.int8.calibrate import CalibrationSettings, calibrate_bundle
    from adc_edge.calibration.int8.report import calibration_notes, calibration_tables

    settings = CalibrationSettings(**options)
    report = calibrate_bundle(settings)
    for table in calibration_tables(report):
        console.print(table)
    for note in calibration_notes(report):
        console.print(f"note     {note}", markup=False)
    console.say(f"wrote    {settings.bundle}: client.int8.onnx, calibration.json")
    bundle, data = shlex.quote(str(settings.bundle)), shlex.quote(settings.data)
    console.say_next(
        f"adc-edge serve --bundle {bundle} --trainer tcp://127.0.0.1:5700 --data {data} --trunk frozen --compute int8"
    )
