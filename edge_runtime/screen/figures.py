"""Figures that a run leaves for its screen: references and numbers, without a lock that a step would wait for."""

from __future__ import annotations

import time
from collections import deque
from typing import Literal

from rich.filesize import decimal

from adc_edge.edge_runtime.settings import StepSettings
from adc_edge.edge_runtime.tally import StepRecord, Tally
from adc_edge.planning.passive import LinkEstimate
from adc_edge.screen.words import rate_in_words
from adc_edge.wire.channel import Channel

_UNDRAWN = 8192  # steps that the screen may be late


class RunFigures:
    """The state of a run as its own thread has left it, and as the screen's thread reads it."""

    def __init__(self, total: int, done: int, insecure: bool, title: str, frozen: bool) -> None:
        self.total, self.done, self.insecure, self.title, self.frozen = total, done, insecure, title, frozen
        self.tally: Tally | None = None
        self.link: LinkEstimate | None = None
        self.settings: StepSettings | None = None  # of the last step
        self.channel: Channel | None = None
        self.link_state: Literal["", "lost", "back"] = ""  # since the last step
        self.evaluating_since: float | None = None  # monotonic clock
        self.fleet_wait: tuple[str, float] | None = None  # for what, and since when by the monotonic clock
        self.last_step_at = time.monotonic()
        self.steps: deque[StepRecord] = deque(maxlen=_UNDRAWN)  # that the screen has not taken yet

    def note(self, record: StepRecord, tally: Tally, link: LinkEstimate | None, settings: StepSettings | None) -> None:
        """Keep what a step has left."""
        self.tally, self.link, self.settings = tally, link, settings
        self.steps.append(record)
        self.done, self.link_state, self.fleet_wait = record.step + 1, "", None
        self.last_step_at = time.monotonic()


def step_parts(tally: Tally, link: LinkEstimate | None) -> list[str]:
    """Return the figures of a line about a step, the most important ones first."""
    if not tally.steps or tally.loss is None:
        return []
    parts = [
        f"loss {tally.loss:.3f}",
        f"train {tally.accuracy_train:.1%}",
        f"up {decimal(tally.bytes_up)}",
        f"down {decimal(tally.bytes_down)}",
        f"{1e3 * tally.seconds / tally.steps:.0f} ms/step",
    ]
    if link is not None and link.up.mbit_s is not None and not (link.up.at_least and link.down.at_least):
        parts.append(f"link {rate_in_words(link.up.mbit_s)}/{rate_in_words(link.down.mbit_s)} Mbit/s")
    return parts
