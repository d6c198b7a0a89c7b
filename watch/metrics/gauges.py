"""Gauges, made at a scrape from what is known of each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from adc_edge.watch.metrics.book import RunBook
from adc_edge.watch.metrics.labels import OTHER, label_text
from adc_edge.watch.reading.session import SessionState
from adc_edge.watch.reading.values import number

if TYPE_CHECKING:
    from adc_edge.watch.reading.state import WatchedSession

RUN_STATES = ("running", "waiting", "finished", "interrupted", "damaged")
_BYTES_PER_MBIT = 125_000.0
_RUN, _DEVICE = ("role", "run"), ("role", "run", "device")
_FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_info": ("1; model, split and version in labels.", (*_RUN, "model", "split", "version")),
    "run_state": ("1 for the state that the run is in.", (*_RUN, "state")),
    "devices": ("Devices by state.", (*_RUN, "state")),
    "head_step": ("Steps that the trainer's head has applied, of all devices.", _RUN),
    "head_loss": ("Loss, mean of the last 20 steps.", _RUN),
    "head_accuracy_ratio": ("Accuracy on training data, mean of the last 20 steps.", _RUN),
    "central_accuracy_ratio": ("Accuracy of the last evaluation on the trainer's own test images.", _RUN),
    "central_loss": ("Loss of the last evaluation on the trainer's own test images.", _RUN),
    "memory_bytes": ("Memory of the trainer.", _RUN),
    "held_bytes": ("Bytes of messages that the trainer is receiving.", _RUN),
    "connections": ("Connections to the trainer.", _RUN),
    "device_state": ("1 for the state that a device is in.", (*_DEVICE, "state")),
    "step": ("Steps done.", _DEVICE),
    "steps_planned": ("Steps planned.", _DEVICE),
    "last_step_timestamp_seconds": ("Unix time of the device's last line.", _DEVICE),
    "loss": ("Loss of the last step.", _DEVICE),
    "accuracy_ratio": ("Accuracy of the last step on its training data.", _DEVICE),
    "test_loss": ("Loss of the last evaluation.", _DEVICE),
    "test_accuracy_ratio": ("Accuracy of the last evaluation.", _DEVICE),
    "xi_ratio": ("Share of the activations that is sent.", _DEVICE),
    "precision_info": ("1; precisions up and down in labels.", (*_DEVICE, "precision", "gradient_precision")),
    "link_bytes_per_second": ("Rate of the link.", (*_DEVICE, "direction")),
    "link_rtt_seconds": ("Round trip of the link.", _DEVICE),
}
_OF_SESSIONS: dict[str, Callable[[WatchedSession], float | None]] = {
    "step": lambda session: session.step,
    "steps_planned": lambda session: session.steps or None,
    "last_step_timestamp_seconds": lambda session: session.last_time or None,
    "test_loss": lambda session: session.test_loss,
    "test_accuracy_ratio": lambda session: session.test_accuracy,
    "xi_ratio": lambda session: session.xi,
    "link_rtt_seconds": lambda session: None if session.rtt_ms is None else session.rtt_ms / 1000,
}


class GaugeCollector:
    """Collects the gauges of runs for a registry."""

    def __init__(self, books: Sequence[RunBook]) -> None:
        self._books = books

    def collect(self) -> Iterator[Metric]:
        """Return the families of this moment."""
        families = {
            name: GaugeMetricFamily(f"adc_edge_{name}", text, labels=labels)
            for name, (text, labels) in _FAMILIES.items()
        }

        def put(name: str, labels: Sequence[str], value: float | None) -> None:
            if value is not None:
                families[name].add_metric(labels, value)

        for book in self._books:
            _put_run(book, put)
            for device, session in _newest_sessions(book).items():
                _put_device(book, device, session, put)
        yield from families.values()


_Put = Callable[[str, Sequence[str], "float | None"], None]


def _put_run(book: RunBook, put: _Put) -> None:
    run, labels, use = book.run, book.counter.labels, dict(book.run.use)
    put("run_info", (*labels, label_text(run.model), str(run.split), label_text(run.version)), 1)
    for state in RUN_STATES:
        put("run_state", (*labels, state), float(run.state == state))
    smoothed = book.smoothed()
    put("head_loss", labels, smoothed and smoothed[0])
    put("head_accuracy_ratio", labels, smoothed and smoothed[1])
    if run.role == "trainer":
        put("head_step", labels, book.head_step)
        states = Counter(session.state for session in list(run.sessions.values()))
        for state in get_args(SessionState):
            put("devices", (*labels, state), states[state])
    put("central_accuracy_ratio", labels, run.central.last("accuracy"))
    put("central_loss", labels, run.central.last("loss"))
    memory = number(use, "memory_mb")
    put("memory_bytes", labels, None if memory is None else memory * 1e6)
    put("held_bytes", labels, number(use, "held_bytes"))
    put("connections", labels, number(use, "connections"))


def _newest_sessions(book: RunBook) -> dict[str, WatchedSession]:
    """Return the last session of each device that was not refused and has a label of its own."""
    newest: dict[str, WatchedSession] = {}
    for session in list(book.run.sessions.values()):
        device = book.counter.device_of({"device": session.device})
        if session.state == "refused" or device == OTHER:
            continue
        if device not in newest or session.last_time >= newest[device].last_time:
            newest[device] = session
    return newest


def _put_device(book: RunBook, device: str, session: WatchedSession, put: _Put) -> None:
    labels = (*book.counter.labels, device)
    for name, value_of in _OF_SESSIONS.items():
        put(name, labels, value_of(session))
    loss, accuracy = book.newest.get(device, (None, None))
    put("loss", labels, loss)
    put("accuracy_ratio", labels, accuracy)
    for way, rate in (("up", session.up_mbit_s), ("down", session.down_mbit_s)):
        put("link_bytes_per_second", (*labels, way), None if rate is None else rate * _BYTES_PER_MBIT)
    if book.run.role == "trainer":
        for state in get_args(SessionState):
            put("device_state", (*labels, state), float(session.state == state))
    if session.precision:
        precisions = label_text(session.precision), label_text(session.gradient_precision)
        put("precision_info", (*labels, *precisions), 1)
