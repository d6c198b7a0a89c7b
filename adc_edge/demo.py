"""`adc-edge demo`: all of it on one machine, in three processes, with scikit-learn's digits.

It types the commands that a user would type (export, trainer, serve) and shows what they show.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from pathlib import Path

import click

# A small ViT on digits enlarged to 24 px: 37 tokens of 96 channels, cut in the middle.
_EXPORT = (
    "--model vit_tiny_patch16_224 --model-arg patch_size=4 --img-size 24 --model-arg embed_dim=96 "
    "--model-arg num_heads=4 --model-arg depth=4 --num-classes 10 --split 2 "
    "--batch-ratio 0.8 --token-ratio 0.55 --batch-size 64 --precision int8"
)
# One thread a process: device and trainer share the cores here.
_LEARNING = "--lr 2e-3 --schedule cosine --warmup-steps 20 --weight-decay 0.05 --clip-norm 1 --threads 1"
_STEPS, _EVALUATE_EVERY = 400, 100
_READY_S = 60.0
_STOP_S = 10.0


@click.command()
@click.option("--report", type=click.Path(path_type=Path), help="JSON file for the result.")
@click.option("--steps", default=_STEPS, show_default=True, type=click.IntRange(min=1))
@click.option("--keep", type=click.Path(path_type=Path), help="Keep bundle and runs in this directory.")
def demo(report: Path | None, steps: int, keep: Path | None) -> None:
    """Export a small ViT, train it on digits over ZeroMQ on loopback, and show what it cost."""
    import tempfile

    with contextlib.ExitStack() as stack:
        where = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adc-edge-demo-")))
        where.mkdir(parents=True, exist_ok=True)
        code = _run(where, report, steps)
    raise SystemExit(code)


def _run(where: Path, report: Path | None, steps: int) -> int:
    bundle, device, trainer = where / "bundle", where / "device", where / "trainer"
    code = _Process("export", *shlex.split(_EXPORT), "-o", str(bundle), "--force").wait()
    if code:
        return code
    log, endpoint = where / "trainer.log", trainer / "endpoint"
    endpoint.unlink(missing_ok=True)
    learning = shlex.split(_LEARNING)
    listen = ["--bundle", str(bundle), "--bind", "tcp://127.0.0.1:*", "--run", str(trainer), "--devices", "1"]
    cloud = _Process("trainer", *listen, *learning, log=log)
    try:
        if not cloud.wait_for(endpoint, _READY_S):
            click.echo(log.read_text(), err=True)
            return 1
        connect = ["--bundle", str(bundle), "--trainer", endpoint.read_text(), "--data", "digits", "--run", str(device)]
        length = ["--steps", str(steps), "--eval-every", str(_EVALUATE_EVERY)]
        told = [] if report is None else ["--report", str(report)]
        return _Process("serve", *connect, *length, *told, *learning).wait()
    finally:
        cloud.stop()


class _Process:
    """One adc-edge command as a process of its own; a Ctrl-C here is passed on and waited for."""

    def __init__(self, *arguments: str, log: Path | None = None) -> None:
        import sys

        click.secho("$ adc-edge " + " ".join(arguments), dim=True)
        output = None if log is None else log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "adc_edge", *arguments],
            stdout=output,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C must reach the children once, through us
        )
        if output is not None:
            output.close()

    def wait(self) -> int:
        """Its exit code; Ctrl-C stops it cleanly, a second one at once."""
        try:
            return self._process.wait()
        except KeyboardInterrupt:
            click.echo("\nstopping…")
            self.stop()
            return 130

    def wait_for(self, path: Path, seconds: float) -> bool:
        """Whether ``path`` appears while the process lives."""
        import time

        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            if path.exists():
                return True
            time.sleep(0.05)
        return path.exists()

    def stop(self) -> int:
        """Let it end by itself for a moment, then ask, then insist; returns its exit code."""
        import signal

        for number, patience_s in ((None, 2.0), (signal.SIGINT, _STOP_S), (signal.SIGKILL, _STOP_S)):
            if number is not None:
                self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(patience_s)
        return self._process.wait()
