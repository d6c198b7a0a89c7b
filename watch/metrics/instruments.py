"""Counters and histograms: what adds up line by line. Their names are stable (docs/watching.md lists them)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_RUN = ("role", "run")
_DEVICE = (*_RUN, "device")


class Instruments:
    """The counters and histograms of one exporter, registered at ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter, which Prometheus does not need

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"adc_edge_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"adc_edge_{name}", text, _DEVICE, buckets=_SECONDS, registry=registry)

        self.steps = counter("steps", "Steps applied, each one once.", _DEVICE)
        self.repeated = counter("repeated_steps", "Steps done again after a kill.", _DEVICE)
        self.images = counter("images", "Images of the counted steps.", _DEVICE)
        self.bytes = counter(
            "bytes",
            "Bytes by kind. A device counts at its socket, a trainer the bodies of messages.",
            (*_DEVICE, "direction", "kind"),
        )
        self.phase = counter("phase_seconds", "Seconds by phase. Phases may overlap.", (*_RUN, "phase"))
        self.evaluations = counter("evaluations", "Evaluations on the test split.", _DEVICE)
        self.outages = counter("outages", "Times that the connection was lost.", _DEVICE)
        self.waited = counter("outage_seconds", "Seconds without a trainer, told when it is there again.", _RUN)
        self.refusals = counter("refusals", "Messages and connections that the trainer refused.", (*_RUN, "code"))
        self.warnings = counter("warnings", "Warnings and errors in the log.", (*_RUN, "level"))
        self.starts = counter("starts", "Processes that began to work on the run.", _RUN)
        self.step_seconds = histogram(
            "step_seconds", "A step's time: on a device from batch to update, on a trainer from step to step."
        )
        self.head_seconds = histogram("head_seconds", "Forward and backward of the trainer's head for one step.")
