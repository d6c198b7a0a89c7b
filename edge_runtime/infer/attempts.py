"""Attempts to bring a lost link back: their time limits, and the addresses that they try."""

from __future__ import annotations

import threading
from typing import NamedTuple

from adc_edge.wire.addresses import Address, NameUnknown, resolve

# TCP repeats the first packet of a connection after a second, and then after ever longer pauses. A new connection every
# 0.4 s notices sooner that a dark link is back.
_CONNECT_S = 0.4
_LONG_CONNECT_S, _LONG_EVERY = 1.0, 10  # for a link that has become slow
_ANSWER_S, _MOST_ANSWER_S = 1.8, 10.0
_LOOKUP_S = 0.1


class AttemptLimits(NamedTuple):
    """Seconds that an attempt has for the connection, and for handshake and greeting on it."""

    connect_s: float
    answer_s: float


class Attempts:
    """The limits of one attempt after the other.

    Args:
        rtt_s: round-trip time of the lost connection; 0: not known.
    """

    def __init__(self, rtt_s: float) -> None:
        self._connect_s = min(_LONG_CONNECT_S, max(_CONNECT_S, 2 * rtt_s))
        self._answer_s, self._begun = _ANSWER_S, 0

    def begin(self) -> AttemptLimits:
        """Return the limits of the next attempt."""
        self._begun += 1
        long = self._begun % _LONG_EVERY == 0
        return AttemptLimits(_LONG_CONNECT_S if long else self._connect_s, self._answer_s)

    def fail(self, in_time: bool) -> None:
        """Give the next attempt more time where this one was connected and not done ``in_time``."""
        self._answer_s = _ANSWER_S if in_time else min(_MOST_ANSWER_S, 1.5 * self._answer_s)


class KnownAddresses:
    """The numeric addresses of a host; while its name server does not answer, those that it had before.

    A name server behind a dark link lets a lookup wait for many seconds, also after the link is back.
    """

    def __init__(self) -> None:
        self._found: list[Address] = []
        self._unknown: NameUnknown | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, address: Address) -> list[Address]:
        """Return them as ``resolve`` does; only the first lookup is waited for to its end.

        Raises:
            NameUnknown: the host has had no address so far.
        """
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look_up, args=(address,), name="lookup", daemon=True)
            self._thread.start()
        self._thread.join(_LOOKUP_S if self._found else None)
        if not self._found:
            raise self._unknown or NameUnknown(f"name unknown: {address.host}")
        return self._found

    def _look_up(self, address: Address) -> None:
        try:
            self._found, self._unknown = resolve(address), None
        except NameUnknown as unknown:
            self._unknown = unknown
