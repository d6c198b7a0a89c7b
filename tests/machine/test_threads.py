"""No more threads than the cores that a process may use, and one for NumPy's small matrices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adc_edge.machine import threads
from adc_edge.onnx.session import session_options

HERE = len(os.sched_getaffinity(0))  # without siblings of a core, as the trees below have none
V1 = {"cpu__docker__cfs_quota_us": "90000", "cpu__docker__cfs_period_us": "100000"}


@pytest.fixture(autouse=True)
def no_limit_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def control_group(root: Path, membership: str, **files: str) -> Path:
    """A tree with /proc/self/cgroup and limits below /sys/fs/cgroup, with `__` for `/` in their names."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = (
            root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs_", "cpu.cfs_")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "allowed"),
    [
        ("0::/\n", {}, HERE),
        ("0::/\n", {"cpu_max": "max 100000"}, HERE),
        ("0::/\n", {"cpu_max": "50000 100000"}, 1),
        ("0::/app/job\n", {"app__job__cpu_max": "max 100000", "app__cpu_max": "100000 100000"}, 1),
        ("0::/\n", {"cpu_max": "nonsense"}, HERE),
        ("3:cpuset:/\n2:cpu,cpuacct:/docker\n", V1, 1),
        ("2:cpu:/\n", {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, HERE),
        ("2:memory:/\n", {"cpu__cfs_quota_us": "1000", "cpu__cfs_period_us": "100000"}, HERE),
    ],
)  # fmt: skip
def test_a_containers_quota_bounds_the_cores(
    tmp_path: Path, membership: str, files: dict[str, str], allowed: int
) -> None:
    assert threads.usable_cores(control_group(tmp_path, membership, **files)) == allowed


def test_a_quota_of_part_of_a_core_more_is_a_core_more(tmp_path: Path) -> None:
    root = control_group(tmp_path, "0::/\n", cpu_max="110000 100000")
    assert threads.usable_cores(root) == min(2, HERE)


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from adc_edge.machine.threads import usable_cores
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
print(usable_cores(pathlib.Path({str(tmp_path)!r})))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


PROGRAM = """
import sys
import numpy as np, threadpoolctl
from adc_edge.codec.precision import decode, encode
x = np.random.default_rng(0).standard_normal((3000, 96)).astype(np.float32)
data = encode(x, "pca1")
assert {found["num_threads"] for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"} == {1}
sys.stdout.buffer.write(bytes(data) + decode(data, x.shape, "pca1").tobytes())
"""


def test_a_message_has_the_same_bytes_whatever_the_number_of_threads() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for threads in ("1", "4")
    ]
    assert len(found[0]) > 3000 * 96 * 4
    assert found[0] == found[1]


def test_the_number_of_threads_is_the_users_or_that_of_the_usable_cores() -> None:
    assert threads.divide_cores(0) == threads.usable_cores()
    assert threads.divide_cores(5) == 5


def test_onnx_runtime_takes_the_usable_cores_unless_told() -> None:
    assert session_options().intra_op_num_threads == threads.usable_cores()
    assert session_options(3).intra_op_num_threads == 3


@pytest.mark.slow
def test_torch_takes_as_many_as_the_command_line_sets() -> None:
    code = "import adc_edge.cli, torch; print(torch.get_num_threads())"
    for told, expected in (({}, threads.usable_cores()), ({"OMP_NUM_THREADS": "1"}, 1)):
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | told
        seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert seen.stdout == f"{expected}\n", seen.stderr


@pytest.mark.parametrize("niceness", [0, 12])
def test_a_thread_that_gives_way_runs_at_a_lower_priority_and_the_others_do_not(niceness: int) -> None:
    """Also in a process that was started with a lower priority itself."""
    code = f"""
import os, threading
os.nice(max(0, {niceness} - os.nice(0)))
from concurrent.futures import ThreadPoolExecutor
from adc_edge.machine.threads import give_way
def nice():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
before = nice()
with ThreadPoolExecutor(1, initializer=give_way) as pool:
    print(pool.submit(nice).result() > before, nice() == before)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True True\n"


def test_two_hardware_threads_of_a_core_are_one(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        file = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{cpus[0]}-{cpus[-1]}\n")
    assert threads.usable_cores(tmp_path) == 1


def test_the_users_own_limit_holds_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.usable_cores(tmp_path) == threads.divide_cores(0) == 1
    for nonsense in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert threads.usable_cores(tmp_path) == HERE
