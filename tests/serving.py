"""A trainer's socket that a thread serves, and the messages that a trainer logs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from adc_edge.cloud_trainer.server import Server


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve until the end of the block, then close."""
    over = threading.Event()
    thread = threading.Thread(target=server.serve, args=(over.is_set,))
    thread.start()
    try:
        yield server
    finally:
        over.set()
        thread.join()
        server.close()


@contextmanager
def logged(logger_name: str = "adc_edge.cloud_trainer") -> Iterator[list[str]]:
    """The messages that a part of adc-edge logs until the end of the block, from whichever thread."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
