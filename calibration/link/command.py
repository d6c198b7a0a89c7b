"""`adc-edge link`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adc_edge.errors import SettingError
from adc_edge.options import NUMBER, OUTPUT_FILE, PATH, FloatRange, key_options, log_options
from adc_edge.quantities import BYTE_COUNT, DURATION

if TYPE_CHECKING:
    from adc_edge.calibration.link.measure import Dial
    from adc_edge.calibration.link.predicted import StepForecast
    from adc_edge.calibration.link.report import LinkReport
    from adc_edge.logs import AnyConsole


@click.command()
@click.option("--trainer", required=True, metavar="tcp://HOST:PORT", help="Address of `adc-edge trainer`.")
@click.option(
    "--seconds",
    default=15.0,
    type=FloatRange(min=0.5, finite=True),
    help="Duration of the measurement; a link with long round trips takes longer.",
)
@click.option("--max-bytes", type=BYTE_COUNT, metavar="N[kB|MB]", help="Bytes that are never exceeded, both ways.")
@click.option("--json", "json_file", type=OUTPUT_FILE, help="JSON file for the result.")
@click.option("--plot", type=OUTPUT_FILE, metavar="FILE", help="Rates and round trips over time; .png or .svg.")
@click.option(
    "--repeat",
    type=DURATION,
    metavar="N[s|m|h]",
    help="Measure again and again, from start to start, until Ctrl-C.",
)
@click.option("--log", type=OUTPUT_FILE, metavar="FILE", help="File to append each result to, one JSON object a line.")
@click.option("--bundle", type=PATH, metavar="DIR", help="Bundle whose step is predicted on this link.")
@click.option("--profile", type=PATH, metavar="FILE", help="Speed of this device, as `profile --json` wrote it.")
@click.option("--wait", "wait_s", default=10.0, type=NUMBER, help="Seconds to wait for the trainer.")
@key_options
@log_options
def link(
    console: AnyConsole,
    trainer: str,
    seconds: float,
    max_bytes: float | None,
    json_file: Path | None,
    plot: Path | None,
    repeat: float | None,
    log: Path | None,
    bundle: Path | None,
    profile: Path | None,
    wait_s: float,
    keys: Path | None,
    insecure: bool,
) -> None:
    """Measure round trips and rates to a running trainer, idle and under load, over the trainer's own socket."""
    import math

    from adc_edge.calibration.link.measure import LEAST_BYTES, measure_link
    from adc_edge.calibration.link.predicted import check_forecast
    from adc_edge.calibration.link.repeating import repeat_measurement

    most = math.inf if max_bytes is None else max_bytes
    if most < LEAST_BYTES:
        raise SettingError(
            f"--max-bytes {most:.0f}: too little to measure a link",
            f"at least {LEAST_BYTES / 1e3:.0f} kB",
            "raise --max-bytes; 20 MB measure 20 Mbit/s well",
        )
    if plot is not None:
        _check_plot(plot)
    if repeat is not None and log is None and json_file is None:
        raise SettingError("--repeat without a file", "--log FILE for the results", "add --log link.jsonl")
    forecast = check_forecast(bundle, profile)
    dial = _dialer(trainer, wait_s, keys, insecure)

    def show(report: LinkReport) -> None:
        _write(report, json_file, plot, log)
        _show(console, report, forecast)

    if repeat is None:
        show(measure_link(dial, seconds, most))
    else:
        repeat_measurement(lambda stop: measure_link(dial, seconds, most, stop), show, repeat, log)


def _dialer(trainer: str, wait_s: float, keys: Path | None, insecure: bool) -> Dial:
    from adc_edge.wire.channel import Channel
    from adc_edge.wire.connection import ClientKeys
    from adc_edge.wire.sockets import check_endpoint

    endpoint = check_endpoint(trainer, insecure, keys is not None, connecting=True)
    pinned = None if keys is None else ClientKeys.load(keys)

    def dial(stop: Any) -> Channel:
        channel = Channel(endpoint, keys=pinned, stop=stop, loopback_alone=pinned is None and not insecure)
        try:
            channel.open(wait_s)
        except BaseException:
            channel.close()
            raise
        return channel

    return dial


def _check_plot(path: Path) -> None:
    """Raise SettingError if the plot cannot be drawn later."""
    import importlib.util

    if path.suffix.lower() not in (".png", ".svg"):
        raise SettingError(f"--plot {path}", "a name that ends in .png or .svg", "for example --plot link.svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingError(
            "--plot needs matplotlib, which is not installed",
            "matplotlib",
            "pip install matplotlib; or use --json here and draw elsewhere",
        )


def _show(console: AnyConsole, report: LinkReport, forecast: StepForecast | None) -> None:
    from adc_edge.calibration.link.report import link_lines, link_tables

    for table in link_tables(report, console.width):
        console.print(table)
    for line in (*link_lines(report), *(() if forecast is None else forecast.lines(report))):
        console.say_wrapped(line, 9)


def _write(report: LinkReport, json_file: Path | None, plot: Path | None, log: Path | None) -> None:
    from adc_edge.calibration.link.repeating import append_line
    from adc_edge.files import json_bytes, write_atomic

    if json_file is not None:
        write_atomic(json_file, json_bytes(report))
    if log is not None:
        append_line(log, report)
    if plot is not None:
        from adc_edge.calibration.link.plot import draw_link

        write_atomic(plot, draw_link(report, plot.suffix.lower()[1:]))
