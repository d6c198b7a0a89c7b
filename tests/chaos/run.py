"""One training as two processes, and the part of its outcome that faults must not change."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from adc_edge.arrays import Arrays
from adc_edge.storage.checkpoint import latest_checkpoint
from adc_edge.storage.halves import BEST_TRUNK, best_heads, best_trunk
from tests.chaos.zygote import DIES, Child, Zygote

LEARNING = ["--threads", "1", "--lr", "1e-3", "--clip-norm", "1"]


class Run:
    """One training with trainer and device as processes, over a link that may have faults."""

    def __init__(
        self,
        zygote: Zygote,
        bundle: Path,
        where: Path,
        port: int,
        steps: int,
        keys: Path | None = None,
        more: tuple[str, ...] = (),
        trainer_more: tuple[str, ...] = (),
    ) -> None:
        self.more, self.trainer_more = more, trainer_more  # options of device and trainer, at each start
        self.zygote, self.bundle, self.where, self.port, self.steps = zygote, bundle, where, port, steps
        self.keys, self.every = keys, 7  # steps between checkpoints
        self.device_dir, self.trainer_dir = where / "device", where / "trainer"
        where.mkdir(exist_ok=True)

    def trainer(self, *options: str, dies: str = "") -> Child:
        keys = ["--keys", str(self.keys / "trainer")] if self.keys else []
        bind = ["--bind", self.endpoint, "--devices", "1"]
        return self.zygote.start(
            "trainer", "--bundle", self.bundle, "--run", self.trainer_dir, *bind, *keys, *LEARNING,
            "--checkpoint-every", str(self.every), *self.trainer_more, *options,
            log=self.where / "trainer.log", environment={DIES: dies},
        )  # fmt: skip

    def device(self, endpoint: str, *options: str, dies: str = "") -> Child:
        keys = ["--keys", str(self.keys / "device")] if self.keys else []
        report: list[str | Path] = ["--report", self.where / "report.json", "--eval-every", "50", "--eval-images", "48"]
        return self.zygote.start(
            "serve", "--bundle", self.bundle, "--run", self.device_dir, "--trainer", endpoint, "--wait", "inf",
            "--steps", str(self.steps), *report, *keys, *LEARNING, "--micro-batches", "1",
            "--checkpoint-every", str(self.every), *self.more, *options,
            log=self.where / "device.log", environment={DIES: dies},
        )  # fmt: skip

    def step(self) -> int:
        """The newest step in the device's metrics; 0 if there is none."""
        try:
            with (self.device_dir / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
                return int(json.loads(file.read().splitlines()[-1])["step"])
        except (OSError, IndexError, ValueError):
            return 0

    @property
    def endpoint(self) -> str:
        """Address of the trainer."""
        return f"tcp://127.0.0.1:{self.port}"

    def reach(self, step: int) -> None:
        """Wait until the device has come to ``step``."""
        deadline = time.monotonic() + 60
        while self.step() < step:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.01)

    def undisturbed(self) -> dict[str, Any]:
        """Train without a fault, and return the outcome."""
        trainer = self.trainer()
        assert self.device(self.endpoint).wait(200) == 0, self.logs()
        assert trainer.wait(20) == 0, self.logs()
        return self.outcome()

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n" + p.read_text()[-6000:] for p in sorted(self.where.glob("*.log")))

    def outcome(self) -> dict[str, Any]:
        """Weights, optimizer state, losses and accuracies of both sides."""
        found: dict[str, Any] = {}
        for side, weights in ((self.device_dir, "trunk"), (self.trainer_dir, "head")):
            found[f"{weights} state at the end"] = _bits(load_file(side / f"{weights}.safetensors"))
            last = latest_checkpoint(side)
            assert last is not None
            found[f"{weights} step"] = last.step
            found[f"{weights} state"] = _bits(last.arrays)
            lines = [json.loads(line) for line in (side / "metrics.jsonl").read_text().splitlines()]
            found[f"{weights} losses"] = [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]
            judged = [(line["step"], line["accuracy"]) for line in lines if line["kind"] == "evaluation"]
            if side == self.device_dir:
                found["evaluations"] = judged
            else:  # a trainer that is killed may lose the line of an evaluation, and tells none twice
                assert set(judged) <= set(found["evaluations"])
                assert len(judged) == len(set(judged))
        if (best := best_trunk(self.device_dir)) is not None:
            ((session, step),) = best.learned.items()
            head = best_heads(self.trainer_dir, session)[step]
            found["best step"] = step, best.accuracy
            found["best trunk state"] = _bits(load_file(self.device_dir / BEST_TRUNK))
            found["best head state"] = _bits(load_file(head.path))
        return found


def _bits(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in arrays.items()}


def compare(expected: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Assert that two outcomes are equal, bit for bit."""
    for what, value in expected.items():
        if " state" in what:
            assert value.keys() == outcome[what].keys(), what
            differs = [name for name in value if value[name] != outcome[what].get(name)]
            assert not differs, f"{what}: {differs}"
        else:
            assert value == outcome[what], what
