"""`adc-edge report`."""

from __future__ import annotations

from pathlib import Path

import click

from adc_edge.options import OUTPUT_DIRECTORY, OUTPUT_FILE, PATH


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option("-o", "--output", required=True, type=OUTPUT_FILE, help="HTML file to write. It opens without a network.")
@click.option("--png", type=OUTPUT_DIRECTORY, help="Write the main charts as PNG to this directory too, at 300 dpi.")
@click.option("--title", default="", help="Title of the page; default: the run's name, or the number of runs.")
def report(runs: tuple[Path, ...], output: Path, png: Path | None, title: str) -> None:
    """Write one page about runs of devices and trainers, which are directories made by --run.

    A run may still be going, or may have been killed.
    """
    from adc_edge.files import write_atomic
    from adc_edge.watch.report.finding import open_runs
    from adc_edge.watch.report.page import render
    from adc_edge.watch.report.words import size_text

    found = open_runs(runs, output)
    if png is not None:
        from adc_edge.watch.report.pictures import draw  # first: matplotlib may be missing
    page = render(found, title)
    write_atomic(output, page)
    click.echo(f"{output}: {len(found)} run{'s' * (len(found) > 1)}, {size_text(len(page))}")
    if png is not None:
        for path in draw(found, png):
            click.echo(str(path))
