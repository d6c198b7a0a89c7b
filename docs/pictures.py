"""Make the pictures of README: a fleet's page and a report, from a real run of a trainer and four devices on digits.

``python docs/pictures.py`` takes a few minutes and writes docs/fleet.png and docs/report.png. It needs Chromium.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"
DEVICES = ("kitchen", "garage", "gate", "yard")
STEPS, SHOWN_AT = 200, 140  # steps of each device, and of the first one when the fleet is shown
EXPORT = (
    "--model vit_tiny_patch16_224 --model-arg patch_size=4 --img-size 24 --crop-pct 1 --model-arg embed_dim=96 "
    "--model-arg num_heads=4 --model-arg depth=4 --num-classes 10 --split 2 --batch-size 64"
)
LEARNING = shlex.split("--lr 2e-3 --schedule cosine --warmup-steps 20 --weight-decay 0.05 --clip-norm 1 --threads 1")
WIDTH, COLOURS = 1280, 128
READY_S, RUN_S = 120.0, 600.0


def command(*words: str) -> list[str]:
    """Return the command line of a command of adc-edge."""
    return [sys.executable, "-m", "adc_edge", *words]


def started(stack: contextlib.ExitStack, *words: str) -> subprocess.Popen[bytes]:
    """Start a command, which is ended with ``stack`` if it still runs."""
    process = stack.enter_context(
        subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )
    stack.callback(process.terminate)
    return process


def wait_for(path: Path) -> str:
    """Return the text of a file as soon as there is one."""
    deadline = time.monotonic() + READY_S
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.1)
    return path.read_text()


def steps_of(run: Path) -> int:
    """Return how many steps a device's run has done."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return sum('"kind": "step"' in line for line in lines)


def small(picture: Path, height: int) -> None:
    """Cut a picture at ``height`` pixels and store it in few colours."""
    with Image.open(picture) as image:
        cut = image.convert("RGB").crop((0, 0, image.width, min(height, image.height)))
        cut.quantize(COLOURS).save(picture, optimize=True)


def take(browser: Browser, url: str, picture: Path, height: int) -> None:
    """Store a picture of the top of a page."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme="light")
    page.goto(url)
    page.locator(".u-wrap canvas").first.wait_for(timeout=30_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=picture)
    page.close()
    small(picture, height)


def main() -> None:
    """Run the fleet and take both pictures."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the processes too
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as stack,
        sync_playwright() as playwright,
    ):
        where = Path(folder)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        bundle, cloud = str(where / "bundle"), where / "cloud"
        subprocess.run(command("export", *shlex.split(EXPORT), "-o", bundle), check=True, stdout=subprocess.DEVNULL)
        started(stack, "trainer", "--bundle", bundle, "--bind", "tcp://127.0.0.1:*", "--run", str(cloud), *LEARNING)
        endpoint = wait_for(cloud / "endpoint")
        runs = [where / name for name in DEVICES]
        serving = [
            "--bundle",
            bundle,
            "--trainer",
            endpoint,
            "--steps",
            str(STEPS),
            "--eval-every",
            "40",
            "--eval-images",
            "64",
        ]
        serving += ["--micro-batches", "1", *LEARNING]
        devices = [started(stack, "serve", *serving, "--run", str(run), "--name", run.name) for run in runs]
        watching = subprocess.Popen(
            command("watch", "--run", str(cloud), "--web", "127.0.0.1:*", "--child"), stdout=subprocess.PIPE
        )
        stack.enter_context(watching)
        stack.callback(watching.terminate)
        assert watching.stdout is not None
        url = json.loads(watching.stdout.readline())["web"]
        deadline = time.monotonic() + RUN_S
        while steps_of(runs[0]) < SHOWN_AT:
            assert time.monotonic() < deadline, "the fleet is too slow"
            time.sleep(0.5)
        take(browser, url, DOCS / "fleet.png", 1180)
        for device in devices:
            device.wait(RUN_S)
        page = where / "report.html"
        subprocess.run(command("report", str(cloud), *map(str, runs), "-o", str(page)), check=True)
        take(browser, page.as_uri(), DOCS / "report.png", 1200)
        browser.close()


if __name__ == "__main__":
    main()
