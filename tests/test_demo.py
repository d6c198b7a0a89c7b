"""The README's first command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def demo(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "adc_edge", "demo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=ignore_ctrl_c,
    )


def ignore_ctrl_c() -> None:
    """Ignore SIGINT, as a script's background job does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_reaches_90_percent_on_a_fortieth_of_the_bytes(tmp_path: Path) -> None:
    process = demo("--report", tmp_path / "report.json")
    output, _ = process.communicate(timeout=580)
    assert process.returncode == 0, output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["complete"]
    assert report["accuracy"] >= 0.9
    assert (report["bytes_up"] + report["bytes_down"]) * 40 <= report["bytes_uncompressed_fp32"]
    assert "test accuracy" in output


@pytest.mark.parametrize(
    "after_s",
    [
        pytest.param(1.0, id="export"),
        pytest.param(9.0, id="trainer", marks=pytest.mark.slow),
        pytest.param(20.0, id="serve", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_at_any_time_ends_every_process_cleanly(tmp_path: Path, after_s: float) -> None:
    process = demo("--keep", tmp_path / "kept")
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=40)
    finally:
        process.terminate()
    assert process.returncode in (130, 0), output
    assert "Traceback" not in output
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "kept")], capture_output=True, text=True, check=False).stdout
    assert not left, f"{left}\n{output}"
