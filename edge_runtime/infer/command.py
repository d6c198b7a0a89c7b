"""`adc-edge infer`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from adc_edge import defaults
from adc_edge.options import (
    COUNT,
    NUMBER,
    OUTPUT_FILE,
    PATH,
    PRECISION,
    FloatRange,
    GroupedCommand,
    bundle_option,
    choices,
    engine_cache_option,
    engine_options,
    heading,
    key_options,
    log_options,
    ratio_options,
)

if TYPE_CHECKING:
    from adc_edge.logs import AnyConsole

_POSITIVE = click.IntRange(min=1)


@click.command(cls=GroupedCommand)
@click.argument("images", nargs=-1, type=PATH)
@heading("Bundle and trainer")
@bundle_option
@click.option(
    "--trainer", metavar="tcp://HOST:PORT", help="Address of `adc-edge trainer --serve-only`; without it all is local."
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "split", "local"]),
    default="auto",
    help="Where images are judged: trunk here and head on the trainer (split), the whole model here (local), or the "
    "faster of the two (auto). While the trainer does not answer in time, local.",
)
@click.option("--local", is_flag=True, help="Run the whole model here, the same as --mode local.")
@click.option(
    "--weights", type=PATH, metavar="RUN", help="Run directory of `serve` with the trunk; default: the bundle's."
)
@heading("Images")
@click.option("--watch", type=PATH, metavar="DIR", help="Judge the images that are written to DIR, until Ctrl-C.")
@click.option("--allow-broken", is_flag=True, help="Exit with 0 although images could not be read, as --watch does.")
@click.option("--batch-size", type=_POSITIVE, help="Most images at once; default: 1, with --adc the bundle's.")
@click.option("--workers", default=defaults.DECODING_THREADS, type=_POSITIVE, help="Threads that decode images.")
@heading("Output")
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="File of answers that is continued, .jsonl or .csv; - is JSON on standard output. Default: words there.",
)
@click.option("--fresh", is_flag=True, help="Drop the answers that the output file holds.")
@click.option("--report", type=OUTPUT_FILE, metavar="FILE", help="JSON file for the summary.")
@heading("Compression")
@click.option("--adc", is_flag=True, help="Send by ADC at the bundle's ratio, as in training; default: all tokens.")
@ratio_options
@click.option(
    "--precision",
    type=PRECISION,
    metavar="P",
    help=f"Precision on the wire; default: int8, with ADC the bundle's. One of {', '.join(PRECISION.choices)}.",
)
@heading("Engine")
@click.option(
    "--engine", type=choices(defaults.EngineName), default="onnxruntime", help="Engine of the trunk, with --provider."
)
@engine_options
@engine_cache_option
@click.option("--threads", default=0, type=COUNT, help="Threads of torch and the engine; 0: all cores.")
@heading("Link")
@key_options
@click.option(
    "--deadline",
    "deadline_s",
    type=FloatRange(min=0, min_open=True, finite=True),
    metavar="SECONDS",
    help="Seconds for an answer before the image is judged here; default: three times the usual ones, at most 1.8.",
)
@click.option(
    "--wait",
    "wait_s",
    default=defaults.WAIT_S,
    type=NUMBER,
    help="Seconds to try to reach the trainer at the start; inf: for ever. With a whole model here, at most 3.",
)
@heading("Logging")
@log_options
def infer(console: AnyConsole, wait_s: float, local: bool, mode: Any, **rest: Any) -> None:
    """Judge images: files, folders, or a directory that a camera writes to, on this device alone or with a trainer."""
    import logging

    from adc_edge.edge_runtime.infer.runner import InferRun
    from adc_edge.edge_runtime.infer.settings import STDOUT, InferSettings
    from adc_edge.edge_runtime.infer.summary import summary_text
    from adc_edge.errors import SettingError
    from adc_edge.files import json_bytes, write_atomic
    from adc_edge.logs import AnyConsole, configure
    from adc_edge.signals import INTERRUPTED, StopFlag

    if local and mode == "split":
        raise SettingError("--local and --mode split", "one of them", "leave one out")
    settings = InferSettings(mode="local" if local else mode, wait_s=None if math.isinf(wait_s) else wait_s, **rest)
    params = click.get_current_context().params
    if settings.output in (None, STDOUT):  # the answers have standard output for themselves
        configure(AnyConsole(stderr=True), params["verbose"] - params["quiet"], params["log_json"])
    stop = StopFlag()
    run = InferRun(settings, console.say, stop)
    figures = run.run()
    logging.getLogger(__name__).info("done     %s", summary_text(figures))
    if settings.report is not None:
        write_atomic(settings.report, json_bytes(figures))
    if settings.watch is not None:  # a camera's broken image is an answer like others, and Ctrl-C the usual end
        return
    if run.summary.broken and not settings.allow_broken:
        raise SystemExit(1)
    if stop.by_ctrl_c and not run.complete:
        raise SystemExit(INTERRUPTED)
