"""Kubernetes manifests: built by kubectl, valid by the published schemas, and consistent in what a schema cannot know.

Kubernetes itself does not run here. The commands of the containers do: `test_manifest_commands.py`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]

from adc_edge.security.keystore import make_keys
from tests.deploy.manifests import DEPLOY, built, kubectl, only, pod_of, trainer_of

OVERLAYS = ("cpu", "gpu")
OLDEST, NEWEST = "1.28", "1.37"  # pods have the label pod-index from 1.28 on
REPLACED = re.compile(r"\$\{?(\w+)")

Manifest = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(request.param)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_each_resource_is_valid_by_the_published_schema(manifests: list[Manifest], version: str) -> None:
    assert len(manifests) == 15
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_and_a_wrong_type_are_not_valid() -> None:
    for field, value in (("servicename", "adc-edge-ranks"), ("replicas", "two")):
        stateful_set = only(built("cpu"), "StatefulSet")
        stateful_set["spec"][field] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(stateful_set, OLDEST, strict=True)


def test_the_base_is_named_by_both_overlays_and_every_file_is_used() -> None:
    for folder in sorted((DEPLOY / "kubernetes").rglob("kustomization.yaml")):
        listed = yaml.safe_load(folder.read_text())
        files = {path.name for path in folder.parent.glob("*.yaml")} - {"kustomization.yaml"}
        named = {*listed["resources"], *(patch.get("path") for patch in listed.get("patches", []))}
        assert files == {name for name in named if name and name.endswith(".yaml")}
        if folder.parent.name in OVERLAYS:
            assert listed["resources"] == ["../../base"]


def strings(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (str(key), *strings(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    else:
        yield str(value)


def test_there_is_no_secret_and_no_key(manifests: list[Manifest]) -> None:
    assert "Secret" not in {manifest["kind"] for manifest in manifests}  # `kubectl apply` would replace the real one
    for text in strings(manifests):
        assert not re.search(r"^(public|secret) = ", text, re.MULTILINE)
    base = (DEPLOY / "kubernetes" / "base" / "kustomization.yaml").read_text()
    volumes = {volume["name"]: volume for volume in pod_of(only(manifests, "StatefulSet"))["volumes"]}
    assert f"create secret generic {volumes['secret']['secret']['secretName']} " in base
    assert f"create configmap {volumes['devices']['configMap']['name']} " in base


def test_everything_lies_in_the_namespace_which_demands_restricted_pods(manifests: list[Manifest]) -> None:
    namespace = only(manifests, "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [manifest for manifest in manifests if manifest["kind"] != "Namespace"]
    assert {manifest["metadata"]["namespace"] for manifest in others} == {namespace["name"]}


@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment"])
def test_a_pod_has_no_more_rights_than_it_needs(manifests: list[Manifest], kind: str) -> None:
    pod = pod_of(only(manifests, kind))
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000  # of Dockerfile.trainer
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for container in [*pod["initContainers"], *pod["containers"]]:
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert not [port for port in container.get("ports", []) if "hostPort" in port]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_every_selector_meets_the_pods_that_it_means(manifests: list[Manifest]) -> None:
    stateful_set, deployment = only(manifests, "StatefulSet"), only(manifests, "Deployment")
    labels = {each["kind"]: each["spec"]["template"]["metadata"]["labels"] for each in (stateful_set, deployment)}
    for each in (stateful_set, deployment):
        assert selects(each["spec"]["selector"]["matchLabels"], labels[each["kind"]])
    (budget,) = [manifest for manifest in manifests if manifest["kind"] == "PodDisruptionBudget"]
    assert selects(budget["spec"]["selector"]["matchLabels"], labels["StatefulSet"])
    assert budget["spec"]["maxUnavailable"] == 1
    for service in services(manifests).values():
        selector = dict(service["selector"])
        index = selector.pop("apps.kubernetes.io/pod-index", None)
        met = [kind for kind, given in labels.items() if selects(selector, given)]
        assert met == (["Deployment"] if service["ports"][0]["name"] == "metrics" else ["StatefulSet"])
        assert index is None or int(index) < most_pods(manifests)
    for policy in (manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"):
        assert sum(selects(policy["spec"]["podSelector"]["matchLabels"], given) for given in labels.values()) == 1


def services(manifests: list[Manifest]) -> dict[str, Any]:
    return {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Service"}


def settings(manifests: list[Manifest]) -> dict[str, str]:
    data: dict[str, str] = only(manifests, "ConfigMap")["data"]
    return data


def most_pods(manifests: list[Manifest]) -> int:
    return int(settings(manifests)["NODES"].rpartition(":")[2])


def test_ranks_find_each_other_by_the_name_of_the_first_pod_before_they_are_ready(manifests: list[Manifest]) -> None:
    stateful_set = only(manifests, "StatefulSet")
    name, headless = stateful_set["metadata"]["name"], stateful_set["spec"]["serviceName"]
    host, _, port = settings(manifests)["RENDEZVOUS"].partition(":")
    assert host == f"{name}-0.{headless}"
    assert services(manifests)[headless]["clusterIP"] == "None"
    assert services(manifests)[headless]["publishNotReadyAddresses"] is True
    assert [each["port"] for each in services(manifests)[headless]["ports"]] == [int(port)]
    assert stateful_set["spec"]["podManagementPolicy"] == "Parallel"
    assert stateful_set["spec"]["replicas"] <= most_pods(manifests)
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in trainer_of(manifests)["env"]


def test_every_variable_of_the_command_is_one_that_the_container_has(manifests: list[Manifest]) -> None:
    container = trainer_of(manifests)
    (command,) = container["args"]
    (source,) = container["envFrom"]
    assert source["configMapRef"]["name"] == only(manifests, "ConfigMap")["metadata"]["name"]  # with its hash
    known = {*settings(manifests), *(each["name"] for each in container["env"]), "host"}
    assert set(REPLACED.findall(command)) <= known
    assert settings(manifests).keys() <= {*REPLACED.findall(command)}


def test_what_a_rank_tells_devices_is_the_node_port_of_its_own_service(manifests: list[Manifest]) -> None:
    (command,) = trainer_of(manifests)["args"]
    (advertised,) = re.findall(r'--advertise "([^"]+)"', command)
    ranks = int(settings(manifests)["RANKS_PER_POD"])
    for index in range(most_pods(manifests)):
        service = services(manifests)[f"adc-edge-rank-{index}"]
        assert service["selector"]["apps.kubernetes.io/pod-index"] == str(index)
        first = advertised.replace("${RANK_HOST:-$NODE_IP}", "10.0.0.1").replace("${POD_INDEX}", str(index))
        base = int(first.removeprefix("tcp://10.0.0.1:"))
        assert [each["nodePort"] for each in service["ports"]] == [base + rank for rank in range(ranks)]
        assert [each["targetPort"] for each in service["ports"]] == [5700 + rank for rank in range(ranks)]
        assert service["type"] == "NodePort"
    taken = [port["nodePort"] for each in services(manifests).values() for port in each["ports"] if "nodePort" in port]
    assert len(set(taken)) == len(taken)
    assert all(30_000 <= port <= 32_767 for port in taken)


def test_the_door_leads_to_a_rank_that_listens(manifests: list[Manifest]) -> None:
    container = trainer_of(manifests)
    (bind,) = re.findall(r"--bind tcp://0\.0\.0\.0:(\d+)", container["args"][0])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (door,) = services(manifests)["adc-edge"]["ports"]
    assert ports[door["targetPort"]] == int(bind)
    assert f":{int(bind):04X} " in " ".join(container["readinessProbe"]["exec"]["command"])
    assert "livenessProbe" not in container  # a rank that waits for the others must not be killed
    assert pod_of(only(manifests, "StatefulSet"))["terminationGracePeriodSeconds"] > 30  # torchrun's own


def test_only_ranks_reach_the_ports_of_torch_distributed(manifests: list[Manifest]) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"}
    policy = policies["adc-edge-trainer"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    among, devices = policy["ingress"]
    assert among == {"from": [{"podSelector": policy["podSelector"]}]}
    (open_to_all,) = devices["ports"]
    last = 5700 + int(settings(manifests)["RANKS_PER_POD"]) - 1
    assert open_to_all["port"] == 5700
    assert last <= open_to_all["endPort"] < 29400  # never the rendezvous
    to_ranks, to_names = policy["egress"]
    assert to_ranks == {"to": [{"podSelector": policy["podSelector"]}]}
    assert {port["port"] for port in to_names["ports"]} == {53}
    assert all(source.get("from") for source in policies["adc-edge-watch"]["ingress"])


def test_run_and_bundle_are_shared_by_all_and_watched_without_a_right_to_write(manifests: list[Manifest]) -> None:
    claim = only(manifests, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for kind, may_write in (("StatefulSet", True), ("Deployment", False)):
        pod = pod_of(only(manifests, kind))
        (volume,) = [each for each in pod["volumes"] if "persistentVolumeClaim" in each]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume["name"]]
        assert mount.get("readOnly", False) is not may_write


def test_metrics_are_found_by_prometheus(manifests: list[Manifest]) -> None:
    deployment = only(manifests, "Deployment")
    (container,) = pod_of(deployment)["containers"]
    (port,) = container["ports"]
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    words = container["args"]
    assert words[words.index("--metrics-port") + 1] == str(port["containerPort"])
    (command,) = trainer_of(manifests)["args"]
    assert f"--run {words[words.index('--run') + 1]} " in command


def test_threads_are_as_many_as_the_processors_that_a_pod_asks_for(manifests: list[Manifest]) -> None:
    given = settings(manifests)
    asked = trainer_of(manifests)["resources"]
    assert int(given["THREADS"]) * int(given["RANKS_PER_POD"]) == int(asked["requests"]["cpu"])
    if given["HEAD_DEVICE"] == "cuda":
        assert asked["limits"]["nvidia.com/gpu"] == given["RANKS_PER_POD"]


def test_the_commands_for_keys_make_what_the_pods_mount(tmp_path: Path) -> None:
    head = (DEPLOY / "kubernetes" / "base" / "kustomization.yaml").read_text().partition("apiVersion")[0]
    typed = re.sub(r"\\\n#\s*", "", head)
    lines = re.findall(r"^#   (adc-edge .*|kubectl .*)$", typed, re.MULTILINE)
    make_keys(tmp_path / "device")
    shutil.copy(tmp_path / "device" / "public.key", tmp_path / "orin-1-public.key")
    made: dict[str, Manifest] = {}
    for line in lines:
        words = shlex.split(line.partition(" --dry-run")[0])
        if words[0] == "adc-edge":
            subprocess.run([sys.executable, "-m", "adc_edge", *words[1:]], cwd=tmp_path, check=True, timeout=120)
        else:
            offline = [kubectl(), *words[1:], "--dry-run=client", "-o", "yaml"]
            done = subprocess.run(offline, cwd=tmp_path, capture_output=True, text=True, check=True)
            resource = yaml.safe_load(done.stdout)
            kubernetes_validate.validate(resource, OLDEST, strict=True)
            made[resource["metadata"]["name"]] = resource
    volumes = {volume["name"]: volume for volume in pod_of(only(built("cpu"), "StatefulSet"))["volumes"]}
    assert made[volumes["secret"]["secret"]["secretName"]]["data"].keys() == {"secret.key", "public.key"}
    assert made[volumes["devices"]["configMap"]["name"]]["data"].keys() == {"orin-1.key"}
    assert {each["metadata"].get("namespace", "adc-edge") for each in made.values()} == {"adc-edge"}
