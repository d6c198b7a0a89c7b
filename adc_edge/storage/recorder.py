"""The beginning, the warnings and the end of one process's work on a run, written to events.jsonl."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from adc_edge import __version__
from adc_edge.errors import AdcEdgeError
from adc_edge.storage.events import Ended, Started, Warned
from adc_edge.storage.run_dir import RunDir
from adc_edge.terminal import readable

TEXT_LENGTH = 500  # characters of a text in an event
STOPPED = "it was asked to stop"


class _WarningHandler(logging.Handler):
    """Writes the warnings and errors of adc-edge as events."""

    def __init__(self, run_dir: RunDir) -> None:
        super().__init__(logging.WARNING)
        self._run_dir = run_dir

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._run_dir.event(Warned(level=record.levelname.lower(), text=cut(record.getMessage())))
        except Exception:  # as every handler: a message that cannot be made ends no run
            self.handleError(record)
        alone = logging.getLogger("adc_edge").handlers == [self] and not logging.getLogger().handlers
        if alone and logging.lastResort is not None:  # as Python does for a program that has configured nothing
            logging.lastResort.handle(record)


class Recorder:
    """A context in which warnings are recorded; its end is recorded too, if ``begun`` was called.

    Args:
        run_dir: takes the events.
        position: tells the present step.
    """

    def __init__(self, run_dir: RunDir, position: Callable[[], int]) -> None:
        self._run_dir, self._position = run_dir, position
        self._handler = _WarningHandler(run_dir)
        self._begun = False
        self.complete, self.why = False, ""

    def begun(self, role: Literal["device", "trainer"], peer: str, steps: int = 0) -> None:
        """Record that the work begins.

        Args:
            role: of this process.
            peer: address of the trainer; for a trainer, where it listens.
            steps: planned; 0: without end.
        """
        self._begun = True
        step, pid = self._position(), os.getpid()
        self._run_dir.event(Started(role=role, version=__version__, pid=pid, step=step, steps=steps, peer=cut(peer)))

    def ending(self, complete: bool, why: str = "") -> None:
        """Note how the work ends; ``why`` if it ends early."""
        self.complete, self.why = complete, why

    def __enter__(self) -> Recorder:
        """Record warnings from now on."""
        logging.getLogger("adc_edge").addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record the end."""
        logging.getLogger("adc_edge").removeHandler(self._handler)
        if not self._begun:
            return
        why = self.why if error is None else _in_words(error)
        complete = self.complete and error is None
        self._run_dir.event(Ended(step=self._position(), complete=complete, why=cut(why)))


def cut(text: str) -> str:
    """Return ``text`` as an event can hold it: 500 characters at most, all of them in UTF-8."""
    return readable(text if len(text) <= TEXT_LENGTH else f"{text[: TEXT_LENGTH - 1]}…")


def _in_words(error: BaseException) -> str:
    if isinstance(error, AdcEdgeError):
        return error.received
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
