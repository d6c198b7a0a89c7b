"""The summary of `infer`: images, latency, bytes, and energy where the board measures its power."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from adc_edge.edge_runtime.bench.power import NotMeasured, Tegrastats, Window
from adc_edge.edge_runtime.infer.answers import InferAnswer

_KEPT = 100_000  # latencies of the last images, for the percentiles


class InferSummary:
    """Counts answers as they are given."""

    def __init__(self) -> None:
        self.images = self.broken = self.skipped = self.outages = 0
        self._where: Counter[str] = Counter()
        self._ms: list[float] = []
        self.mj_image: float | None = None

    def add(self, answer: InferAnswer) -> None:
        """Count one answer."""
        self.images += 1
        if answer.milliseconds is None:
            self.broken += 1
            return
        self._where[answer.where or ""] += 1
        self._ms.append(answer.milliseconds)
        if len(self._ms) >= 2 * _KEPT:
            del self._ms[:_KEPT]

    def measure_energy(self, power: Tegrastats, idle: Window, busy: Window) -> None:
        """Add the energy of an image beyond what the idle board draws, where the board tells it."""
        try:
            self.mj_image = power.energy(idle, busy).mj / max(1, self.images - self.broken)
        except NotMeasured:
            return

    def values(self, total_bytes: tuple[int, int]) -> dict[str, Any]:
        """Return all figures for JSON; what was not measured is left out.

        Args:
            total_bytes: sent and received at the socket, with all that is not images.
        """
        judged = max(1, self.images - self.broken)
        found: dict[str, Any] = {
            "images": self.images,
            "unreadable": self.broken,
            "answered_before": self.skipped,
            "split": self._where["split"],
            "local": self._where["local"],
            "outages": self.outages,
            "bytes_up": total_bytes[0],
            "bytes_down": total_bytes[1],
            "bytes_image": sum(total_bytes) / judged,
        }
        if self._ms:
            p50, p95 = np.percentile(self._ms, [50, 95]).tolist()
            found |= {"p50_ms": p50, "p95_ms": p95}
        if self.mj_image is not None:
            found["mj_image"] = self.mj_image
        return found


def summary_text(values: dict[str, Any]) -> str:
    """Return the figures in a line."""
    parts = [f"{values['images']:,} images: {values['split']:,} split, {values['local']:,} local"]
    if values["unreadable"]:
        parts[0] += f", {values['unreadable']:,} unreadable"
    if values["answered_before"]:
        parts.append(f"{values['answered_before']:,} were answered before")
    if "p50_ms" in values:
        parts.append(f"latency p50 {values['p50_ms']:.1f} ms, p95 {values['p95_ms']:.1f} ms")
    if values["bytes_up"]:
        parts.append(f"{values['bytes_image']:,.0f} bytes an image")
    if "mj_image" in values:
        parts.append(f"{values['mj_image']:.1f} mJ an image")
    if values["outages"]:
        parts.append(f"the link was lost {values['outages']:,} time{'s' * (values['outages'] > 1)}")
    return "; ".join(parts)
