"""Run directories for tests of what watches runs: written line by line, as `serve` and `trainer` write them.

    with SyntheticRun(tmp_path / "run", devices=["camera-1"], steps=500) as run:
        run.join(0)
        run.step(0)

As a script it goes on by itself: ``python tests/watch/synthetic.py DIR --devices 4 --rate 20``.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from adc_edge.edge_runtime.tally import StepRecord
from adc_edge.storage.events import EVENTS_FILE, Away, Done, Event, Joined, Rejected, Started, Use, Warned
from adc_edge.storage.run_dir import METRICS
from adc_edge.storage.run_lock import LOCK
from adc_edge.storage.run_settings import SETTINGS

SPLIT_SECONDS = {"data": 0.01, "forward": 0.06, "encode": 0.004, "send": 0.002, "link": 0.02, "cloud": 0.03}
SPLIT_SECONDS |= {"cloud_codec": 0.004, "cloud_wait": 0.0, "decode": 0.003, "backward": 0.08, "recompute": 0.0}


class SyntheticRun:
    """A run that a test writes. Its lock is held until it is closed, as that of a run that goes on.

    Args:
        path: the directory, which is made.
        role: of the process that would write it.
        devices: names; a device's run has the first one alone.
        steps: planned.
        start: Unix time of the first line; each step takes 0.2 s from there on. None: lines have the real time.
    """

    def __init__(
        self,
        path: Path,
        role: Literal["device", "trainer"] = "trainer",
        devices: Sequence[str] = ("camera-1",),
        steps: int = 500,
        start: float | None = None,
    ) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.role, self.devices, self.steps = path, role, list(devices), steps
        self._start = start
        self._done = [0] * len(self.devices)
        fixed = {"role": role, "bundle": "0" * 64, "seed": 0}
        free = {"steps": steps, "precision": "int8", "gradient_precision": "int8"} if role == "device" else {}
        (path / SETTINGS).write_text(json.dumps({"fixed": fixed, "free": free, "machine": {"adc-edge": "0.9.0"}}))
        manifest = {"format": 4, "model": "vit_tiny_patch16_224", "split": 4}
        (path / "manifest.json").write_text(json.dumps(manifest))
        self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._files = {name: (path / name).open("a", buffering=1) for name in (METRICS, EVENTS_FILE)}
        planned = steps if role == "device" else 0  # a trainer serves without end
        self.tell(Started(time=self.now, role=role, version="0.9.0", pid=os.getpid(), step=0, steps=planned))

    def __enter__(self) -> SyntheticRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def now(self) -> float:
        """Unix time of the next line."""
        return time.time() if self._start is None else self._start + 0.2 * sum(self._done)

    def session(self, device: int) -> str:
        """The session of a device: 16 hexadecimal digits."""
        return f"{device + 1:016x}"

    def tell(self, event: Event) -> None:
        """Append an event."""
        self._append(EVENTS_FILE, msgspec.to_builtins(event))

    def join(self, device: int) -> None:
        """A device opens or resumes its session."""
        self.tell(
            Joined(
                time=self.now,
                session=self.session(device),
                device=self.devices[device],
                step=self._done[device],
                steps=self.steps,
            )
        )

    def away(self, device: int) -> None:
        """A device's connection ends."""
        self.tell(Away(time=self.now, session=self.session(device)))

    def done(self, device: int) -> None:
        """A device's session comes to its end."""
        self.tell(Done(time=self.now, session=self.session(device), step=self._done[device]))

    def refuse(self, text: str, device: int | None = None) -> None:
        """A message is refused."""
        session = "" if device is None else self.session(device)
        self.tell(Rejected(time=self.now, code="malformed", text=text, session=session))

    def warn(self, text: str) -> None:
        """The log has a warning."""
        self.tell(Warned(time=self.now, level="warning", text=text))

    def use(self, **values: Any) -> None:
        """The trainer tells its use."""
        usual = {"seconds": 5.0, "seconds_head": 2.0, "seconds_codec": 0.4, "seconds_update": 0.6}
        usual |= {"memory_mb": 812.5, "held_bytes": 65536, "connections": len(self.devices)}
        self.tell(Use(time=self.now, **usual | values))

    def step(self, device: int = 0, **values: Any) -> None:
        """Append the line of a step; ``values`` replace those that a learning device would have."""
        step = self._done[device]
        self._done[device] += 1
        share = 1 - math.exp(-step / 200)
        about = {
            "time": self.now,
            "kind": "step",
            "step": step,
            "loss": 2.3 - (2 - 0.2 * device) * share + 0.05 * math.sin(step),
        }
        about |= {
            "accuracy": 0.1 + (0.85 - 0.05 * device) * share,
            "images": 32,
            "precision": "int8",
            "gradient_precision": "int8",
        }
        about |= {"micro_batches": 1, "up_mbit_s": 40 - 8 * device + 3 * math.sin(step / 30), "down_mbit_s": 60.0}
        own = self._of_trainer(device, step) if self.role == "trainer" else self._of_device(step)
        self._append(METRICS, about | own | values)

    def evaluation(self, device: int = 0, accuracy: float = 0.9, **values: Any) -> None:
        """Append the line of an evaluation."""
        about = {"time": self.now, "kind": "evaluation", "step": self._done[device], "images": 360}
        own = {"device": self.devices[device], "session": self.session(device)} if self.role == "trainer" else {}
        self._append(METRICS, about | {"accuracy": accuracy, "loss": 0.3} | own | values)

    def close(self) -> None:
        """End the process that would write: its lock is free."""
        for file in self._files.values():
            file.close()
        os.close(self._lock)

    def _of_trainer(self, device: int, step: int) -> dict[str, Any]:
        about = {"device": self.devices[device], "session": self.session(device), "head_step": sum(self._done)}
        sizes = {"clusters": 16, "kept": 12, "body_bytes_up": 60_000, "body_bytes_down": 58_000}
        return about | sizes | {"seconds_cloud": 0.03, "rtt_ms": 12 + 9 * device + 3 * math.sin(step / 40)}

    def _of_device(self, step: int) -> dict[str, Any]:
        parts = {f"seconds_{name}": seconds for name, seconds in SPLIT_SECONDS.items()}
        sizes = {"bytes_up": 60_000, "bytes_down": 58_000, "xi": 0.25}
        own = sizes | {"seconds": 0.2, "seconds_wait": 0.02, "rtt_min_ms": 12 + 3 * math.sin(step / 40)} | parts
        lacking = {name for name in StepRecord.__struct_fields__ if name not in own} - {
            "step",
            "loss",
            "accuracy",
            "drift",
        }
        assert not lacking, lacking
        return own

    def _append(self, name: str, values: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(values) + "\n")


def main() -> None:
    """Write a run until it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--role", choices=["device", "trainer"], default="trainer")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rate", type=float, default=20.0, help="Lines a second.")
    options = parser.parse_args()
    names = [f"camera-{number + 1}" for number in range(options.devices)]
    with SyntheticRun(options.directory, options.role, names, steps=5000) as run:
        for device in range(options.devices if options.role == "trainer" else 0):
            run.join(device)
        for number in range(10**9):
            run.step(number % options.devices if options.role == "trainer" else 0)
            if number % 100 == 0:
                run.use() if options.role == "trainer" else run.evaluation()
            time.sleep(1 / options.rate)


if __name__ == "__main__":
    main()
