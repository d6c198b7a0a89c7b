"""Run directories as a device and a trainer write them, line by line."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any


class WrittenRun:
    """A run directory whose files a test writes. Each line's time is later than that of the one before."""

    def __init__(self, path: Path, role: str, name: str = "") -> None:
        self.path, self._role, self._handle, self._latest = path, role, -1, 0.0
        path.mkdir(parents=True)
        free = {"name": name} if role == "device" else {}
        settings = {"fixed": {"role": role, "steps": 100}, "free": free, "machine": {"adc-edge": "0.9.0"}}
        (path / "settings.json").write_text(json.dumps(settings))
        (path / "manifest.json").write_text(json.dumps({"model": "deit_tiny_patch16_224", "split": 3}))
        self.event("started", role=role, version="0.9.0", pid=1, step=0, steps=100)

    def _line(self, kind: str, values: dict[str, Any]) -> dict[str, Any]:
        self._latest = max(time.time(), self._latest + 1e-6)
        return {"time": self._latest, "kind": kind} | values

    def event(self, kind: str, **values: Any) -> None:
        self._append("events.jsonl", self._line(kind, values))

    def metric(self, kind: str, **values: Any) -> None:
        self._append("metrics.jsonl", self._line(kind, values))

    def _append(self, file: str, values: dict[str, Any]) -> None:
        with (self.path / file).open("a") as out:
            out.write(json.dumps(values) + "\n")

    def rewind(self, step: int, **session: str) -> None:
        """Cut the steps from ``step`` on as a resume does: by another file."""
        lines = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        kept = [v for v in lines if v["step"] < step or any(v.get(k) != value for k, value in session.items())]
        other = self.path / ".metrics"
        other.write_text("".join(json.dumps(values) + "\n" for values in kept))
        other.replace(self.path / "metrics.jsonl")

    def hold(self) -> None:
        """Take the lock as a process at work does."""
        self._handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._handle, fcntl.LOCK_EX)

    def release(self) -> None:
        os.close(self._handle)

    def device_step(self, step: int, **changed: Any) -> None:
        phases = "data forward encode send recompute link cloud cloud_codec wait decode backward".split()
        seconds = {f"seconds_{phase}": 0.01 for phase in phases} | {"seconds": 0.1}
        link = {"up_mbit_s": 8.0, "down_mbit_s": 16.0, "rtt_min_ms": 20.0}
        plan = {"xi": 0.04, "precision": "pca1", "gradient_precision": "pca0.25", "images": 32}
        figures = {"loss": 2.0, "accuracy": 0.25, "bytes_up": 1000, "bytes_down": 500}
        self.metric("step", **({"step": step} | figures | seconds | link | plan | changed))

    def trainer_step(
        self, head_step: int, step: int, device: str = "cam-1", session: str = "a" * 16, **more: Any
    ) -> None:
        figures = {"loss": 2.0, "accuracy": 0.25, "body_bytes_up": 900, "body_bytes_down": 400, "seconds_cloud": 0.05}
        shape = {"images": 32, "clusters": 4, "kept": 9, "precision": "pca1", "gradient_precision": "pca0.25"}
        link = {"up_mbit_s": 8.0, "down_mbit_s": 16.0, "rtt_ms": 20.0}
        who = {"device": device, "session": session, "step": step, "head_step": head_step}
        self.metric("step", **(who | figures | shape | link | more))
