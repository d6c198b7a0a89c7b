"""The live area at the bottom of a terminal, drawn by a thread of its own, and where there is none."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, ConsoleRenderable
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from adc_edge.logs import wants_lines
from adc_edge.screen.sheet import RowSheet, joined, rows_for
from adc_edge.terminal import escaped, silence

_LEAST_S, _MOST_S = 0.5, 5.0  # between two drawings
_PAUSE = 100  # times the computing time of a drawing: it takes at most a hundredth of a core
LEAST_COLUMNS, LEAST_LINES = 50, 12  # of a terminal; a smaller one has a single line
_NOT_CI = ("", "0", "false")


def can_draw(console: Console) -> bool:
    """Return whether ``console`` takes a live area: a terminal with a cursor, outside CI, and no quiet or JSON log."""
    if os.environ.get("CI", "").lower() not in _NOT_CI or wants_lines():
        return False
    return console.is_interactive and console.file.isatty()


class LiveArea:
    """Rows that stay at the bottom of a terminal while log lines pass above.

    A thread of its own draws them; the run only leaves figures where ``draw`` finds them. A fault in ``draw``
    is shown in their place: it never ends a run.

    Args:
        console: the terminal.
        draw: adds the rows to a sheet, whose columns it may use; called in the thread.
        line: adds the single row of a terminal that is too small, which is also what stays at the end.
    """

    def __init__(
        self, console: Console, draw: Callable[[RowSheet, int], None], line: Callable[[RowSheet], None]
    ) -> None:
        self._console, self._draw, self._line = console, draw, line
        self._over = threading.Event()
        self._live = _Live(console=console, get_renderable=self._picture, auto_refresh=False, vertical_overflow="crop")
        self._thread = threading.Thread(target=self._redraw, name="screen", daemon=True)

    def __enter__(self) -> LiveArea:
        """Show the area."""
        self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the single line in its place."""
        self._over.set()
        self._live.stop()

    def picture(self) -> Text:
        """Return the rows as they are now."""
        width, height = self._console.size
        sheet = RowSheet(width, self._console.encoding)
        if self._over.is_set() or width < LEAST_COLUMNS or height < LEAST_LINES:
            self._line(sheet)
        else:
            self._draw(sheet, height)
        return joined(sheet.fitting(rows_for(height)))

    def _redraw(self) -> None:
        pause_s = _LEAST_S
        while not self._over.wait(pause_s):
            start = time.thread_time()
            self._live.redraw()
            pause_s = min(max(_LEAST_S, _PAUSE * (time.thread_time() - start)), _MOST_S)

    def _picture(self) -> Text:
        try:
            return self.picture()
        except Exception as error:  # any thread that logs a message draws the area below it
            return Text(escaped(f"the screen cannot be drawn: {error!r}"), no_wrap=True)


class _Live(Live):
    """A live area whose terminal may become narrower, or go away while the run goes on."""

    _drawn: tuple[int, list[int]] = 0, []  # columns of the terminal, and of each row

    def refresh(self) -> None:
        """Draw."""
        with self._outlived():
            super().refresh()

    def redraw(self) -> None:
        """Draw, unless the area has been stopped meanwhile."""
        with self._lock:
            if self.is_started:
                self.refresh()

    def stop(self) -> None:
        """Draw for the last time."""
        with self._outlived():
            super().stop()

    @contextmanager
    def _outlived(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            silence(self.console.file)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase what a narrower terminal has made of the last drawing, then draw."""
        with self._lock:
            before, widths = self._drawn
            width = self.console.width
            more = sum((columns - 1) // width for columns in widths if columns) if width < before else 0
            erased = Control(*(((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)) * more))
            renderables = super().process_renderables(renderables)
            shown = self._live_render.renderable
            texts = [part for part in getattr(shown, "renderables", [shown]) if isinstance(part, Text)]
            self._drawn = width, [row.cell_len for text in texts for row in text.split()]
        return [erased, *renderables]
