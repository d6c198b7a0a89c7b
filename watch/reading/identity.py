"""The identity of the run that lies in a directory: it stays over resumes, and changes when a run begins afresh."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from adc_edge.storage.events import EVENTS_FILE
from adc_edge.storage.run_settings import SETTINGS
from adc_edge.watch.reading.values import read_object, text

_OLDER_EVENTS = Path(EVENTS_FILE).with_suffix(".1.jsonl").name
_MOST_BYTES = 4096
_NUMBER = re.compile("[0-9a-f]{12}")


def run_identity(path: Path) -> str:
    """Return the 12 hexadecimal digits that the settings have.

    Before 0.10 they have none: then of the run's first event, or of its settings if it has no events.
    """
    told = text(read_object(path / SETTINGS) or {}, "run")
    if _NUMBER.fullmatch(told):
        return told
    begin = b""
    for name in (_OLDER_EVENTS, EVENTS_FILE, SETTINGS):
        try:
            with (path / name).open("rb") as file:
                begin = file.readline(_MOST_BYTES)
        except OSError:
            continue
        if begin.endswith(b"\n") or (begin and name == SETTINGS):
            break
    return hashlib.blake2b(begin, digest_size=6).hexdigest()
