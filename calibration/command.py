"""`adc-edge link`."""

from __future__ import annotations

from pathlib import Path

import click

from adc_edge.options import key_options


@click.command()
@click.option("--trainer", required=True, metavar="tcp://HOST:PORT", help="Where `adc-edge trainer` listens.")
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(min=0.5), help="How long to measure.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="JSON file for the result.")
@click.option(
    "--wait",
    "wait_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to try to reach the trainer.",
)
@key_options
def link(
    trainer: str, seconds: float, json_file: Path | None, wait_s: float, keys: Path | None, insecure: bool
) -> None:
    """Measure round trip and rates to a running trainer, over its own socket."""
    import json

    from rich.console import Console
    from rich.table import Table

    from adc_edge.calibration.link import measure
    from adc_edge.channel import Channel
    from adc_edge.connection import ClientKeys
    from adc_edge.endpoint import check_endpoint
    from adc_edge.files import write_atomic

    console = Console()
    endpoint = check_endpoint(trainer, insecure, keys is not None)
    channel = Channel(endpoint, keys=None if keys is None else ClientKeys.load(keys))
    try:
        channel.open(wait_s)
        with console.status("measuring") as status:
            result = measure(channel, seconds, lambda what: status.update(f"measuring {what}"))
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
