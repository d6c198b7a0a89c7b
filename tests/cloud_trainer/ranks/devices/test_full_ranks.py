"""New sessions and the room of the ranks: a full rank is given none while another has room."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from adc_edge.cloud_trainer.ranks.devices.owners import REFUSED_S
from adc_edge.cloud_trainer.ranks.devices.placing import Placement, rank_of_text
from adc_edge.cloud_trainer.scheduling.room import Room
from tests.cloud_trainer.ranks.devices.doors import Rank, hello_of, one_round, world_of


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "journal"


class Places:
    """The room of the ranks of one world, with so many places for devices on each."""

    def __init__(self, ranks: list[Rank], *places: int) -> None:
        for rank, most in zip(ranks, places, strict=True):
            rank.owners.rooms.look = partial(self.left, rank, most)

    @staticmethod
    def left(rank: Rank, most: int) -> Room:
        return Room(max(0, most - len(rank.sessions())))


def test_a_full_rank_is_given_no_new_session_while_another_has_room(logs: Path) -> None:
    ranks = world_of(2, logs)
    Places(ranks, 1, 3)
    one_round(ranks)
    for rank in ranks:
        rank.owners.worked([0, 900], 60_000)  # the first one has less to do
    for number in range(1, 5):  # in one round, in which the places that are left are counted
        ranks[number % 2].ask(hello_of(number))
    one_round(ranks)
    owners = [ranks[0].owners.owner(number) for number in range(1, 5)]
    assert sorted(map(str, owners)) == ["0", "1", "1", "1"]
    ranks[0].ask(hello_of(5))  # all are full: it waits at the one with the least to do
    one_round(ranks)
    assert ranks[1].owners.owner(5) == 0


def test_a_session_that_waits_at_a_full_rank_goes_where_a_place_becomes_free(logs: Path) -> None:
    now = [0.0]
    ranks = world_of(2, logs, clock=lambda: now[0])
    Places(ranks, 1, 1)
    one_round(ranks)
    for number in (1, 2, 3):
        ranks[0].ask(hello_of(number))
        one_round(ranks)
        if number < 3:
            assert ranks[ranks[0].owners.owner(number) or 0].ask(hello_of(number))[1] == "here"
            one_round(ranks)
    waits_at = ranks[0].owners.owner(3)
    now[0] += REFUSED_S + 1
    one_round(ranks)
    assert ranks[0].owners.owner(3) == waits_at  # there is no place anywhere
    other = ranks[1 - (waits_at or 0)]
    (there,) = other.registry
    other.registry._evict(there)  # its device has gone
    one_round(ranks)
    now[0] += REFUSED_S + 1
    one_round(ranks)
    assert ranks[0].owners.owner(3) is None
    ranks[waits_at or 0].ask(hello_of(3))  # which tries again where it waits
    one_round(ranks)
    assert ranks[0].owners.owner(3) == other.owners.rank


def test_devices_that_cannot_be_elsewhere_stay_at_a_full_rank(logs: Path) -> None:
    now = [0.0]
    ranks = world_of(2, logs, clock=lambda: now[0])
    Places(ranks, 0, 5)
    one_round(ranks)
    ranks[0].ask(hello_of(1, moves=False))
    one_round(ranks)
    now[0] += REFUSED_S + 1
    one_round(ranks)
    assert ranks[1].owners.owner(1) == 0


@pytest.mark.parametrize("place", ["key", "name"])
def test_a_full_rank_is_left_out_by_name_and_key_too(logs: Path, place: Placement) -> None:
    ranks = world_of(3, logs, place)
    name = next(f"camera {n}" for n in range(99) if rank_of_text(f"camera {n}", 3) == 1)
    Places(ranks, 5, 0, 5)
    one_round(ranks)
    ranks[0].ask(hello_of(1, device=name))
    one_round(ranks)
    assert ranks[0].owners.owner(1) == rank_of_text(name, 3, (0, 2)) != 1
