"""The turn at a run directory: the ranks that were started last are to use it, and no earlier ones.

Where a network breaks between two hosts, torchrun may start all ranks anew on one of them while those on the other
still wait for an answer. Such a rank has sockets that devices reach. It must serve no session any more, nor write to
its log, which a rank of the newer world has taken over.
"""

from __future__ import annotations

import secrets
import socket
import time
from pathlib import Path

from adc_edge.errors import RanksLost, SettingError
from adc_edge.storage.run_dir import RunDir

TURN = "world"  # file in the run directory
_LOOK_S = 0.1
_APPEARS_S = 15.0  # within which another host sees a new file: NFS keeps for seconds that there was none


class RunTurn:
    """The turn of this world's ranks.

    Args:
        file: in the run directory.
        token: which the ranks that were started last have written there.
    """

    def __init__(self, file: Path, token: bytes) -> None:
        self._file, self._token = file, token
        self._looked_s = 0.0

    def find(self) -> None:
        """Return once this host sees the token.

        Raises:
            SettingError: it does not appear: the hosts do not share the directory.
        """
        until_s = time.monotonic() + _APPEARS_S
        while (found := self._seen()) != self._token:
            if time.monotonic() > until_s:
                raise SettingError(
                    f"{self._file.parent} on {socket.gethostname()}: "
                    + ("not what rank 0 has written there" if found else "no file of rank 0"),
                    "one run directory that all ranks see",
                    "use storage that all hosts share for --run, under the same path",
                )
            time.sleep(_LOOK_S)

    def _seen(self) -> bytes:
        try:
            return self._file.read_bytes()
        except OSError:
            return b""

    def check(self) -> None:
        """Look whether later ranks have taken the directory; ten times a second at most.

        Raises:
            RanksLost: they have.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        found = self._seen()
        if found and found != self._token:  # nothing: shared storage that is away for a moment
            raise RanksLost(
                f"{self._file.parent}, which ranks that were started later have taken over",
                "one torchrun for a run",
                "nothing, if the network between the hosts was broken; otherwise stop one of the two",
            )


def take_turn(run_dir: RunDir) -> bytes:
    """Take the directory for new ranks, as its owner; returns the token that all of them must have."""
    token = secrets.token_hex(8).encode()
    run_dir.keep(TURN, token)
    return token
