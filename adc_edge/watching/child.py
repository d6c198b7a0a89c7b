"""The beginning of a watching process: a low priority, and an end soon after that of the process that started it.

Started as a script, with a module's name and that module's arguments. Standard input is a pipe that nothing is written
to. The kernel closes it when the other process ends, however that ends. Then this process sends itself SIGHUP. It
ignores SIGTERM and Ctrl-C: `systemctl stop` sends SIGTERM to all processes of a service, and the run still writes then.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

_NICENESS = 19  # beside busy cores it gets a sixtieth of one
_END_S = 8.0  # to end by itself, with what it still has to send


def main() -> None:
    """Run the module that the command line names."""
    os.nice(_NICENESS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)  # unlike SIG_IGN, a tracker's own processes do not inherit this
    root = str(Path(__file__).resolve().parents[2])
    sys.path[:1] = []  # this file's own directory, whose modules have common names
    if root not in sys.path:
        sys.path.append(root)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _ignore(*_: object) -> None:
    pass


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(_END_S)
    os._exit(1)


if __name__ == "__main__":
    main()
