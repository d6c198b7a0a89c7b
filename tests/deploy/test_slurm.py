"""The Slurm job: what ShellCheck, torchrun and adc-edge say of it. Slurm itself does not run here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cloud_trainer.ranks.launching import TORCHRUN, rank_environment
from tests.deploy.commands import check_ranks
from tests.deploy.manifests import DEPLOY

JOB = DEPLOY / "slurm" / "adc-edge.sbatch"
GIVEN = {"ADC_EDGE_BUNDLE": "/shared/bundle", "ADC_EDGE_RUN": "/shared/run", "ADC_EDGE_KEYS": "/shared/keys"}


def test_shellcheck_has_no_complaint() -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert shellcheck is not None
    script = re.search(r"^NODE='\n(.*?)^'", JOB.read_text(), re.MULTILINE | re.DOTALL)
    assert script is not None
    for words, text in (([JOB], None), (["--shell=bash", "--exclude=SC2154,SC2086", "-"], script[1])):
        done = subprocess.run([shellcheck, *words], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def job_in(place: Path, environment: dict[str, str], torchrun: str = "") -> subprocess.CompletedProcess[str]:
    """Run the job as the first of two nodes would: `srun` runs its words once for each, here one after another."""
    programs = {
        "scontrol": '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"',
        "hostname": 'echo "n$((SLURM_NODEID + 1)).cluster"',
        "srun": f"""
            while [ "${{1#--}}" != "$1" ]; do printf "%s\\n" "$1" >>{place}/srun; shift; done
            code=0
            for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || code=$?; done
            exit $code""",
        "sleep": '[ "$1" = 10 ] || exec /bin/sleep "$1"',  # not between two starts
        "torchrun": f'printf "%s\\n" "$@" END >>{place}/words; {torchrun}',
    }
    (place / "bin").mkdir()
    for name, text in programs.items():
        (place / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (place / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123456"}
    slurm |= {"SLURM_CPUS_PER_TASK": "8", "PATH": f"{place / 'bin'}:/usr/bin:/bin"}
    return subprocess.run(["bash", JOB], env=slurm | environment, capture_output=True, text=True, check=False)


def test_each_node_starts_its_agent_with_words_that_torchrun_and_adc_edge_take(tmp_path: Path) -> None:
    done = job_in(tmp_path, {**GIVEN, "ADC_EDGE_RANKS": "2", "ADC_EDGE_OPTIONS": "--devices 3 --sync 8"})
    assert done.returncode == 0, done.stderr
    nodes = [call.splitlines() for call in (tmp_path / "words").read_text().split("END\n") if call]
    assert len(nodes) == 2
    for number, words in enumerate(nodes):
        agent, trainer = check_ranks(words)
        assert agent["nnodes"] == "1:2"
        assert agent["nproc_per_node"] == "2"
        assert agent["rdzv_endpoint"] == "n1:23456"
        assert str(agent["rdzv_conf"]).startswith(f"is_host={'false' if number else 'true'},")
        assert trainer["advertise"] == f"tcp://n{number + 1}.cluster:5700"
        assert (trainer["devices"], trainer["sync"], trainer["threads"]) == (3, 8, 4)
    assert {"--kill-on-bad-exit=0", "--wait=0"} == set((tmp_path / "srun").read_text().split())


@pytest.mark.parametrize(
    ("torchrun", "starts", "code"),
    [
        ('echo "no such bundle" >>"$ADC_EDGE_WRONG_USE"; exec /bin/sleep 600', 1, 2),  # as a rank would
        # the first agents fail; the next ones, and their shell, get SIGTERM while they run
        (
            f"[ $(grep -c END {{place}}/words) -gt 2 ] || exit 1; kill -TERM $PPID; exec {sys.executable} -c 'exit(1)'",
            2,
            0,
        ),
        ("[ $(grep -c END {place}/words) -gt 2 ] || exit 1", 2, 0),
    ],
    ids=["a rank tells of wrong use", "SIGTERM", "failure"],
)
def test_nodes_start_again_after_a_failure_but_not_when_they_were_asked_to_end(
    torchrun: str, starts: int, code: int, tmp_path: Path
) -> None:
    done = job_in(tmp_path, GIVEN, torchrun.format(place=tmp_path))
    assert done.returncode == code, done.stderr
    assert (tmp_path / "words").read_text().count("END\n") == 2 * starts
    assert done.stderr.count("starting again") == starts - 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_mistake_of_the_user_ends_the_job_and_not_torchruns_restarts(tmp_path: Path) -> None:
    """With a real torchrun, of one host alone: a rank that finds no bundle ends with 2, and torchrun with 1."""
    alone = f'while [ "$1" != -m ]; do shift; done; exec {TORCHRUN} --standalone --max-restarts 20 "$@"'
    given = rank_environment(GIVEN | {"ADC_EDGE_OPTIONS": "--insecure", "TMPDIR": str(tmp_path)})
    done = job_in(tmp_path, {name: value for name, value in given.items() if name != "PATH"}, alone)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "starting again" not in done.stderr
    assert not [*tmp_path.glob("tmp.*")]


@pytest.mark.parametrize("missing", GIVEN)
def test_a_job_without_one_of_its_directories_says_so(missing: str, tmp_path: Path) -> None:
    done = job_in(tmp_path, {name: value for name, value in GIVEN.items() if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr


def test_the_job_is_warned_before_its_end_and_may_go_on_later() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", JOB.read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    signal, _, seconds = options["signal"].partition("@")
    assert signal == "TERM"  # without B: it goes to the agents, not to this script
    assert int(seconds) > 60  # torchrun gives its ranks 30 s
    assert options["dependency"] == "singleton"
    assert {"requeue", "no-kill"} <= options.keys()
