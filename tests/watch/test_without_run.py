"""`trainer --web` and `serve --web` without `--run`: each shows a run that is kept nowhere."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.watch.watching import eventually


@contextmanager
def shown(log: Path, *words: object) -> Iterator[str]:
    """A command at work, by the address of its page."""
    command = [sys.executable, "-m", "adc_edge", *map(str, words), "--web", "127.0.0.1:*", "--threads", "1"]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            told = process.stderr.readline().split()
            assert told[0] == "web", (told, log.read_text())
            yield told[1]
            process.terminate()
            process.communicate(timeout=60)
        finally:
            process.kill()


def run_at(page: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{page}api/state", timeout=30) as answer:
        about: dict[str, Any] = json.load(answer)["runs"][0]["about"]
        return about


@pytest.mark.slow
def test_trainer_and_device_without_directories_are_shown_while_they_work(bundle_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    trainer = ["trainer", "--bundle", bundle_dir, "--bind", endpoint]
    device = ["serve", "--bundle", bundle_dir, "--trainer", endpoint, "--steps", 100_000]
    with shown(tmp_path / "trainer", *trainer) as cloud, shown(tmp_path / "device", *device) as edge:
        for page, role in ((cloud, "trainer"), (edge, "device")):
            eventually(lambda page=page: run_at(page)["steps_done"] > 2, 90)  # type: ignore[misc]
            about = run_at(page)
            assert (about["role"], about["state"]) == (role, "running")
            assert about["model"], role
            with urllib.request.urlopen(page, timeout=30) as answer:
                assert b"<title>" in answer.read()
