"""`adc-edge calibrate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from adc_edge.options import (
    COUNT,
    NUMBER,
    FloatRange,
    broken_option,
    bundle_option,
    data_option,
    log_options,
)

if TYPE_CHECKING:
    from adc_edge.logs import AnyConsole


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
