"""`adc-edge bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adc_edge import defaults
from adc_edge.options import bundle_option, choices, engine_cache_option, ratio_options


@click.command()
@bundle_option
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=choices(defaults.EngineName),
    help="Engine to measure, repeatable; default: all that are possible here.",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    type=choices(defaults.Provider),
    help="Execution provider of ONNX Runtime, repeatable.",
)
@click.option(
    "--compute", "computes", multiple=True, type=choices(defaults.Compute), help="Precision to compute in, repeatable."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(min=2),
    help="Images of a batch, repeatable; default: the bundle's.",
)
@ratio_options
@engine_cache_option
@click.option(
    "--rounds", default=20, show_default=True, type=click.IntRange(min=1), help="Batches measured in each case."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    help="Least working time of each case; default: 3 where power is measured.",
)
@click.option(
    "--markdown", "markdown_file", type=click.Path(path_type=Path), metavar="FILE", help="Markdown file for the table."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="JSON file for all results.")
def bench(
    bundle: Path,
    ratio: float | None,
    batch_ratio: float | None,
    token_ratio: float | None,
    batch_sizes: tuple[int, ...],
    rounds: int,
    seconds: float | None,
    engine_cache: Path | None,
    markdown_file: Path | None,
    json_file: Path | None,
    **chosen: Any,
) -> None:
    """Measure the engines of this device, each in a process of its own; exit 1 if one fails or computes wrongly."""
    from rich.console import Console

    from adc_edge.edge_runtime.bench import report
    from adc_edge.edge_runtime.bench.cases import BenchSettings, measure_all
    from adc_edge.method.ratio import Ratio

    given = Ratio(ratio, batch_ratio, token_ratio)
    settings = BenchSettings(bundle, None if given == Ratio() else given, rounds, seconds, engine_cache)
    console = Console()
    with console.status("measuring") as status:
        done = measure_all(settings, batch_sizes, say=lambda text: status.update(f"measuring {text}"), **chosen)
    for name, text in report.header(done).items():
        console.print(f"{name:12} {text}", highlight=False, markup=False)
    console.print(report.bench_table(done, console.width))
    for text in report.bench_notes(done):
        console.print(text, highlight=False, markup=False)
    if command := report.next_command(done):
        console.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)
    report.save(done, markdown_file, json_file)
    click.get_current_context().exit(0 if all(result.good for result in done.results) else 1)
