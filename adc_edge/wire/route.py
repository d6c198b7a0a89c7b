"""The address of a trainer to try next: the one that a person named, the door, or the one that the trainer told.

A trainer of several ranks answers at its door with the address of the rank that serves a session. A device keeps that
address as long as its process goes on, and nothing on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from adc_edge.errors import LinkError, ProtocolError, RefusedError, SettingError
from adc_edge.wire.addresses import Address, NameUnknown, loops, parse_address, resolve
from adc_edge.wire.connection import ANOTHER_ADDRESS, LinkLost, TrainerBusy

MOST_MOVES = 5  # in a row, without a Welcome
TOLD_TRIES = 2  # of a told address that does not answer, before the door is tried
_CYCLE = 5  # tries after which a told address has one more: the door may be the part that is gone
_FOREIGN = 3  # answers in a row of something that is no trainer, before any trainer has answered

logger = logging.getLogger(__name__)


class Elsewhere(LinkLost):
    """Another rank serves the session; the route knows its address."""


class Route:
    """The addresses of a trainer, as one device knows them.

    Args:
        door: ``tcp://HOST:PORT``, as a person named it.
        loopback_alone: give no other address, whatever a name resolves to: there are no keys.
        look_up: returns the numeric addresses of a host, or raises NameUnknown.
    """

    def __init__(
        self, door: str, loopback_alone: bool = False, look_up: Callable[[Address], list[Address]] = resolve
    ) -> None:
        parse_address(door)  # at once, or a malformed one would be tried for ever
        self.door, self._loopback_alone, self._look_up = door, loopback_alone, look_up
        self._told = ""  # empty: none, or the door is better
        self._failed = 0  # tries in a row that have failed since it was told, or has answered
        self._moves = 0  # in a row
        self._foreign: int | None = 0  # times in a row that something else answered; None once a trainer did

    @property
    def endpoint(self) -> str:
        """The address to try now."""
        use_told = self._told and (self._failed < TOLD_TRIES or self._failed % _CYCLE == 0)
        return self._told if use_told else self.door

    def targets(self) -> list[Address]:
        """The numeric addresses to try now. A name is looked up each time: it may move while a device runs.

        Raises:
            LinkLost: the name is unknown at the moment, or that of the door means another machine now.
            ProtocolError: the trainer has told an address that needs keys, and there are none.
        """
        endpoint = self.endpoint
        named = parse_address(endpoint)
        try:
            found = self._look_up(named)
        except NameUnknown as unknown:
            raise LinkLost(str(unknown)) from None
        if self._loopback_alone and (others := [address for address in found if not loops(address)]):
            if endpoint != self.door:
                raise _needs_keys(endpoint)
            raise LinkLost(f"{named.host} is {others[0].host} now, which is not loopback, and there are no keys")
        return found

    def move(self, endpoint: str) -> None:
        """Take the address that the trainer tells.

        Raises:
            LinkLost: it has told one again and again, and no rank has opened the session; the door is next.
            ProtocolError: it is no address to connect to.
        """
        self._moves, self._foreign = self._moves + 1, None
        if self._moves > MOST_MOVES:
            self._told, self._failed, self._moves = "", 0, 0
            raise LinkLost(
                f"the trainer has moved this device {MOST_MOVES} times in a row, the last time to {endpoint}"
            )
        try:
            parse_address(endpoint)
        except SettingError as error:
            raise ProtocolError(
                f"the trainer moves this device, and {error.received}",
                "tcp://HOST:PORT that this device can reach",
                "start the trainer's ranks with --advertise tcp://HOST:PORT",
            ) from None
        logger.info("the trainer at %s moves this device to %s", self.endpoint, endpoint)
        self._told, self._failed = ("" if endpoint == self.door else endpoint), 0

    def failed(self, lost: LinkLost) -> None:
        """Note that the address did not answer as a trainer, or that the connection has ended without a Welcome."""
        self._failed += not isinstance(lost, TrainerBusy)  # which is there

    def give_up_on_others(self, foreign: bool, text: str) -> None:
        """Raise LinkError where waiting does not help. Once a trainer has answered, another may come back.

        Args:
            foreign: something that is not adc-edge answers.
            text: what.
        """
        if self._foreign is None:
            return
        self._foreign = self._foreign + 1 if foreign else 0
        if self._foreign >= _FOREIGN:
            raise LinkError(
                f"no trainer at {self.endpoint}: {text}",
                "a running `adc-edge trainer` bound to that address",
                ANOTHER_ADDRESS,
            )

    def reached(self) -> None:
        """Note that the address has answered and serves the session."""
        if self.endpoint == self.door:
            self._told = ""
        self._failed = self._moves = 0
        self._foreign = None

    def refused(self, error: RefusedError) -> None:
        """Note that the trainer at the address refuses the session; raises the error if that is its last word.

        An address that was told earlier may be another trainer's by now: that of the door tells.

        Raises:
            RefusedError: the door refuses, or the door has just told this address.
            LinkLost: the door is to be asked.
        """
        if self.endpoint == self.door or self._moves:
            raise error
        logger.info("the trainer at %s refuses this device; asking at %s again", self.endpoint, self.door)
        self._told, self._failed = "", 0
        raise LinkLost(error.received) from None


def _needs_keys(endpoint: str) -> ProtocolError:
    return ProtocolError(
        f"the trainer moves this device to {endpoint}, which is not loopback, and there are no keys",
        "keys on both sides: traffic is encrypted, and each side proves its identity",
        "type adc-edge keys new --keys DIR on both machines, then use --keys DIR; or use --insecure",
    )
