"""A device is killed around the choice of `--micro-batches auto`: what it has kept is repeated, bit for bit."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.proxy import BadLink
from tests.chaos.run import Run, compare
from tests.chaos.zygote import Zygote

pytestmark = pytest.mark.slow
DYING = [  # before the choice is kept, between its two files, after it, and in the first steps
    "adc_edge.storage.run_dir:RunDir.settle:before:1",
    "adc_edge.storage.run_dir:RunDir.settle:after:1",
    "adc_edge.edge_runtime.choosing.cut:RunCut.settle:after:1",
    "adc_edge.edge_runtime.session:DeviceSession.submit:after:1",
    "adc_edge.edge_runtime.loop:DeviceLoop.step:after:1",
]
MORE = ("--batch-size", "64", "--precision", "fp16")


def test_a_choice_that_was_kept_is_repeated_on_another_link_and_bit_for_bit(
    zygote: Zygote, bundle_dir: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    run = Run(zygote, bundle_dir, tmp_path / "run", free_port(), 12, more=(*MORE, "--micro-batches", "auto"))
    trainer = run.trainer()
    with BadLink(run.port, random.Random(0), rate_mbit_s=4.0, delay_ms=10.0) as link:
        for dies in DYING[:-1]:
            assert run.device(link.endpoint, dies=dies).wait(60) == -signal.SIGKILL, run.logs()
    kept = json.loads((run.device_dir / "micro-batches").read_text())
    assert kept["micro_batches"] > 1
    assert run.device(run.endpoint, dies=DYING[-1]).wait(60) == -signal.SIGKILL, run.logs()
    assert run.device(run.endpoint).wait(60) == 0, run.logs()
    assert trainer.wait(20) == 0, run.logs()
    assert json.loads((run.device_dir / "micro-batches").read_text()) == kept
    named = (*MORE, "--micro-batches", str(kept["micro_batches"]))
    compare(Run(zygote, bundle_dir, tmp_path / "named", free_port(), 12, more=named).undisturbed(), run.outcome())
