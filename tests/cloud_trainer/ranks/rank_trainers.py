"""Real trainer ranks under torchrun on loopback, and devices without a trunk that train at them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from adc_edge.storage.bundle import Bundle
from adc_edge.wire.messages import Gradient, Hello, Step
from tests.cloud_trainer.ranks.launching import Torchrun
from tests.ports import free_ports
from tests.stub_device import Device


class MovingDevice(Device):
    """A device that follows a Moved, and sends activations of its own.

    Args:
        bundle: the trainer's.
        endpoint: the door.
        session: its number.
        steps: length of its run.
        images: of each step.
    """

    def __init__(self, bundle: Bundle, endpoint: str, session: int, steps: int, images: int = 8) -> None:
        super().__init__(bundle, endpoint, session)
        self.steps, self.images = steps, images
        self.answers: list[Gradient] = []

    def hello(self) -> Hello:
        return msgspec.structs.replace(super().hello(), moves=True, steps=self.steps, device=f"device-{self.number}")

    def message(self, step: int, seed: int | None = None, images: int = 8, part: int = 0) -> tuple[Step, bytes]:
        return super().message(step, 1000 * self.number + step, images, part)

    def run(self, before: Callable[[int], object] = lambda step: None) -> None:
        """Do the rest of the run, and end the session; ``before`` is called with each step."""
        for step in range(len(self.answers), self.steps):
            before(step)
            self.answers.append(self.step(step, self.images)[0])
        self.session.close_session()
        self.session.close()


def train(devices: Sequence[MovingDevice], before: Callable[[int], object] = lambda step: None) -> None:
    """Open all sessions, then have all devices do their runs at once."""
    for device in devices:
        device.session.open(120)
    faults: list[BaseException] = []

    def run(device: MovingDevice) -> None:
        try:
            device.run(before)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults


class RankTrainers(Torchrun):
    """Trainer ranks that keep their run in ``directory/run``; devices come to ``door``, also before they listen.

    Args:
        bundle: that they serve.
        directory: made if it is absent.
        ranks: number of ranks.
        options: more options of the trainer.
        max_restarts: how often torchrun starts all ranks anew.
    """

    def __init__(self, bundle: Bundle, directory: Path, ranks: int, *options: str, max_restarts: int = 0) -> None:
        directory.mkdir(exist_ok=True)
        self.door, self.run = f"tcp://127.0.0.1:{free_ports(ranks)}", directory / "run"
        own: list[str | Path] = ["--bundle", bundle.path, "--run", self.run, "--bind", self.door, "--lr", "1e-3"]
        super().__init__(ranks, ["-m", "--", "adc_edge", "trainer", *own, *options], directory, max_restarts)

    def __enter__(self) -> RankTrainers:
        return self


def lines_of(run: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The lines of a run's metrics that have a kind."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def check_every_step_once(run: Path, devices: Sequence[MovingDevice]) -> None:
    """Check that the head has learned each step of each device once, and counts them without a gap."""
    lines = lines_of(run)
    found = Counter((int(line["session"], 16), line["step"]) for line in lines)
    assert found == Counter((device.number, step) for device in devices for step in range(device.steps))
    assert sorted(line["head_step"] for line in lines) == list(range(1, sum(device.steps for device in devices) + 1))
