"""`adc-edge demo`: a complete training on one machine, with digits that come with it.

It runs the commands that a user would type (export, trainer, serve), each in a process, and shows their output.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

import click

from adc_edge.options import OUTPUT_DIRECTORY, OUTPUT_FILE
from adc_edge.signals import INTERRUPTED

# A small ViT for digits enlarged to 24 px: 37 tokens of 96 channels, split in the middle. A digit fills its picture,
# so nothing is cropped.
_EXPORT = (
    "--model vit_tiny_patch16_224 --model-arg patch_size=4 --img-size 24 --crop-pct 1 --model-arg embed_dim=96 "
    "--model-arg num_heads=4 --model-arg depth=4 --num-classes 10 --split 2 "
    "--batch-size 64"
)
# One thread a process, because device and trainer share the cores here.
_LEARNING = "--fresh --lr 2e-3 --schedule cosine --warmup-steps 20 --weight-decay 0.05 --clip-norm 1 --threads 1"
# With two messages a step, device and trainer compute at the same time.
_SERVING = ["--eval-every", "100", "--micro-batches", "2"]
_STEPS = 400
_READY_S = 60.0
_STOP_S = 10.0


@click.command()
@click.option("--report", type=OUTPUT_FILE, help="Write the results to this JSON file.")
@click.option("--steps", default=_STEPS, show_default=True, type=click.IntRange(min=1), help="Number of steps.")
@click.option("--keep", type=OUTPUT_DIRECTORY, help="Keep the bundle and the runs in this directory.")
def demo(report: Path | None, steps: int, keep: Path | None) -> None:
    """Export a small ViT, train it on digits over loopback, and show its accuracy and the bytes sent."""
    from adc_edge.files import temporary_directory

    for number in (signal.SIGINT, signal.SIGTERM):  # also in a script's background job, which ignores Ctrl-C
        signal.signal(number, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        where = keep or Path(stack.enter_context(temporary_directory("adc-edge-demo-")))
        where.mkdir(parents=True, exist_ok=True)
        told = [] if report is None else ["--report", str(report)]
        kept = [] if keep is None else ["--run", str(keep / "device")]
        try:
            code = _run(where, ["--steps", str(steps), *told, *kept])
        except KeyboardInterrupt:
            code = INTERRUPTED
    raise SystemExit(code)


def _run(where: Path, serving: list[str]) -> int:
    """Export, then run trainer and device side by side. Return the exit code of the first one that fails."""
    bundle, trainer, log = where / "bundle", where / "trainer", where / "trainer.log"
    with _Process("export", *shlex.split(_EXPORT), "-o", str(bundle), "--force") as export:
        code = export.process.wait()
    if code:
        return code
    endpoint = trainer / "endpoint"
    endpoint.unlink(missing_ok=True)
    learning = shlex.split(_LEARNING)
    listen = ["--bundle", str(bundle), "--bind", "tcp://127.0.0.1:*", "--run", str(trainer), "--devices", "1"]
    with _Process("trainer", *listen, *learning, log=log) as cloud:
        if not cloud.wait_for(endpoint, _READY_S):
            click.echo(log.read_text(encoding="utf-8", errors="replace"), err=True)
            return 1
        connect = ["--bundle", str(bundle), "--trainer", endpoint.read_text(), "--data", "digits"]
        with _Process("serve", *connect, *serving, *_SERVING, *learning) as edge:
            return edge.process.wait()


class _Process:
    """One adc-edge command in a process, which ends with the block."""

    def __init__(self, *arguments: str, log: Path | None = None) -> None:
        import shutil
        import sys

        from adc_edge.terminal import command_lines

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in command_lines("adc-edge " + shlex.join(arguments), width, "$ "):
            click.secho(line, dim=True)
        output = None if log is None else log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "adc_edge", *arguments],
            stdout=output,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C must reach the child once, through this process
        )
        if output is not None:
            output.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a moment, then terminate the process, then kill it. A second Ctrl-C kills it at once."""
        try:
            if kind is None:
                self._ends_within(2.0)
            if self.process.poll() is None:
                self.process.terminate()
                self._ends_within(_STOP_S)
        finally:
            self.process.kill()
            self.process.wait()

    def wait_for(self, path: Path, seconds: float) -> bool:
        """Wait until ``path`` exists. Return whether it appeared while the process was running."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None and not path.exists():
            time.sleep(0.05)
        return path.exists()

    def _ends_within(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
