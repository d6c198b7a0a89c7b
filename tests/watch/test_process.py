"""`adc-edge watch`: mistakes, and how it begins and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.watch.process import Watcher
from adc_edge.watch.reading.state import Line, WatchedRun
from adc_edge.watch.web.server import WebServer
from tests.watch.synthetic import SyntheticRun
from tests.watch.watching import Watching, eventually


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--run", "{tmp}/absent"], "not there"),
        (["--run", "{tmp}"], "no run"),
        (["--run", "{run}", "--web", "8080"], "has no port"),
        (["--run", "{run}", "--web", "127.0.0.1:99999"], "no number from 1 to 65535"),
        (["--run", "{run}", "--web", "127.0.0.1:{taken}"], "is in use"),
        (["--run", "{run}", "--web", "192.0.2.1:8080"], "no address of this machine"),
        (["--run", "{run}", "--web", "http://127.0.0.1:8080"], "have no meaning here"),
    ],
)
def test_a_mistake_gives_one_clear_error(tmp_path: Path, words: list[str], expected: str) -> None:
    with SyntheticRun(tmp_path / "run") as run, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        named = [word.format(tmp=tmp_path, run=run.path, taken=port) for word in words]
        result = CliRunner().invoke(main, ["watch", *named])
    assert result.exit_code == 2, result.output
    for word in (expected, "expected:", "remedy:"):
        assert word in result.output
    assert "tcp://" not in result.output


def test_a_parent_is_told_a_mistake_as_json(tmp_path: Path) -> None:
    with SyntheticRun(tmp_path / "run") as run, socket.create_server(("127.0.0.1", 0)) as taken:
        watching = Watching(run.path, options=("--web", f"127.0.0.1:{taken.getsockname()[1]}"))
        received, expected, remedy = watching.told["error"]
        assert "is in use" in received
        assert expected
        assert remedy
        assert watching.process.wait(20) == 2
        watching.end()


def test_a_missing_package_names_the_extra(tmp_path: Path) -> None:
    name = "uvicorn"
    with SyntheticRun(tmp_path / "run") as run:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name={name!r})")
        path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
        watching = Watching(run.path, options=("--web", "127.0.0.1:*"), environment={"PYTHONPATH": path})
        received, _, remedy = watching.told["error"]
        assert name in received
        assert remedy == "pip install 'adc-edge[watch]'"
        assert watching.process.wait(20) == 2
        watching.end()


def end_while_a_page_is_open(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send the signal once a page has a stream, and return the rest of the output."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line
    port = int(line.rstrip("/\n").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as page:
        page.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: b"hello" in page.recv(4096))
        process.send_signal(number)
        return process.communicate(timeout=20)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_without_an_error(tmp_path: Path, number: signal.Signals) -> None:
    with SyntheticRun(tmp_path / "run") as run:
        command = [sys.executable, "-m", "adc_edge", "watch", "--run", str(run.path), "--web", "127.0.0.1:*"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                rest = end_while_a_page_is_open(process, number)
            finally:
                process.kill()
        assert process.returncode == 0
        assert "Traceback" not in rest


@pytest.mark.parametrize("words", [["--quiet"], ["--log-json"]])
def test_the_token_is_told_whatever_is_logged_and_stands_in_no_log(tmp_path: Path, words: list[str]) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "adc_edge", "watch", "--web", "0.0.0.0:*", *words]
    with SyntheticRun(tmp_path / "run") as run, log.open("w") as out:
        command += ["--run", str(run.path)]
        with subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                assert "/?token=" in process.stderr.readline()
                process.terminate()
                process.communicate(timeout=20)
            finally:
                process.kill()
    assert "token" not in log.read_text()


def test_a_page_whose_server_fails_ends_the_command_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(server: WebServer) -> None:
        server._socket.close()
        raise OSError("too many open files")

    monkeypatch.setattr(WebServer, "serve", fail)
    with SyntheticRun(tmp_path / "run") as run:
        result = CliRunner().invoke(main, ["watch", "--run", str(run.path), "--web", "127.0.0.1:*"])
    assert "too many open files" in repr(result.exception)


class _Sink:
    def __init__(self, fails: bool) -> None:
        self.fails, self.lines, self.closed = fails, list[Line](), False

    def take(self, lines: list[Line]) -> None:
        if self.fails:
            raise RuntimeError("broken")
        self.lines += lines

    def close(self) -> None:
        self.closed = True


def test_a_sink_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    with SyntheticRun(tmp_path / "run") as run:
        broken, sound = _Sink(True), _Sink(False)
        watcher = Watcher([WatchedRun(run.path)])
        watcher.add(broken, sound)
        for _ in range(3):
            run.step()
            watcher.refresh()
        assert [line.values["step"] for line in sound.lines if line.kind == "step"] == [0, 1, 2]


def test_a_run_that_cannot_be_read_leaves_the_others_watched(tmp_path: Path) -> None:
    class Broken(WatchedRun):
        def refresh(self) -> list[Line]:
            raise RuntimeError("broken")

    with SyntheticRun(tmp_path / "run") as run:
        sound = _Sink(False)
        watcher = Watcher([Broken(run.path), WatchedRun(run.path)])
        watcher.add(sound)
        watcher.refresh()
        run.step()
        watcher.refresh()
        assert [line.kind for line in sound.lines] == ["started", "step"]


def test_a_child_runs_at_low_priority_shows_a_resumed_run_and_ends_with_its_input(tmp_path: Path) -> None:
    with SyntheticRun(tmp_path / "run", "device") as run, Watching(run.path) as watching:
        assert os.getpriority(os.PRIO_PROCESS, watching.process.pid) == 19
        for _ in range(30):
            run.step()
        eventually(lambda: watching.state()["runs"][0]["about"]["steps_done"] == 30)
        lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run.path / "new").write_text("".join(lines[:10]))
        (run.path / "new").rename(run.path / "metrics.jsonl")
        eventually(lambda: watching.state()["runs"][0]["about"]["steps_done"] == 10)
        eventually(lambda: len(watching.state()["runs"][0]["curves"]["steps"]["columns"]["step"]) == 10)
        assert watching.end() == 0


SLOW = """
import time

class Run:
    def __init__(self, **about): pass
    def log(self, values, step): pass
    def finish(self): time.sleep(60)

start = Run
"""


def test_a_child_shows_the_end_of_a_stopped_run_and_frees_its_port_before_a_slow_tracker_ends(tmp_path: Path) -> None:
    (tmp_path / "slow_tracker_of_test.py").write_text(SLOW)
    path = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    options = ("--web", "127.0.0.1:*", "--tracker", "slow_tracker_of_test:start")
    with SyntheticRun(tmp_path / "run") as run, Watching(run.path, options=options, environment=path) as seen:
        process, port = seen.process, seen.port
        run.step()
        eventually(lambda: seen.state()["runs"][0]["about"]["steps_done"] == 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(process.pid, number)
        run.step()
        eventually(lambda: seen.state()["runs"][0]["about"]["steps_done"] == 2)
        assert process.stdin is not None
        process.stdin.close()

        def is_free() -> bool:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return True
            return False

        eventually(is_free, 5)
        assert process.poll() is None  # the tracker has not ended
        process.kill()
