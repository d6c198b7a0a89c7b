"""The class names of the head on several ranks: the list grows in rounds alone, so that all ranks have the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from adc_edge.arrays import Body
from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.errors import ProtocolError
from adc_edge.storage.bundle import Manifest
from adc_edge.storage.run_dir import LearnedClasses, RunDir
from adc_edge.wire.class_names import unpack_class_counts, unpack_names
from adc_edge.wire.messages import ClassNames


class _Wish(msgspec.Struct, array_like=True):
    names: list[str]
    positions: bool
    device: str


class RankClasses(HeadClasses):
    """The list on one rank, and its part in the rounds (a ``RankMember``).

    Args:
        manifest: the bundle's.
        run_dir: that of this rank; rank 0's keeps the list.
        least: the least of all ranks' numbers, a call of all ranks.
    """

    def __init__(self, manifest: Manifest, run_dir: RunDir, least: Callable[[int], int]) -> None:
        super().__init__(manifest, run_dir)
        self._least = least
        self._wishes: dict[int, _Wish] = {}  # to be told in the next round, one of each session
        self._fault: OSError | None = None  # why the last round could not write the list
        self._hearing = False

    def must_wait(self, message: ClassNames, body: Body, device: str) -> bool:
        """Return whether a round has to add a device's names first; that is then wished for.

        Raises:
            ProtocolError: the names cannot be read.
        """
        if not self.asked_for:
            return False
        names = list(unpack_class_counts(body)) if message.counted is True else unpack_names(body)
        if set(names) <= set(self.names):
            return False
        self._wishes[message.session] = _Wish(names, message.positions, device)
        return True

    def is_to_be_told(self, session: int) -> bool:
        """Return whether the names of a session's device wait for the next round."""
        return session in self._wishes

    def tell(self) -> bytes:
        """Return the names that devices of this rank have told; empty: none."""
        wishes, self._wishes = list(self._wishes.values()), {}
        return msgspec.msgpack.encode(wishes) if wishes else b""

    def hear(self, told: Sequence[bytes]) -> None:
        """Add the names of all ranks, by rank; names that do not fit are left out, and refused when they are asked for.

        Where rank 0 cannot write the list, it stays as it was on all ranks.
        """
        before, self._fault, self._hearing = self._learned, None, True
        wishes = [wish for part in told if part for wish in msgspec.msgpack.decode(part, type=list[_Wish])]
        while left := [wish for wish in wishes if not self._hears(wish)]:
            if len(left) == len(wishes):
                break
            wishes = left  # some may fit now that others have named classes
        # The list counts once rank 0 has it: this rank answers devices while it waits for that.
        learned, self._learned, self._hearing = self._learned, before, False
        if self._least(int(self._fault is None)):
            self._learned = learned
        else:
            self._fault = self._fault or OSError(0, "rank 0 cannot write the class names")

    def _hears(self, wish: _Wish) -> bool:
        """Add the names of a device; returns whether they fit."""
        try:
            super().learn(wish.names, wish.positions, wish.device)
        except ProtocolError:
            return False
        except OSError as error:
            self._fault = error
            return False
        return True

    def learn(self, told: Sequence[str], positions: bool, device: str) -> list[str]:
        """Return the names so far, if they have those that a device tells.

        Raises:
            ProtocolError: code ``labels``, as without ranks.
            OSError: the list could not be written; it stays as it was.
        """
        if self._fault is not None and not set(told) <= set(self.names):
            raise self._fault
        return super().learn(told, positions, device)

    def _grow(self, learned: LearnedClasses, device: str) -> None:
        assert self._hearing, "only a round may add names"
        super()._grow(learned, device)
