"""A trainer's socket that a thread serves."""

from __future__ import annotations

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
