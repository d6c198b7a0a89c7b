"""`adc-edge bench`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adc_edge import defaults
from adc_edge.options import IMAGES, NUMBER, OUTPUT_FILE, F, bundle_option, choices, engine_cache_option, ratio_options

if TYPE_CHECKING:
    from adc_edge.method.ratio import Ratio


def _several(name: str, kind: click.ParamType[Any], text: str) -> Callable[[F], F]:
    """An option that may be repeated, as ``--engine``; the command gets it as ``engines``."""
    plural = name.removeprefix("--").replace("-", "_") + "s"
    return click.option(name, plural, multiple=True, type=kind, help=text)


@click.command()
@bundle_option
@_several(
    "--engine", choices(defaults.EngineName), "Engine to measure, repeatable; default: all that are possible here."
)
@_several("--provider", choices(defaults.Provider), "Execution provider of ONNX Runtime, repeatable.")
@_several("--compute", choices(defaults.Compute), "Precision to compute in, repeatable.")
@_several("--batch-size", IMAGES, "Images of a batch, repeatable; default: the bundle's.")
@ratio_options
@engine_cache_option
@click.option("--rounds", default=20, type=click.IntRange(min=1), help="Batches measured in each case.")
@click.option(
    "--seconds",
    type=NUMBER,
    help="Least working time of each case; default: 3 where power is measured.",
)
@click.option("--markdown", "markdown_file", type=OUTPUT_FILE, metavar="FILE", help="Markdown file for the table.")
@click.option("--json", "json_file", type=OUTPUT_FILE, metavar="FILE", help="JSON file for all results.")
def bench(
    bundle: Path,
    batch_sizes: tuple[int, ...],
    rounds: int,
    seconds: float | None,
    engine_cache: Path | None,
    markdown_file: Path | None,
    json_file: Path | None,
    ratio: Ratio | None = None,
    **chosen: Any,
) -> None:
    """Measure the engines of this device, each in a process of its own; exit 1 if one fails or computes wrongly."""
    from adc_edge.edge_runtime.bench import report
    from adc_edge.edge_runtime.bench.cases import BenchSettings, measure_all
    from adc_edge.logs import AnyConsole

    settings = BenchSettings(bundle, ratio, rounds, seconds, engine_cache)
    console = AnyConsole()
    with console.status("measuring") as status:
        done = measure_all(settings, batch_sizes, say=lambda text: status.update(f"measuring {text}"), **chosen)
    for name, text in report.header(done).items():
        console.say_wrapped(f"{name:12} {text}", indent=13)
    console.print(report.bench_table(done, console.width))
    for text in report.bench_notes(done):
        console.say_wrapped(text, indent=2)
    if command := report.next_command(done):
        console.say_command(command, "next: ")
    report.save(done, markdown_file, json_file)
    click.get_current_context().exit(0 if all(result.good for result in done.results) else 1)
