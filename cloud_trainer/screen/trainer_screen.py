"""The live area of `trainer`: head, use of time, and a row for each device."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal

from adc_edge.cloud_trainer.central.words import central_words
from adc_edge.cloud_trainer.screen.fleet import Fleet
from adc_edge.cloud_trainer.screen.table import draw_table
from adc_edge.screen.bars import Part, split_bar, split_legend
from adc_edge.screen.curve import TALL, add_curve
from adc_edge.screen.live import LiveArea, can_draw
from adc_edge.screen.sheet import RowSheet, rows_for
from adc_edge.screen.warned import LastWarnings
from adc_edge.storage.events import USE_EVERY_S

_HIGH_ROWS = 3  # of a curve on a tall terminal
_LEAST_ROWS = 4  # of devices, before curves give way


class TrainerScreen:
    """Shows a trainer on a terminal that can be drawn on; elsewhere it does nothing.

    Args:
        console: the terminal.
        title: what is trained, and where the trainer listens.
        tokens: of an image, before any is dropped.
        insecure: a warning that stays; nothing: there is none.
    """

    def __init__(self, console: Console, title: str, tokens: int, insecure: str = "") -> None:
        self._console, self._title, self._tokens, self._insecure = console, title, tokens, insecure
        self._colours = console.color_system is not None and not console.no_color
        self.fleet, self._warnings, self._shown = Fleet(), LastWarnings(), ExitStack()
        self.live = can_draw(console)

    def __enter__(self) -> TrainerScreen:
        """Start the live area."""
        if self.live:
            self._shown.enter_context(self._warnings)
            self._shown.enter_context(LiveArea(self._console, self.draw, self.draw_line))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live area, and leave its single row on the screen."""
        self._shown.close()

    def draw_line(self, sheet: RowSheet) -> None:
        """Add the single row of a small terminal, or of a trainer that has ended."""
        fleet = self.fleet
        fleet.update()
        loss = [] if fleet.last_loss is None else [f"loss {fleet.last_loss:.3f}"]
        insecure = [("insecure", "bold red")] if self._insecure else []
        sheet.add(0, "", f"step {fleet.head_step}", *insecure, self._devices(), *loss)

    def draw(self, sheet: RowSheet, height: int) -> None:
        """Add all rows for a terminal of ``height`` lines."""
        fleet, now = self.fleet, time.monotonic()
        fleet.update()
        sheet.rule(3, f"trainer  {self._title}")
        shown = self._warnings.draw(sheet, 6, 60)
        if self._insecure:
            sheet.add(2, "", (self._insecure, "bold red"))
        refused = [(f"{fleet.refused} message{'s' * (fleet.refused > 1)} refused", "red")] if fleet.refused else []
        sheet.add(0, "devices", self._devices(), *refused)
        high = _HIGH_ROWS if height >= TALL else 1
        self._head(sheet, high, now)
        self._use(sheet, now)
        taken = 7 + 2 * high + bool(self._insecure) + min(shown, 1) + (fleet.central is not None)
        draw_table(sheet, [*fleet.rows.values()], now, self._tokens, max(_LEAST_ROWS, rows_for(height) - taken), 20)

    def _devices(self) -> str:
        counts = [f"{count} {state}" for state, count in self.fleet.counts().items() if count]
        paused = sum(row.paused and row.state == "connected" for row in self.fleet.rows.values())
        if paused:
            counts[0] += f" ({paused} paused)"
        return ", ".join(counts) or "none yet"

    def _head(self, sheet: RowSheet, rows: int, now: float) -> None:
        fleet = self.fleet
        sheet.add(1, "head", f"step {fleet.head_step}", f"{fleet.pace.per_second(now):.3g} steps/s")
        if fleet.central is not None:
            sheet.add(4, "central", central_words(fleet.central))
        if fleet.last_loss is not None and fleet.last_accuracy is not None:
            add_curve(sheet, 12, "loss", f"{fleet.last_loss:.3f}", fleet.loss.values(), rows, ".3f")
            add_curve(sheet, 14, "train", f"{fleet.last_accuracy:.1%}", fleet.accuracy.values(), rows, ".0%")

    def _use(self, sheet: RowSheet, now: float) -> None:
        use = self.fleet.use
        if use is None:
            return
        idle = now - self.fleet.used_at > 2.5 * USE_EVERY_S  # it says nothing while it does nothing
        spent = [0.0 if idle else seconds for seconds in (use.seconds_head, use.seconds_codec, use.seconds_update)]
        shares = [seconds / use.seconds for seconds in spent]
        names = (("head", "h", "magenta"), ("codec", "c", "yellow"), ("optimizer, log", "o", "blue"))
        parts = [Part(name, share, letter, colour) for (name, letter, colour), share in zip(names, shares, strict=True)]
        parts.append(Part("wait", max(0.0, 1.0 - sum(shares)), "w", "bright_black"))
        held = [f"receiving {decimal(use.held_bytes)}"] if use.held_bytes else []
        sheet.add(15, "time", *split_bar(parts, sheet.room(), self._colours), between="")
        sheet.add(16, " ", *split_legend(parts, self._colours, sheet.room()), f"memory {use.memory_mb:.0f} MB", *held)
