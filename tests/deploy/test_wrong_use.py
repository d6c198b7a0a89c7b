"""deploy/ranks.sh with a real torchrun and real ranks: which mistakes end it, and which it tries again."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.cloud_trainer.ranks.launching import Torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def trainer(bundle: Path, run: Path, bind: str) -> list[str | Path]:
    words: list[str | Path] = ["-m", "--", "adc_edge", "trainer", "--insecure", "--bundle", bundle]
    return [*words, "--run", run, "--bind", bind]


def test_a_bundle_that_is_not_there_ends_it_long_before_torchruns_restarts_do(tmp_path: Path) -> None:
    words = trainer(tmp_path / "nowhere", tmp_path / "run", "tcp://127.0.0.1:*")
    with Torchrun(2, words, tmp_path, supervised=True) as started:
        code, output = started.finish()
    assert code == 2, output
    assert f"ranks.sh: wrong use, which another start does not mend: no bundle at {tmp_path}/nowhere" in output
    assert "next start" not in output


def test_a_port_that_another_process_has_is_tried_again(bundle_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = trainer(bundle_dir, tmp_path / "run", f"tcp://127.0.0.1:{other.getsockname()[1]}")
        with Torchrun(1, words, tmp_path, max_restarts=0, supervised=True) as started:
            started.wait_for(lambda: "next start in 2 s" in started.output or None, "a second try")
            other.close()
            started.endpoint(tmp_path / "run")
            started.wait_for(lambda: "one head" in started.output or None, "a rank at work")
            started.process.send_signal(signal.SIGTERM)
            code, output = started.finish()
    assert code == 143, output
    assert "wrong use" not in output
