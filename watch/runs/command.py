"""`adc-edge runs`."""

from __future__ import annotations

from pathlib import Path

import click

from adc_edge.options import PATH


@click.command()
@click.argument("directory", default=".", type=PATH, metavar="[DIR]")
@click.option(
    "--depth", default=4, show_default=True, type=click.IntRange(0, 32), help="Levels of directories below DIR."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with whole numbers instead of a table.")
def runs(directory: Path, depth: int, as_json: bool) -> None:
    """List the runs of devices and trainers below a directory, and how each of them stands."""
    from adc_edge.files import json_bytes
    from adc_edge.watch.runs.listing import run_rows
    from adc_edge.watch.runs.table import print_table

    found = run_rows(directory, depth)
    if as_json:
        click.echo(json_bytes(found).decode(), nl=False)
    else:
        print_table(found, directory)
