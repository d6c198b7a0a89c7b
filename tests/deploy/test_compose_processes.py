"""The compose file of ranks and devices, and the script that runs a compose file as processes.

The slow test runs the whole file: keys, two ranks under torchrun, four devices.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from adc_edge.cli import main
from deploy.compose import as_processes
from tests.deploy.commands import check_ranks
from tests.deploy.manifests import DEPLOY

COMPOSE = DEPLOY / "compose" / "compose.yaml"
SCRIPT = DEPLOY / "compose" / "as_processes.py"


def services() -> dict[str, dict[str, Any]]:
    return as_processes.read_compose(COMPOSE, {})


@pytest.mark.parametrize("file", [COMPOSE, DEPLOY.parent / "compose.yaml"])
def test_compose_files_are_valid_by_the_published_schema(file: Path) -> None:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_key_is_not_valid(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {a: {image: i, comand: c}}\n")
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*words, tmp_path / "compose.yaml"], capture_output=True, text=True, check=False)
    assert "comand" in done.stdout


def test_two_ranks_and_four_devices_take_their_options() -> None:
    given = services()
    agent, trainer = check_ranks(shlex.split(given["trainer"]["command"]))
    assert agent["nproc_per_node"] == "2"
    assert given["trainer"]["entrypoint"] == ["python3", "-m", "torch.distributed.run"]
    ports = [int(port) for port in given["trainer"]["expose"]]
    assert ports == [5700, 5701]  # a rank each
    assert trainer["advertise"] == "tcp://trainer:5700"
    devices = [name for name in given if name.startswith("device-")]
    assert trainer["devices"] == len(devices) == 4
    seeds = set()
    for name in devices:
        command, *words = shlex.split(given[name]["command"])
        serve = main.get_command(click.Context(main), command)
        assert serve is not None
        options = serve.make_context(command, words).params
        assert options["trainer"] == trainer["advertise"]
        assert options["keys"] == Path("/keys") / name
        seeds.add(options["seed"])
    assert len(seeds) == 4


def test_the_services_run_as_the_image_and_with_no_more_rights_than_they_need() -> None:
    image = (DEPLOY.parent / "Dockerfile.trainer").read_text()
    assert f"ENTRYPOINT {json.dumps(as_processes.ENTRYPOINT)}" in image
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
        assert service["healthcheck"] == {"disable": True}  # the image's asks for port 5700
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        if "/keys" in mounts:
            assert mounts["/keys"].get("read_only", False) is (name != "keys")
        assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_variables_are_filled_in_as_docker_does() -> None:
    text = "# $x\na: ${A:-1}\nb: ${B:-2} $$c\nc: ${C}"
    assert as_processes.interpolated(text, {"A": "", "B": "3", "C": "4"}) == "a: 1\nb: 3 $c\nc: 4"
    for wrong in ("${C}", "$C", "${C:?no}"):
        with pytest.raises(as_processes.ComposeError, match="C"):
            as_processes.interpolated(wrong, {})


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ("{command: a, network_mode: host}", "network_mode"),
        ("{command: a, depends_on: {b: {condition: service_healthy}}}", "service_healthy"),
        ("{command: a, depends_on: {absent: {condition: service_started}}}", "absent"),
    ],
)
def test_a_file_that_processes_cannot_follow_is_refused(service: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(f"services: {{a: {service}, b: {{command: b}}}}\n")
    with started(tmp_path) as process:
        assert process.wait(timeout=120) == 2
    assert message in (tmp_path / "output").read_text()


def test_addresses_and_volumes_become_those_of_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(
        """
        services:
          a:
            command: [-c, "listen tcp://0.0.0.0:5700 /runs/a /runs2 /bundle tcp://a:5701 b:1"]
            expose: ["5700", "5701"]
            volumes: [{type: volume, source: runs, target: /runs}, {type: bind, source: ./here, target: /bundle}]
          b: {command: [a:5700, "0.0.0.0:5700", xa:5700]}
        """
    )
    machine = as_processes.Machine(as_processes.read_compose(file, {}), file, tmp_path / "work")
    first, second = machine.ports["a"].values()
    assert second == first + 1
    words = machine.service("a").words[-1].split()
    runs = tmp_path / "work" / "volumes" / "runs"
    assert words == [
        "listen", f"tcp://127.0.0.1:{first}", f"{runs}/a", "/runs2",
        str(tmp_path / "here"), f"tcp://127.0.0.1:{second}", "b:1",
    ]  # fmt: skip
    assert runs.is_dir()
    assert machine.service("b").words == ["adc-edge", f"127.0.0.1:{first}", "0.0.0.0:5700", "xa:5700"]


@contextmanager
def started(place: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The script at work with the compose file of a folder; its output goes to the file `output` there.

    At the end of the block it ends if it has not, and ends its services.
    """
    command = [
        sys.executable,
        str(SCRIPT),
        "--file",
        str(place / "compose.yaml"),
        "--work",
        str(place / "work"),
        *words,
    ]
    with (place / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.terminate()  # SIGKILL would leave its services behind
        process.wait(timeout=120)


def outcomes(place: Path) -> dict[str, str]:
    """Return how each service ended, as the script said."""
    found = re.findall(
        r"^(\S+) +(not started|exit -?\d+), (\d+) restarts", (place / "output").read_text(), re.MULTILINE
    )
    return {name: f"{how}, {restarts}" for name, how, restarts in found}


def shell_services(place: Path, **scripts: tuple[str, str]) -> None:
    """Write a compose file of shell scripts, with more keys for each."""
    texts = [
        f"  {name}: {{entrypoint: [sh, -c], command: [{json.dumps(script)}], {more} "
        "volumes: [{type: volume, source: v, target: /v}]}"
        for name, (script, more) in scripts.items()
    ]
    (place / "compose.yaml").write_text("services:\n" + "\n".join(texts) + "\n")


def test_services_start_in_their_order_and_again_after_a_failure(tmp_path: Path) -> None:
    shell_services(
        tmp_path,
        last=("test -e /v/made && echo $$WORD", "depends_on: {first: {condition: service_completed_successfully}},"),
        first=("sleep 0.3; touch /v/made", ""),
        broken=("exit 3", ""),
        after_broken=("touch /v/never", "depends_on: {broken: {condition: service_completed_successfully}},"),
        again=("echo x >>/v/tries; test $$(wc -l </v/tries) = 3", "restart: on-failure:5,"),
        gives_up=("exit 4", "restart: on-failure:2,"),
    )
    text = (tmp_path / "compose.yaml").read_text().replace("last: {", "last: {environment: {WORD: told}, ")
    (tmp_path / "compose.yaml").write_text(text)
    with started(tmp_path) as process:
        assert process.wait(timeout=120) == 1
    assert outcomes(tmp_path) == {
        "last": "exit 0, 0",
        "first": "exit 0, 0",
        "broken": "exit 3, 0",
        "after_broken": "not started, 0",
        "again": "exit 0, 2",
        "gives_up": "exit 4, 2",
    }
    assert (tmp_path / "work" / "logs" / "last.log").read_text() == "told\n"
    assert not (tmp_path / "work" / "volumes" / "v" / "never").exists()


@pytest.mark.parametrize("how", ["SIGTERM", "timeout"])
def test_what_still_runs_is_asked_to_end_and_then_killed(how: str, tmp_path: Path) -> None:
    shell_services(
        tmp_path,
        polite=("trap 'echo bye; exit 0' TERM; touch /v/polite; while :; do sleep 0.1; done", "restart: always,"),
        deaf=("trap '' TERM; touch /v/deaf; while :; do sleep 0.1; done", "stop_grace_period: 1s,"),
    )
    with started(tmp_path, *(["--timeout", "3"] if how == "timeout" else [])) as process:
        if how == "SIGTERM":
            volume, deadline = tmp_path / "work" / "volumes" / "v", time.monotonic() + 60
            while not ((volume / "polite").exists() and (volume / "deaf").exists()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 1
    assert all(each.startswith("exit ") for each in outcomes(tmp_path).values())
    if how == "SIGTERM":
        assert outcomes(tmp_path)["deaf"] == "exit -9, 0"
        assert outcomes(tmp_path)["polite"] == "exit 0, 0"
        assert (tmp_path / "work" / "logs" / "polite.log").read_text() == "bye\n"


STEPS = 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_and_four_devices_run_to_their_end(bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text())
    given = {"ADC_EDGE_BUNDLE": str(bundle_dir), "ADC_EDGE_STEPS": str(STEPS)}
    with started(tmp_path, "--timeout", "800", **given) as process:
        ended = process.wait()
    logs = {path.stem: path.read_text() for path in sorted((tmp_path / "work" / "logs").iterdir())}
    assert ended == 0, (tmp_path / "output").read_text() + "".join(f"\n== {k}\n{v[-3000:]}" for k, v in logs.items())
    runs = tmp_path / "work" / "volumes" / "runs"
    for number in range(1, 5):
        assert json.loads((runs / f"device-{number}.json").read_text())["steps"] == STEPS
    lines = [json.loads(line) for line in (runs / "trainer" / "metrics.jsonl").read_text().splitlines()]
    learned = [(line["session"], line["step"]) for line in lines if line.get("kind") == "step"]
    assert len(learned) == len(set(learned)) == 4 * STEPS
    assert "rank 1: device" in logs["trainer"]  # both ranks had devices
