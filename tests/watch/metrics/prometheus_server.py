"""The real Prometheus server, with the alert rules and an hour's minutes as seconds."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

GRAFANA = Path(__file__).parents[3] / "deploy" / "grafana"


def program(name: str) -> str:
    """The path of a program of Debian's package prometheus; a machine without it fails."""
    found = shutil.which(name)
    assert found, f"{name} is not installed, and without it nothing is tested here: apt-get install prometheus"
    return found


def seconds_for_minutes(text: str) -> str:
    """Return rules or an expression 60 times as fast."""
    return re.sub(r"\b(\d+)m\b", r"\1s", text)


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"

    def ask(self, what: str, **parameters: str) -> Any:
        with urlopen(f"{self._url}{what}?{urlencode(parameters)}", timeout=20) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.ask("query", query=expression)["result"])

    def firing(self) -> set[tuple[str, str]]:
        """Names of the alerts that fire, with what each is about: the label ``run``, or the target."""
        alerts = [alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]
        return {(a["labels"]["alertname"], a["labels"].get("run", a["labels"]["instance"])) for a in alerts}

    def wait(self, until: Callable[[], object], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, f"{what} did not come: firing {sorted(self.firing())}"
            time.sleep(0.5)


@contextlib.contextmanager
def prometheus(directory: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """Run a server in ``directory`` that scrapes ``targets`` each second."""
    directory.mkdir()
    rules = seconds_for_minutes((GRAFANA / "alerts.yml").read_text())
    (directory / "alerts.yml").write_text(rules)
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [{"job_name": "adc-edge", "static_configs": [{"targets": list(targets)}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program("prometheus"), f"--config.file={directory / 'prometheus.yml'}", "--log.level=warn"]
    command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
                break
            assert server.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.1)
        yield Prometheus(port)
    finally:
        server.kill()
        server.wait()
