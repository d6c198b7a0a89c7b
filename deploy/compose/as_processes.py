"""Runs the services of a compose file as plain processes of this machine, without containers, until all have ended.

    python deploy/compose/as_processes.py --work runs/compose
    python deploy/compose/as_processes.py --work runs/compose --timeout 600 --file deploy/compose/compose.yaml

Commands, environment, order, restarts and the time to stop in are carried over (CARRIED). A volume becomes a folder of
--work, a bind mount its source. `SERVICE:PORT`, with a port that the service listens on (`expose`), becomes a free port
of 127.0.0.1; consecutive ports stay consecutive. What isolates and watches containers (LEFT_OUT) has no counterpart
here. Any other key is an error, so that nothing of a service is lost in silence. Variables come from the environment.

The output of each service is in --work/logs. The exit status is 0 if all services ended with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
ENTRYPOINT = ["adc-edge"]  # of the image, for services without one
CARRIED = {"entrypoint", "command", "environment", "depends_on", "restart", "stop_grace_period", "volumes", "expose"}
LEFT_OUT = {"image", "build", "init", "read_only", "tmpfs", "cap_drop", "security_opt", "logging", "healthcheck"}
STARTED, COMPLETED = "service_started", "service_completed_successfully"
LOOK_S = 0.1
KILL_GRACE_S = 10  # Docker's, for a service that names none


class ComposeError(Exception):
    """A compose file that cannot be run as processes, and why."""


class Service(NamedTuple):
    """One service as a process of this machine."""

    name: str
    words: list[str]
    environment: dict[str, str]
    after: dict[str, str]  # other services, and the condition that each must meet
    restarts: int  # most, after failures
    grace_s: float  # from SIGTERM to SIGKILL


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Return the text of a compose file with its variables: `${NAME}`, `${NAME:-DEFAULT}`, and `$$` for a dollar.

    Raises:
        ComposeError: a variable of another form, or one that is set nowhere.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        if found["name"] is None:
            raise ComposeError(f"{found[0]!r} is no variable that is known here; write $$ or ${{NAME:-DEFAULT}}")
        given = environment.get(found["name"]) or found["default"]
        if given is None:
            raise ComposeError(f"{found[0]} is not set and has no default; set it in the environment")
        return given

    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}|\S*)", value, "\n".join(lines))


def read_compose(file: Path, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the services of a compose file.

    Raises:
        ComposeError: a variable that cannot be filled in, or a key or a condition that processes cannot have.
    """
    services: dict[str, dict[str, Any]] = yaml.safe_load(interpolated(file.read_text(), environment))["services"]
    for name, service in services.items():
        if unknown := service.keys() - CARRIED - LEFT_OUT:
            known = ", ".join(sorted(CARRIED | LEFT_OUT))
            raise ComposeError(f"{name} has {', '.join(sorted(unknown))}; a process can have, or do without: {known}")
        for other, demand in service.get("depends_on", {}).items():
            if other not in services or demand["condition"] not in (STARTED, COMPLETED):
                raise ComposeError(f"{name} depends on {other}, {demand}; known are services, {STARTED}, {COMPLETED}")
    return services


def free_block(ports: Sequence[int]) -> dict[int, int]:
    """Return a free port of 127.0.0.1 for each of the ports, at the same distances from each other."""
    while True:
        base = random.SystemRandom().randrange(20_000, 32_000)  # below those that the system gives to connections
        chosen = {port: base + port - min(ports) for port in ports}
        with contextlib.ExitStack() as tried, contextlib.suppress(OSError):
            for port in chosen.values():
                tried.enter_context(socket.create_server(("127.0.0.1", port)))
            return chosen


class Machine:
    """This machine in the place of the containers: folders for their volumes, and ports of 127.0.0.1 for theirs."""

    def __init__(self, services: Mapping[str, Mapping[str, Any]], file: Path, work: Path) -> None:
        self._services, self._beside, self._work = services, file.resolve().parent, work.resolve()
        exposed = {name: [int(port) for port in each.get("expose", [])] for name, each in services.items()}
        self.ports = {name: free_block(ports) for name, ports in exposed.items() if ports}
        for folder in ("bin", "home", "logs", "volumes"):
            (self._work / folder).mkdir(parents=True, exist_ok=True)
        self._program("python3", "")
        self._program("adc-edge", " -m adc_edge")

    def service(self, name: str) -> Service:
        """Return a service of the file as a process here."""
        given = self._services[name]
        entry, command = (_words(given.get(key)) for key in ("entrypoint", "command"))
        policy, _, most = given.get("restart", "no").partition(":")
        return Service(
            name,
            [self.translated(name, word) for word in [*(entry or ENTRYPOINT), *command]],
            self._environment() | {k: self.translated(name, str(v)) for k, v in given.get("environment", {}).items()},
            {other: demand["condition"] for other, demand in given.get("depends_on", {}).items()},
            int(most or sys.maxsize) if policy in ("on-failure", "unless-stopped", "always") else 0,
            float(str(given.get("stop_grace_period", KILL_GRACE_S)).removesuffix("s")),
        )

    def translated(self, name: str, text: str) -> str:
        """Return a text of this service with this machine's folders and addresses."""
        for mount in self._services[name].get("volumes", []):
            text = re.sub(rf"(?<![\w./-]){re.escape(mount['target'])}(?![\w.-])", str(self._folder(mount)), text)
        for other, block in self.ports.items():
            host = rf"(?:{other}|0\.0\.0\.0)" if other == name else other
            for port, chosen in block.items():
                text = re.sub(rf"(?<![\w.-]){host}:{port}(?!\d)", f"127.0.0.1:{chosen}", text)
        return text

    def log(self, name: str) -> Path:
        """Return the file of a service's output."""
        return self._work / "logs" / f"{name}.log"

    def _folder(self, mount: Mapping[str, str]) -> Path:
        if mount["type"] == "bind":
            return (self._beside / mount["source"]).resolve()
        folder = self._work / "volumes" / mount["source"]
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _program(self, name: str, words: str) -> None:
        """Make a program of the image available: this Python, with the source beside this script."""
        script = self._work / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n')
        script.chmod(0o755)

    def _environment(self) -> dict[str, str]:
        """Return what the image has in its environment, and no more of this machine's than its programs."""
        path = f"{self._work / 'bin'}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self._work / "home"), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def _words(given: str | list[str] | None) -> list[str]:
    return shlex.split(given) if isinstance(given, str) else given or []


class Running:
    """A service from its first start to its end."""

    def __init__(self, service: Service, log: Path) -> None:
        self.service, self.log = service, log
        self.exit: int | None = None
        self.started = self.stopping = False
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, in a group of its own."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.service.words,
                env=self.service.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                executable=_program_of(self.service),
            )
        self.started = True

    def look(self) -> None:
        """Take note of an end; start again after a failure, as often as the file allows."""
        if self._process is None or self.exit is not None or (code := self._process.poll()) is None:
            return
        if code == 0 or self.stopping or self.restarts >= self.service.restarts:
            self.exit = code
            return
        self.restarts += 1
        self.start()

    def stop(self) -> None:
        """Ask the process to end, as `docker stop` does."""
        self.stopping = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End whatever is left of the process and its children."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self.look()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self._process.pid, number)


def _program_of(service: Service) -> str:
    """Return the path of a service's program: its own PATH counts, not this process's."""
    for folder in service.environment["PATH"].split(":"):
        if os.access(path := Path(folder) / service.words[0], os.X_OK):
            return str(path)
    raise ComposeError(f"{service.name}: no program {service.words[0]!r} on this machine")


def run(services: Sequence[Service], machine: Machine, timeout_s: float) -> dict[str, Running]:
    """Run services in their order until all have ended, the time is over, or Ctrl-C or SIGTERM comes."""
    running = {each.name: Running(each, machine.log(each.name)) for each in services}
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline and any(_has_work(each, running) for each in running.values()):
            for each in running.values():
                each.look()
                if not each.started and all(_is_met(running[o], what) for o, what in each.service.after.items()):
                    print(f"start {each.service.name}", flush=True)
                    each.start()
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        _end(running)
    return running


def _is_met(other: Running, condition: str) -> bool:
    return other.started if condition == STARTED else other.exit == 0


def _has_work(each: Running, running: Mapping[str, Running]) -> bool:
    """Return whether a service runs, or may start yet."""
    if each.started:
        return each.exit is None
    others = ((running[name], condition) for name, condition in each.service.after.items())
    return all(_is_met(other, condition) or _has_work(other, running) for other, condition in others)


def _end(running: Mapping[str, Running]) -> None:
    """End what still runs: SIGTERM, and SIGKILL once a service's own time to stop in is over."""
    left = [each for each in running.values() if each.started and each.exit is None]
    asked = time.monotonic()
    for each in left:
        each.stop()
    while any(each.exit is None for each in left):
        time.sleep(LOOK_S)
        for each in left:
            each.look()
            if each.exit is None and time.monotonic() > asked + each.service.grace_s:
                each.kill()
    for each in running.values():
        each.kill()  # children that are left


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("compose.yaml"))
    parser.add_argument("--work", type=Path, required=True, help="folder for volumes, programs and logs")
    parser.add_argument("--timeout", type=float, default=float("inf"), help="seconds until all are stopped")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        file_services = read_compose(given.file, os.environ)
        machine = Machine(file_services, given.file, given.work)
        ended = run([machine.service(name) for name in file_services], machine, given.timeout)
    except ComposeError as error:
        print(f"{given.file}: {error}", file=sys.stderr)
        return 2
    for name, each in ended.items():
        how = "not started" if each.exit is None else f"exit {each.exit}"
        print(f"{name:12} {how}, {each.restarts} restarts, {each.log}")
    return 0 if all(each.exit == 0 for each in ended.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
