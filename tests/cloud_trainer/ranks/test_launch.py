"""The environment that torchrun gives its ranks, their addresses and threads, and their end with torchrun's agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from adc_edge.cloud_trainer.ranks.launch import Launch, advertised, bound_to, is_wildcard, launched
from adc_edge.errors import SettingError
from tests.cloud_trainer.ranks.launching import rank_environment

GIVEN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_RESTART_COUNT": "5",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
ORPHAN = """
import os, sys, time
from adc_edge.cloud_trainer.ranks.launch import die_with_parent
if os.fork() == 0:
    die_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""


THREADS = """
import os, sys
from adc_edge.cloud_trainer.ranks.launch import launched, share_threads
from adc_edge.machine.threads import thread_count
told = os.environ.get("OMP_NUM_THREADS")
share_threads(launched())
os.write(1, f"told {told} has {os.environ.get('OMP_NUM_THREADS')} {thread_count(0)}\\n".encode())  # at once
"""
SHARES = """
import os
from adc_edge.cloud_trainer.ranks.launch import Launch, share_threads
from adc_edge.machine.threads import usable_cores
print(usable_cores())
for ranks in (1, 2, 1000):
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun does
    share_threads(Launch(0, ranks, 0, ranks, 1, 0, "127.0.0.1", 29500, True), os.getpid())
    print(os.environ["OMP_NUM_THREADS"])
"""


def test_a_launch_is_read_from_the_environment_of_torchrun() -> None:
    assert launched(GIVEN) == Launch(3, 4, 1, 2, 2, 5, "10.0.0.1", 29500, True)
    own = launched({**GIVEN, "TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert own is not None
    assert not own.agent_store


@pytest.mark.parametrize("lacking", ["TORCHELASTIC_RUN_ID", "RANK"])
def test_without_torchrun_there_is_no_launch(lacking: str) -> None:
    assert launched({name: value for name, value in GIVEN.items() if name != lacking}) is None  # RANK alone: Slurm, MPI


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_WORLD_SIZE"])
def test_a_variable_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(SettingError, match=f"no {name} in the environment"):
        launched({key: value for key, value in GIVEN.items() if key != name})


def test_a_variable_that_is_no_number_is_named() -> None:
    with pytest.raises(SettingError, match="RANK='first' in the environment"):
        launched({**GIVEN, "RANK": "first"})


def test_the_ranks_of_a_host_listen_on_ports_that_follow_one_another() -> None:
    assert [bound_to("tcp://127.0.0.1:5555", rank) for rank in (0, 1, 3)] == [
        "tcp://127.0.0.1:5555",
        "tcp://127.0.0.1:5556",
        "tcp://127.0.0.1:5558",
    ]
    assert bound_to("tcp://[::1]:5555", 1) == "tcp://[::1]:5556"
    assert bound_to("tcp://*:5555", 1) == "tcp://*:5556"
    assert bound_to("tcp://127.0.0.1:*", 1) == "tcp://127.0.0.1:*"
    with pytest.raises(SettingError, match="ports up to 65535"):
        bound_to("tcp://127.0.0.1:65535", 1)


def test_devices_are_told_the_advertised_address_or_the_bound_one() -> None:
    bound = "tcp://10.0.0.1:5556"
    assert advertised(None, bound, 1) == bound
    assert advertised("tcp://trainer.example:7000", bound, 1) == "tcp://trainer.example:7001"
    assert advertised("tcp://trainer.example:*", bound, 1) == "tcp://trainer.example:5556"


@pytest.mark.parametrize("bound", ["tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://[::]:5555"])
def test_no_device_can_be_told_a_wildcard(bound: str) -> None:
    assert is_wildcard(bound)
    with pytest.raises(SettingError, match="--advertise"):
        advertised(None, bound, 0)
    assert advertised("tcp://10.0.0.1:5555", bound, 0) == "tcp://10.0.0.1:5555"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such call")
def test_a_rank_dies_with_the_agent_that_started_it(eventually: Callable[[Callable[[], bool]], None]) -> None:
    agent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, env=rank_environment(), text=True)
    assert agent.stdout is not None
    rank = int(agent.stdout.readline())
    agent.kill()
    agent.wait()

    def gone() -> bool:
        with suppress(ProcessLookupError):
            os.kill(rank, 0)
            return _is_zombie(rank)  # where nobody takes orphans over
        return True

    try:
        eventually(gone)
    finally:
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
        agent.stdout.close()


def _is_zombie(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.parametrize("given", [None, "1", "3"])
def test_ranks_divide_the_cores_unless_the_user_says_how_many(tmp_path: Path, given: str | None) -> None:
    """torchrun itself sets OMP_NUM_THREADS to 1 for several ranks."""
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    environment = rank_environment({} if given is None else {"OMP_NUM_THREADS": given})
    if given is None:
        del environment["OMP_NUM_THREADS"]
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cores = int(
        subprocess.run(
            [sys.executable, "-c", "from adc_edge.machine.threads import usable_cores; print(usable_cores())"],
            env={name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    share = max(1, cores // 2)
    expected = f"told 1 has {share} {share}" if given is None else f"told {given} has {given} {min(int(given), cores)}"
    assert done.stdout.splitlines() == [expected] * 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_the_cores_are_divided_by_the_ranks_of_the_host() -> None:
    environment = {name: value for name, value in rank_environment().items() if name != "OMP_NUM_THREADS"}
    lines = subprocess.run(
        [sys.executable, "-c", SHARES], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    cores, *shares = map(int, lines)
    assert shares == [cores, max(1, cores // 2), 1]
    kept = subprocess.run(
        [sys.executable, "-c", SHARES],
        env=environment | {"OMP_NUM_THREADS": "7"},  # of the user
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert kept[1:] == ["1", "1", "1"]  # SHARES sets it to 1, which is left alone
