"""Options of commands whose runs can be watched while they go on. Imports click alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from adc_edge import defaults
from adc_edge.options import OUTPUT_DIRECTORY

_F = TypeVar("_F", bound=Callable[..., Any])


class WatchSettings(NamedTuple):
    """Settings of the process that shows a run; by default there is none."""

    web: str | None = None
    metrics_port: int | None = None
    metrics_bind: str = defaults.METRICS_BIND
    tensorboard: Path | None = None
    trackers: tuple[str, ...] = ()

    @property
    def asked(self) -> bool:
        """Whether anything is to show the run."""
        return any((self.web, self.metrics_port is not None, self.tensorboard, self.trackers))

    def arguments(self, run: Path) -> list[str]:
        """Return the words of the command that shows the run in a directory."""
        words = ["watch", "--child", "--run", str(run.absolute())]
        if self.web:
            words += ["--web", self.web]
        if self.metrics_port is not None:
            words += ["--metrics-port", str(self.metrics_port), "--metrics-bind", self.metrics_bind]
        if self.tensorboard is not None:
            words += ["--tensorboard", str(self.tensorboard.absolute())]
        return words + [word for name in self.trackers for word in ("--tracker", name)]


def watch_options(command: _F) -> Any:
    """Page, metrics and trackers; the command gets them as ``watch``, a ``WatchSettings``."""

    @functools.wraps(command)
    def with_watch(*arguments: Any, **options: Any) -> Any:
        watch = WatchSettings(**{name: options.pop(name) for name in WatchSettings._fields})
        return command(*arguments, watch=watch, **options)

    web = "Serve a page of this run; port * lets the system choose. Any address but loopback needs the token it prints."
    port = "Serve metrics for Prometheus on this port; 0 lets the system choose."
    trackers = "Send metrics to a tracker: wandb, trackio, or MODULE:FACTORY of yours; repeatable."
    for option in (
        click.option("--tracker", "trackers", multiple=True, metavar="NAME", help=trackers),
        click.option(
            "--tensorboard", type=OUTPUT_DIRECTORY, metavar="DIR", help="Directory to write scalars for TensorBoard to."
        ),
        click.option(
            "--metrics-bind", default=defaults.METRICS_BIND, metavar="ADDR", help="Address to serve metrics on."
        ),
        click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="N", help=port),
        click.option("--web", metavar="HOST:PORT", help=web),
    ):
        with_watch = option(with_watch)
    return with_watch
