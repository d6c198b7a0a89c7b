"""The run directory of a trainer of a fleet, as a training leaves it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save
from safetensors.torch import load_file as load_tensors

from adc_edge.cli import main
from adc_edge.errors import CheckpointError
from adc_edge.export.card.writing import CARD
from adc_edge.export.merge import Merged, merge_runs
from adc_edge.storage.bundle import HEAD, MANIFEST, TRUNK, Bundle
from adc_edge.storage.events import CentralEvaluation, Event, Joined, ToldClasses
from adc_edge.storage.fleet_trunk import FleetTrunk, keep_fleet_trunk
from adc_edge.storage.halves import label_weights
from adc_edge.storage.run_dir import RunDir

KITCHEN, HALL = 0xA, 0xB
AVERAGED = "averaged, every 10 steps, changes in int8, robust none, guard on"
PIPE = "hall | <b>7</b>\x1b[2J"


class FleetRun:
    """A trainer's run directory; weights tell the round and the steps that they are of."""

    def __init__(self, bundle: Bundle, where: Path, mode: str = AVERAGED) -> None:
        self.bundle, self.run, self.output = bundle, where / "cloud", where / "out" / "model.safetensors"
        fixed = {"role": "trainer", "bundle": bundle.digest, "mode": mode, "optimizer": {"name": "adamw", "lr": 1e-3}}
        run_dir = RunDir(self.run, fixed, {"bundle": str(bundle.path)}, {"adc-edge": "0.11.0"})
        for event in self.events():
            run_dir.event(event)
        for line in self.lines():
            run_dir.metric(**line)
        run_dir.close()
        shutil.copy(bundle.path / MANIFEST, self.run)

    def events(self) -> list[Event]:
        names = {KITCHEN: "kitchen", HALL: PIPE}
        told = ToldClasses(session=f"{KITCHEN:016x}", device="kitchen", images={"cat": 5}, classes=1, of=10)
        return [*(Joined(session=f"{s:016x}", device=name, step=0) for s, name in names.items()), told]

    def lines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for step in range(20):
            for session in (KITCHEN, HALL):
                sizes = {"images": 8, "body_bytes_up": 1000, "body_bytes_down": 300}
                found.append(
                    {"kind": "step", "session": f"{session:016x}", "step": step, "head_step": 2 * step, **sizes}
                )
        average = {"kind": "average", "devices": 2, "bytes_up": 200, "bytes_down": 90, "left_out": [], "head_step": 0}
        found += [average | {"round": number} for number in (1, 2)]
        exchange = {"kind": "trunk", "head_step": 0, "body_bytes_up": 100, "body_bytes_down": 90}
        found += [exchange | {"session": f"{s:016x}", "round": number} for number in (1, 2) for s in (KITCHEN, HALL)]
        judged = CentralEvaluation(head_step=40, round=2, images=500, accuracy=0.8125, loss=0.5, seconds=1.0)
        central = {name: getattr(judged, name) for name in ("head_step", "round", "images", "accuracy", "loss")}
        found.append({"kind": "evaluation", "source": "central", "step": 40, **central})
        own = {"session": f"{KITCHEN:016x}", "step": 20, "images": 60, "accuracy": 0.75, "loss": 1.0, "head_step": 40}
        return [*found, {"kind": "evaluation", "device": "kitchen", **own}]

    def at(self, half: str, mark: float) -> dict[str, Any]:
        return {name: np.full_like(value, mark) for name, value in load_file(self.bundle.path / half).items()}

    def trunk(self, number: int, learned: Mapping[int, int]) -> None:
        keep_fleet_trunk(self.run, FleetTrunk(number, self.at(TRUNK, number), learned), {"residual.x": np.ones(1)})

    def head(self, learned: Mapping[int, int], total: int | None = None) -> None:
        steps = sum(learned.values()) if total is None else total
        (self.run / HEAD).write_bytes(label_weights(save(self.at(HEAD, steps)), learned, steps))

    def complete(self) -> FleetRun:
        """Give it the trunks of two rounds, and a head that has learned as much."""
        self.trunk(1, {KITCHEN: 10, HALL: 10})
        self.trunk(2, {KITCHEN: 20, HALL: 20})
        self.head({KITCHEN: 20, HALL: 20})
        return self

    def device(self, where: Path, steps: int = 20, frozen: bool = False) -> Path:
        """Make the run directory of the device in the kitchen."""
        data = "folder:/home/someone/photos"
        fixed = {"role": "device", "bundle": self.bundle.digest, "data": data, "trunk": "train"}
        run_dir = RunDir(where, fixed, {}, {})
        for step in range(steps + 5):  # five that the trunk on disk has not learned
            run_dir.metric(kind="average", step=step, bytes_up=40, bytes_down=4)
            run_dir.metric(kind="step", step=step, bytes_up=500, bytes_down=70)
        run_dir.metric(kind="evaluation", step=steps, images=60, accuracy=0.75, bytes_up=90, bytes_down=9)
        run_dir.close()
        shutil.copy(self.bundle.path / MANIFEST, where)
        (where / TRUNK).write_bytes(label_weights(save(self.at(TRUNK, steps)), {KITCHEN: steps}, steps, frozen))
        return where

    def merge(self, **more: Any) -> tuple[Merged, float, float]:
        merged = merge_runs(None, self.run, self.output, **more)
        state = load_tensors(self.output)
        return merged, float(state["cls_token"].mean()), float(state["head.weight"].mean())

    def refusal(self, kind: type[Exception] = CheckpointError) -> str:
        with pytest.raises(kind) as error:
            merge_runs(None, self.run, self.output)
        assert not self.output.exists()
        return str(error.value)

    @property
    def card(self) -> str:
        return self.output.with_name(CARD).read_text()

    def typed(self, *more: str) -> Result:
        command = ["merge", "--run-trainer", str(self.run), "-o", str(self.output), *more]
        return CliRunner().invoke(main, command, catch_exceptions=False)
