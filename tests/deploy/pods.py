"""Pods of the Kubernetes manifests as processes of this machine: their commands, with other paths, names and ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from tests.deploy.manifests import DEPLOY, built, only, trainer_of


class Pod:
    """The trainer's container of one pod. It is started again whenever it ends, as the kubelet does, until deleted.

    Args:
        index: number of the pod in its StatefulSet.
        place: folder that has `shared/` and `keys/`; output and temporary files go there too.
        port: port of this machine instead of the pod's 5700.
        rendezvous: port of this machine instead of pod 0's 29400.
    """

    def __init__(self, index: int, place: Path, port: int, rendezvous: int) -> None:
        manifests = built("cpu")
        (command,) = trainer_of(manifests)["args"]
        advertised = "tcp://${RANK_HOST:-$NODE_IP}:305${POD_INDEX}0"
        changes = {advertised: f"tcp://127.0.0.1:{port}", "tcp://0.0.0.0:5700": f"tcp://127.0.0.1:{port}"}
        changes |= {"/shared/": f"{place}/shared/", "--keys /keys": f"--keys {place}/keys"}
        for here, there in changes.items():
            assert here in command
            command = command.replace(here, there)
        self.log = place / f"pod-{index}.log"
        self._command = command
        home = place / f"tmp-{index}"
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (home / "bin" / "python3").chmod(0o755)
        self._environment = {**only(manifests, "ConfigMap")["data"]}
        self._environment |= {each["name"]: each["value"] for each in trainer_of(manifests)["env"] if "value" in each}
        self._environment |= {"POD_INDEX": str(index), "POD_IP": "127.0.0.1", "NODE_IP": "127.0.0.1"}
        self._environment |= {"RENDEZVOUS": f"127.0.0.1:{rendezvous}", "THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(DEPLOY.parent)}
        self._environment["PATH"] = f"{home / 'bin'}:{os.environ['PATH']}"
        self._deleted = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Pod:
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    def create(self) -> None:
        """Start the pod, for the first time or after `delete`."""
        self._deleted.clear()
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()

    def delete(self) -> None:
        """End the pod as Kubernetes does: SIGTERM, and SIGKILL after the time that the manifest gives."""
        self._deleted.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        if self._thread is not None:
            self._thread.join(timeout=60)
            if self._thread.is_alive():
                assert self._process is not None
                self._process.kill()
                self._thread.join()

    def _keep_running(self) -> None:
        with self.log.open("ab") as output:
            while not self._deleted.is_set():
                self._process = subprocess.Popen(
                    ["sh", "-c", self._command], env=self._environment, stdout=output, stderr=subprocess.STDOUT
                )
                self._process.wait()
                self._deleted.wait(1)  # the kubelet's pauses grow from 10 s on
