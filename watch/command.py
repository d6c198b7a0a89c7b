"""`adc-edge watch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adc_edge import defaults
from adc_edge.errors import AdcEdgeError, SettingError
from adc_edge.options import PATH, GroupedCommand, heading, log_options
from adc_edge.watching.options import WatchSettings, watch_options

if TYPE_CHECKING:
    from rich.console import Console

_LAST_NEWS_S = 0.2  # in which the open pages get the last lines


@click.command(cls=GroupedCommand)
@heading("Runs")
@click.option(
    "--run", "runs", required=True, multiple=True, type=PATH, metavar="DIR", help="Directory of a run; repeatable."
)
@heading("Page, metrics and trackers")
@watch_options
@heading("Logging")
@log_options
@click.option("--child", is_flag=True, hidden=True, help="Say in JSON where things are: `serve` or `trainer` reads it.")
def watch(console: Console, watch: WatchSettings, runs: tuple[Path, ...], child: bool) -> None:
    """Show runs that go on or have ended: a page at http://127.0.0.1:8080 unless other options are given.

    It reads the directories of the runs and changes nothing in them.
    """
    try:
        _watch(watch if watch.asked else watch._replace(web=defaults.WEB_ADDRESS), runs, child)
    except (AdcEdgeError, ImportError) as error:
        told = _missing(error) if isinstance(error, ImportError) else error
        if child:
            click.echo(json.dumps({"error": [told.received, told.expected, told.remedy]}))
        raise told from error


def _watch(settings: WatchSettings, runs: tuple[Path, ...], child: bool) -> None:
    import asyncio

    from adc_edge.watch.process import check_run

    if not child:  # else the run is about to begin
        runs = tuple(map(check_run, runs))
    asyncio.run(_serve(settings, runs, child))


async def _serve(settings: WatchSettings, directories: tuple[Path, ...], child: bool) -> None:
    """Open all that was asked for, say so, and follow the runs until the end."""
    import asyncio

    from adc_edge.watch.process import Watcher, stop_event
    from adc_edge.watch.reading.state import WatchedRun

    stop = stop_event(child)
    runs = [WatchedRun(path) for path in directories]
    watcher = Watcher(runs)
    told: dict[str, str] = {}
    if settings.metrics_port is not None:
        from adc_edge.watch.metrics.exporter import MetricsExporter

        exporter = MetricsExporter(runs, settings.metrics_bind, settings.metrics_port)
        watcher.add(exporter)
        told["metrics"] = exporter.url
    if settings.tensorboard or settings.trackers:
        from adc_edge.watch.trackers.factory import make_trackers

        watcher.add(*make_trackers(settings.trackers, settings.tensorboard))
    server = None
    if settings.web:
        from adc_edge.watch.web.server import WebServer, parse_web_address
        from adc_edge.watch.web.view import LiveView

        server = WebServer(LiveView(runs, watcher.thread), parse_web_address(settings.web))
        watcher.add(server.view)
        told["web"] = server.url
    _say_ready(told, child)
    serving = asyncio.create_task(server.serve()) if server else None
    if serving:
        serving.add_done_callback(lambda _: stop.set())  # before the end it has failed
    await watcher.follow(stop)
    closing = asyncio.get_running_loop().run_in_executor(watcher.thread, watcher.close)
    if server and serving:
        await asyncio.sleep(_LAST_NEWS_S)
        server.end()  # trackers may still be busy, and a run that starts again needs the port
        await serving
    await closing


def _say_ready(told: dict[str, str], child: bool) -> None:
    """Say where things are: a line of JSON to a parent, else a line for each to standard error."""
    from adc_edge.watching.process import say_addresses

    if child:
        click.echo(json.dumps({"ready": True, **told}))
    else:
        say_addresses(told)


def _missing(error: ImportError) -> SettingError:
    return SettingError(
        f"{error.name or error}, which this command needs, is not installed",
        "the packages of the extra `watch`",
        "pip install 'adc-edge[watch]'",
    )
