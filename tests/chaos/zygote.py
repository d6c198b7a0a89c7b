"""Starts adc-edge commands within milliseconds: a process that has imported everything and forks.

Each child is a process of its own, to be killed, stopped and looked at like any other; it only skips the seconds of
importing torch, so that kills fall into the work and not into the imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

DIES = "ADC_EDGE_DIES"  # in a child's environment: the instant at which it kills itself
_CLONE_NEWNET = 0x40000000


class Child:
    """One command; ``code`` is its exit code once it has ended, negative for a signal."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self._zygote, self.pid, self.log = zygote, pid, log

    @property
    def code(self) -> int | None:
        self._zygote.listen(0)
        return self._zygote.codes.get(self.pid)

    def signal(self, number: int) -> bool:
        """Send a signal; False if the process had ended."""
        with contextlib.suppress(ProcessLookupError):  # it has ended, and the forking process is about to say so
            if self.code is None:
                os.kill(self.pid, number)
                return True
        return False

    def wait(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while (code := self.code) is None:
            assert time.monotonic() < deadline, f"it did not end within {timeout_s} s:\n{self.output()[-3000:]}"
            self._zygote.listen(0.05)
        return code

    def output(self) -> str:
        return self.log.read_text()


class Zygote:
    """The process that forks; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.codes: dict[int, int] = {}
        self._answers: list[int] = []
        self._buffer = b""

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it kills its children and ends
        self._process.wait(120)
        self._process.stdout.close()

    def start(
        self, *arguments: str | Path, log: Path, environment: dict[str, str] | None = None, namespace: str = ""
    ) -> Child:
        """Run ``adc-edge ARGUMENTS``, in a network namespace if one is named; what it prints is appended to ``log``."""
        order: dict[str, Any] = {"arguments": [str(a) for a in arguments], "log": str(log), "namespace": namespace}
        order["environment"] = environment or {}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        while not self._answers:
            self.listen(1.0)
        return Child(self, self._answers.pop(), log)

    def listen(self, timeout_s: float) -> None:
        """Read the forking process's reports."""
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], timeout_s)[0]:
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, "the forking process has died"
            self._buffer += data
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in map(json.loads, lines):
                if "started" in line:
                    self._answers.append(line["started"])
                else:
                    self.codes[line["ended"]] = line["code"]
            timeout_s = 0


def _serve() -> None:
    """In the forking process: orders on stdin, events on stdout."""
    os.environ["OMP_WAIT_POLICY"] = "passive"
    import adc_edge.cloud_trainer.runner
    import adc_edge.edge_runtime.runner
    import adc_edge.edge_runtime.trunk.trainer
    import adc_edge.security.command  # noqa: F401
    from adc_edge.data import sources as data

    data.load_dataset("digits")
    children: set[int] = set()
    buffer = b""
    while True:
        if select.select([0], [], [], 0.02)[0]:
            data_in = os.read(0, 65536)
            if not data_in:
                break
            buffer += data_in
            *lines, buffer = buffer.split(b"\n")
            for order in map(json.loads, lines):
                pid = os.fork()
                if pid == 0:
                    _run(order)
                children.add(pid)
                _tell(started=pid)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                children.discard(found[0])
                _tell(ended=found[0], code=os.waitstatus_to_exitcode(found[1]))
    for pid in children:
        os.kill(pid, 9)
    os._exit(0)  # at once: the interpreter's own end takes seconds with torch, and minutes on a busy machine


def _run(order: dict[str, Any]) -> None:
    from adc_edge.cli import main

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    if order["namespace"]:
        _enter(order["namespace"])
    if where := order["environment"].get(DIES):
        _die_at(where)
    code = 1
    try:
        main(order["arguments"], prog_name="adc-edge")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _enter(namespace: str) -> None:
    """Move this process into a network namespace; it has no other thread and no socket yet."""
    with open(f"/run/netns/{namespace}") as file:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns needs Python 3.12
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"namespace {namespace} cannot be entered")


def _die_at(where: str) -> None:
    """Kill this process at ``MODULE:CLASS.METHOD:before|after:N``: around the work of that method's N-th call."""
    module, name, when, number = where.split(":")
    owner, method = getattr(importlib.import_module(module), name.split(".")[0]), name.split(".")[1]
    work, calls = getattr(owner, method), itertools.count(1)

    def dying(*arguments: Any, **more: Any) -> Any:
        last = next(calls) == int(number)
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = work(*arguments, **more)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, dying)


def _tell(**event: int) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    _serve()
