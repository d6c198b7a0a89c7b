"""The watching process and its run: it starts first, ends last, and neither delays the run nor outlives it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adc_edge.errors import SettingError
from adc_edge.watching import process as module
from adc_edge.watching.options import WatchSettings
from adc_edge.watching.process import WatchingProcess, watching

Wait = Callable[[Callable[[], bool]], None]
READY = 'print(json.dumps({"ready": True, "web": "http://127.0.0.1:1/?token=x", "metrics": None}), flush=True)\n'
HEAD = "import json, os, signal, sys, time\nopen(sys.argv[1], 'w').write(f'{os.getpid()} {os.nice(0)}')\n"
PARENT = """
import sys, time
from adc_edge.watching.process import WatchingProcess
with WatchingProcess(sys.argv[1:], "stand_in") as process:
    process.wait_until_ready(lambda: False)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Writes a module that is run instead of adc-edge; returns its arguments: the file that tells its process id."""
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), before])))

    def write(code: str) -> list[str]:
        (tmp_path / "stand_in.py").write_text(HEAD + code)
        return [str(tmp_path / "pid")]

    return write


def told(tmp_path: Path) -> list[int]:
    return [int(word) for word in (tmp_path / "pid").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("adc_edge.watching").addHandler(handler)
    yield found
    logging.getLogger("adc_edge.watching").removeHandler(handler)


def test_it_says_what_it_serves_runs_at_a_low_priority_and_ends_with_the_context(
    stand_in: Callable[[str], list[str]], tmp_path: Path, lines: list[str]
) -> None:
    with WatchingProcess(stand_in(READY + "time.sleep(600)\n"), "stand_in") as process:
        assert process.wait_until_ready(lambda: False) == {"web": "http://127.0.0.1:1/?token=x"}
        pid, niceness = told(tmp_path)
        assert niceness == 19
        assert os.getsid(pid) != os.getsid(0)  # so Ctrl-C in the terminal does not reach it
    assert not alive(pid)
    assert lines == []


def test_it_has_time_to_finish_what_it_does(stand_in: Callable[[str], list[str]], tmp_path: Path) -> None:
    code = (
        "def end(*_):\n    time.sleep(0.3)\n    open(sys.argv[1] + '.end', 'w').write('all sent')\n    sys.exit()\n"
        "signal.signal(signal.SIGHUP, end)\n" + READY + "time.sleep(600)\n"
    )
    with WatchingProcess(stand_in(code), "stand_in") as process:
        process.wait_until_ready(lambda: False)
    assert (tmp_path / "pid.end").read_text() == "all sent"


def test_a_stop_that_all_processes_of_a_service_get_leaves_it_at_work_until_the_run_ends(
    stand_in: Callable[[str], list[str]], tmp_path: Path, lines: list[str], eventually: Wait
) -> None:
    code = READY + "while True:\n    open(sys.argv[1] + '.at', 'w').write(str(time.time()))\n    time.sleep(0.05)\n"
    with WatchingProcess(stand_in(code), "stand_in") as process:
        process.wait_until_ready(lambda: False)
        pid, moment = told(tmp_path)[0], time.time()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        at = tmp_path / "pid.at"
        eventually(lambda: at.exists() and float(at.read_text() or 0) > moment + 0.3)
    assert not alive(pid)
    assert lines == []


def test_one_that_does_not_end_is_ended(
    stand_in: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_END_S", 0.3)
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + READY + "time.sleep(600)\n"
    with WatchingProcess(stand_in(code), "stand_in") as process:
        process.wait_until_ready(lambda: False)
    assert not alive(told(tmp_path)[0])


def test_it_ends_soon_after_a_run_that_was_killed(
    stand_in: Callable[[str], list[str]], tmp_path: Path, eventually: Wait
) -> None:
    command = [sys.executable, "-c", PARENT, *stand_in(READY + "time.sleep(600)\n")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    (pid, _), start = told(tmp_path), time.monotonic()
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    eventually(lambda: not alive(pid))
    assert time.monotonic() - start < 10


def test_what_it_cannot_do_is_the_error_of_the_command(stand_in: Callable[[str], list[str]]) -> None:
    error = json.dumps({"error": ["port 8080 is in use", "a free port", "choose another"]})
    arguments = stand_in(f"print({error!r})\nsys.exit(2)\n")
    with pytest.raises(SettingError) as caught, WatchingProcess(arguments, "stand_in") as process:
        process.wait_until_ready(lambda: False)
    assert (caught.value.received, caught.value.exit_code) == ("port 8080 is in use", 2)


def test_one_that_ends_before_it_is_ready_is_an_error_with_its_last_words(
    stand_in: Callable[[str], list[str]], lines: list[str]
) -> None:
    arguments = stand_in("print('one')\nraise RuntimeError('no such thing')\n")
    words = "code 1: RuntimeError: no such thing"
    with pytest.raises(SettingError, match=words), WatchingProcess(arguments, "stand_in") as process:
        process.wait_until_ready(lambda: False)
    assert lines == []


def test_a_run_that_is_told_to_stop_does_not_wait_for_it(stand_in: Callable[[str], list[str]]) -> None:
    start = time.monotonic()
    with WatchingProcess(stand_in("time.sleep(600)\n"), "stand_in") as process:
        assert process.wait_until_ready(lambda: True) == {}
    assert time.monotonic() - start < 10


def test_one_that_dies_is_one_warning_and_the_run_goes_on(
    stand_in: Callable[[str], list[str]], lines: list[str], eventually: Wait
) -> None:
    code = READY + "print('2026-01-02 03:04:05 INFO    all is well')\nprint('out of memory', flush=True)\nos._exit(9)\n"
    with WatchingProcess(stand_in(code), "stand_in") as process:
        process.wait_until_ready(lambda: False)
        eventually(lambda: bool(lines))
        time.sleep(0.2)
    assert lines == ["the watching process has ended (code 9: out of memory); the run goes on without it"]


def test_its_warnings_are_logged_here_in_bounded_number_whatever_it_prints(
    stand_in: Callable[[str], list[str]], lines: list[str], eventually: Wait
) -> None:
    code = READY + "while True: print('2026-01-02 03:04:05 WARNING tracker x failed\\n' + 100_000 * 'x', flush=True)\n"
    with WatchingProcess(stand_in(code), "stand_in") as process:
        process.wait_until_ready(lambda: False)
        spent = time.process_time()
        eventually(lambda: len(lines) >= 10)
        time.sleep(0.5)
        assert time.process_time() - spent < 2
    assert lines == ["watching: tracker x failed"] * 10


def test_without_such_options_nothing_is_started() -> None:
    with watching(None, WatchSettings(), lambda: False) as shown:
        assert shown is None


def test_a_run_without_a_directory_is_shown_in_one_that_is_gone_afterwards(
    stand_in: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    stand_in("")
    (tmp_path / "stand_in.py").write_text(f"import json, sys, time\n{READY}time.sleep(600)\n")
    real = WatchingProcess
    started: list[list[str]] = []

    def start(arguments: list[str]) -> WatchingProcess:
        started.append(arguments)
        return real(arguments, "stand_in")

    monkeypatch.setattr(module, "WatchingProcess", start)
    with watching(None, WatchSettings(web="127.0.0.1:0"), lambda: False) as shown:
        assert shown is not None
        assert shown.is_dir()
        assert started == [["watch", "--child", "--run", str(shown), "--web", "127.0.0.1:0"]]
        assert capsys.readouterr() == ("", "web      http://127.0.0.1:1/?token=x\n")  # and in no log
        assert "token" not in caplog.text
    assert not shown.exists()
    with watching(tmp_path, WatchSettings(metrics_port=0), lambda: False) as shown:
        assert shown is None
        assert started[1][:4] == ["watch", "--child", "--run", str(tmp_path)]
