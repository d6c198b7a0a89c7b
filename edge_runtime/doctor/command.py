"""`adc-edge doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from adc_edge.options import OUTPUT_FILE, PATH, data_option, key_options


@click.command()
@click.option("--bundle", type=PATH, metavar="DIR", help="Bundle to check as well.")
@click.option("--trainer", metavar="tcp://HOST:PORT", help="Trainer to connect to, without a session.")
@key_options
@data_option()
@click.option("--json", "json_file", type=OUTPUT_FILE, metavar="FILE", help="JSON file for the whole report.")
@click.option(
    "--health",
    is_flag=True,
    help="Print one line for a container's health check, and do not run the golden pair.",
)
def doctor(
    bundle: Path | None,
    trainer: str | None,
    keys: Path | None,
    insecure: bool,
    data: str | None,
    json_file: Path | None,
    health: bool,
) -> None:
    """Report what this device has, what it lacks and how to get it; exit 0 if it can serve, 1 if not."""
    import json
    import shutil

    from adc_edge.edge_runtime.doctor.examine import examine
    from adc_edge.edge_runtime.doctor.report import health_line, lines, serve_command
    from adc_edge.files import readable_values, write_atomic

    report = examine(bundle, trainer, golden=not health, keys=keys, insecure=insecure, data=data)
    if health:
        click.echo(health_line(report))
    else:
        following = serve_command(bundle, trainer, keys, insecure, data)
        for line in lines(report, shutil.get_terminal_size((100, 24)).columns, following):
            click.echo(line)
    if json_file is not None:
        values = readable_values(report.to_dict())
        write_atomic(json_file, json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")
    click.get_current_context().exit(1 if report.faults else 0)
