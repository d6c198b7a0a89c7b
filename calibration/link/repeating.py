"""Measurement of a link again and again, and the log of the results."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from adc_edge.calibration.link.report import LinkReport
from adc_edge.errors import LinkError
from adc_edge.files import json_bytes
from adc_edge.signals import INTERRUPTED, StopFlag
from adc_edge.wire.connection import Stopped

_TICK_S = 0.1

logger = logging.getLogger(__name__)


def repeat_measurement(
    measure: Callable[[Callable[[], bool]], LinkReport],
    done: Callable[[LinkReport], None],
    every_s: float,
    log: Path | None,
) -> None:
    """Measure every ``every_s`` seconds until SIGTERM, or until Ctrl-C, which exits with 130.

    Args:
        measure: measures once; its argument tells whether to stop.
        done: takes each result.
        every_s: seconds from the start of a measurement to the start of the next.
        log: file that also gets a line for each later measurement that failed, since an outage belongs to a day.

    Raises:
        LinkError: the first measurement failed.
        RefusedError: the trainer refused.
    """
    stop, first = StopFlag(), True
    try:
        while not stop():
            start = time.monotonic()
            try:
                done(measure(stop))
            except LinkError as error:
                if first:
                    raise
                logger.warning("%s", error.received)
                if log is not None:
                    append_line(log, {"time": _now(), "error": error.received})
            first = False
            while not stop() and time.monotonic() < start + every_s:
                time.sleep(_TICK_S)
    except Stopped:
        pass
    if stop.by_ctrl_c:
        raise SystemExit(INTERRUPTED)


def append_line(path: Path, value: Any) -> None:
    """Append ``value`` to a file, as one line of JSON that is on the disk when this returns."""
    line = json_bytes(value, indent=-1).strip() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
