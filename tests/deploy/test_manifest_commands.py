"""The commands in the Kubernetes manifests, run here as the kubelet would run them, with other paths and addresses."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from adc_edge.errors import SettingError
from adc_edge.security.keystore import Devices, allow, load_pair, make_keys, pin
from tests.deploy.commands import check_ranks, recorded
from tests.deploy.manifests import built, only, pod_of, trainer_of
from tests.deploy.pods import Pod
from tests.ports import free_ports

SETTINGS = {"NODE_IP": "192.0.2.7", "POD_IP": "10.1.2.3", "POD_INDEX": "1"}


def config_map(place: Path, files: dict[str, bytes], version: int) -> None:
    """Lay files as the kubelet lays those of a ConfigMap: links that all change at once."""
    content = place / f"..{version}"
    content.mkdir(parents=True)
    for name, data in files.items():
        (content / name).write_bytes(data)
        if not (place / name).is_symlink():
            (place / name).symlink_to(Path("..data") / name)
    (place / "..new").symlink_to(content.name)
    (place / "..new").rename(place / "..data")
    for link in place.glob("*.key"):
        if not link.exists():
            link.unlink()


def test_the_prepared_keys_are_those_of_the_secret_and_closed_to_others(tmp_path: Path) -> None:
    pair, device = make_keys(tmp_path / "made"), make_keys(tmp_path / "device")
    for folder in ("secret", "keys", "shared/bundle"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("secret.key", "public.key"):
        shutil.copy(tmp_path / "made" / name, tmp_path / "secret")
    (tmp_path / "secret" / "secret.key").chmod(0o440)  # as the kubelet does for a pod with fsGroup
    with pytest.raises(SettingError, match="open to others"):
        load_pair(tmp_path / "secret")
    (tmp_path / "shared" / "bundle" / "manifest.json").touch()
    (prepare,) = pod_of(only(built("cpu"), "StatefulSet"))["initContainers"]
    (script,) = prepare["args"]
    script = re.sub(r"(?<![\w/])/(secret|keys|shared)(?=/)", rf"{tmp_path}/\1", script)
    subprocess.run([*prepare["command"], script], check=True, timeout=60)
    assert load_pair(tmp_path / "keys") == pair

    place = tmp_path / "keys" / "devices"
    place.rmdir()  # the ConfigMap is mounted there
    allow(tmp_path / "made", "orin-1", device.public)
    config_map(place, {"orin-1.key": (tmp_path / "made" / "devices" / "orin-1.key").read_bytes()}, 1)
    devices = Devices(tmp_path / "keys")
    assert devices.names() == ["orin-1"]
    config_map(place, {}, 2)
    assert devices.refresh() == {device.public}  # revoked while the trainer runs
    assert devices.refusal(device.public) == "unknown"


def test_the_bundle_is_waited_for(tmp_path: Path) -> None:
    (prepare,) = pod_of(only(built("cpu"), "StatefulSet"))["initContainers"]
    (script,) = prepare["args"]
    script = script[script.index("until") :].replace("/shared/", f"{tmp_path}/").replace("sleep 5", "sleep 0.1")
    with subprocess.Popen([*prepare["command"], script], stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert "waiting for" in waiting.stdout.readline()
        assert waiting.poll() is None
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "manifest.json").touch()
        assert waiting.wait(timeout=60) == 0


def test_a_pod_is_ready_while_its_first_rank_listens() -> None:
    probe = trainer_of(built("cpu"))["readinessProbe"]["exec"]["command"]
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc/net/tcp")
    for host, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
        try:
            server = socket.create_server((host, 0), family=family)
        except OSError:
            continue  # no IPv6
        with server:
            here = [word.replace("1644", f"{server.getsockname()[1]:04X}") for word in probe]
            assert subprocess.run(here, check=False).returncode == 0
        assert subprocess.run(here, check=False).returncode != 0


@pytest.mark.parametrize(("overlay", "ranks", "device"), [("cpu", 1, "cpu"), ("gpu", 2, "cuda")])
def test_torchrun_and_adc_edge_take_the_command(overlay: str, ranks: int, device: str, tmp_path: Path) -> None:
    manifests = built(overlay)
    container = trainer_of(manifests)
    assert container["command"] == ["sh", "-c"]
    environment = {**SETTINGS, **only(manifests, "ConfigMap")["data"]}
    (words,) = recorded(container["args"][0], environment, tmp_path, "python3")
    assert words[:3] == ["python3", "-m", "torch.distributed.run"]
    agent, trainer = check_ranks(words[3:])
    assert agent["nnodes"] == "1:4"
    assert agent["nproc_per_node"] == str(ranks)
    assert agent["rdzv_endpoint"] == "adc-edge-trainer-0.adc-edge-ranks:29400"
    assert str(agent["rdzv_conf"]).split(",")[0] == "is_host=false"
    assert agent["local_addr"] == "10.1.2.3"
    assert trainer["advertise"] == "tcp://192.0.2.7:30510"
    assert trainer["device"] == device
    assert not trainer["insecure"]


def test_the_first_pod_hosts_the_rendezvous_and_the_cluster_may_have_a_name(tmp_path: Path) -> None:
    manifests = built("cpu")
    environment = {**SETTINGS, **only(manifests, "ConfigMap")["data"], "POD_INDEX": "0", "RANK_HOST": "edge.example"}
    (words,) = recorded(trainer_of(manifests)["args"][0], environment, tmp_path, "python3")
    agent, trainer = check_ranks(words[3:])
    assert str(agent["rdzv_conf"]).split(",")[0] == "is_host=true"
    assert trainer["advertise"] == "tcp://edge.example:30500"


STEPS = 1200  # the devices are at work while a pod goes and comes back


def waited(condition: Callable[[], bool], pods: list[Pod], seconds: float = 300) -> None:
    """Wait until something holds; if it does not, tell what the pods said."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "\n".join(pod.log.read_text()[-4000:] for pod in pods)
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pods_are_one_world_from_which_pods_go_and_to_which_they_come_back(bundle_dir: Path, tmp_path: Path) -> None:
    trainer = make_keys(tmp_path / "keys")
    shutil.copytree(bundle_dir, tmp_path / "shared" / "bundle")
    door = free_ports(3)
    second, rendezvous = door + 1, door + 2
    pods = [Pod(0, tmp_path, door, rendezvous), Pod(1, tmp_path, second, rendezvous)]
    metrics = tmp_path / "shared" / "run" / "metrics.jsonl"

    def learned() -> list[tuple[str, int]]:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        steps = [json.loads(line) for line in lines]
        return [(line["device"], line["step"]) for line in steps if line["kind"] == "step"]

    def said(words: str) -> int:
        return sum(pod.log.read_text().count(words) for pod in pods)

    def device(number: int) -> subprocess.Popen[bytes]:
        keys = tmp_path / f"device-{number}"
        allow(tmp_path / "keys", f"device-{number}", make_keys(keys).public)
        pin(keys, trainer.public)
        words = ["serve", "--bundle", tmp_path / "shared" / "bundle", "--trainer", f"tcp://127.0.0.1:{door}"]
        words += ["--keys", keys, "--steps", STEPS, "--wait", "inf", "--eval-images", 16, "--threads", 1]
        words += ["--run", tmp_path / f"run-{number}", "--report", tmp_path / f"report-{number}.json"]
        with (tmp_path / f"device-{number}.log").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "adc_edge", *map(str, words)], stdout=output, stderr=subprocess.STDOUT
            )

    with pods[0], pods[1]:
        running = [device(1), device(2)]
        try:
            waited(lambda: {device for device, _ in learned()} == {"device-1", "device-2"}, pods)
            waited(lambda: said("rank 1: device") >= 1, pods)
            asked_s, worlds = time.monotonic(), [said("ranks    1, "), said("ranks    2, ")]
            pods[1].delete()  # a node is drained
            before = len(learned())
            waited(lambda: said("ranks    1, ") > worlds[0] and len(learned()) > before + 10, pods)  # the other, alone
            print(f"a pod less: training after {time.monotonic() - asked_s:.0f} s")
            pods[1].create()
            asked_s = time.monotonic()
            waited(lambda: said("ranks    2, ") > worlds[1], pods)
            print(f"a pod more: the new world after {time.monotonic() - asked_s:.0f} s")
            for process in running:
                assert process.wait(timeout=600) == 0
        finally:
            for process in running:
                process.kill()
                process.wait()
    assert len(learned()) == len(set(learned())) == 2 * STEPS
    for number in (1, 2):
        assert json.loads((tmp_path / f"report-{number}.json").read_text())["steps"] == STEPS
    assert "adc_edge_head_step" in scraped(tmp_path / "shared")


def scraped(shared: Path) -> str:
    """Return what Prometheus would get from the pod that watches the run."""
    (container,) = pod_of(only(built("cpu"), "Deployment"))["containers"]
    port = free_ports(1)
    here = {"/shared/run": str(shared / "run"), "9477": str(port), "0.0.0.0": "127.0.0.1"}
    words = [sys.executable, "-m", "adc_edge", *(here.get(word, word) for word in container["args"])]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stderr is not None
            assert str(port) in watching.stderr.readline()  # it listens
            path = container["readinessProbe"]["httpGet"]["path"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                text: str = answer.read().decode()
                return text
        finally:
            watching.terminate()
