"""A central evaluation in words, for the log and the screen."""

from __future__ import annotations

from adc_edge.storage.events import CentralEvaluation


def central_words(event: CentralEvaluation) -> str:
    """Return an evaluation in words: ``81.2% of 1,000 test images at head step 400, round 40``."""
    trunk = f", round {event.round}" if event.round else ""
    return f"{event.accuracy:.1%} of {event.images:,} test images at head step {event.head_step}{trunk}"
