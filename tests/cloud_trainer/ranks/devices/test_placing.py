"""Where new sessions go: to the rank with the least load, or to that of their key or name."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adc_edge.cloud_trainer.ranks.devices.placing import Loads, deal_out, rank_of_text


def work(loads: Loads, *computed_ms: int, rounds: int = 100, elapsed_ms: int = 1000) -> None:
    for _ in range(rounds):
        loads.worked(computed_ms, elapsed_ms)


def test_the_rank_that_computes_least_is_chosen() -> None:
    loads = Loads(3)
    work(loads, 600, 200, 500)
    assert loads.least([1, 5, 1]) == 1


def test_ranks_that_compute_alike_take_turns_by_their_sessions() -> None:
    loads = Loads(3)
    work(loads, 500, 505, 495)
    assert loads.least([2, 1, 2]) == 1
    assert loads.least([1, 1, 1]) == 0
    assert Loads(2).least([3, 2]) == 1


def test_a_burst_of_new_sessions_is_spread_before_anything_is_measured() -> None:
    loads, unfinished = Loads(4), [1, 1, 1, 1]
    work(loads, 300, 300, 300, 300)
    for _ in range(40):
        rank = loads.least(unfinished)
        loads.placed(rank, unfinished)
        unfinished[rank] += 1
    assert unfinished == [11, 11, 11, 11]


def test_a_session_that_has_ended_makes_room_at_once() -> None:
    loads = Loads(2)
    work(loads, 800, 400)
    assert loads.least([2, 1]) == 1
    loads.ended(0, 2)
    loads.ended(0, 1)
    assert loads.least([0, 1]) == 0


def test_work_of_long_ago_does_not_count() -> None:
    loads = Loads(2)
    work(loads, 900, 0)
    assert loads.least([0, 1]) == 1
    work(loads, 0, 0, rounds=300)
    assert loads.least([0, 1]) == 0


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=50),
    st.lists(st.integers(0, 300), min_size=2, max_size=2),
)
def test_a_load_is_a_part_of_the_time_whatever_is_told(rounds: list[tuple[int, int, int]], counts: list[int]) -> None:
    loads = Loads(2)
    for first, second, elapsed_ms in rounds:
        loads.worked([first, second], elapsed_ms)
        assert all(0 <= load <= 1_000_000 for load in loads._computing)
    assert loads.least(counts) in (0, 1)
    loads.ended(0, 0)  # a count that has come to nothing is no division by it
    loads.placed(1, [0, 0])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_texts_are_spread_over_all_ranks_and_always_alike(world: int) -> None:
    ranks = [rank_of_text(f"camera {number}", world) for number in range(2000)]
    assert ranks == [rank_of_text(f"camera {number}", world) for number in range(2000)]
    share = Counter(ranks)
    assert set(share) == set(range(world))
    assert min(share.values()) > 0.85 * 2000 / world


def test_one_rank_more_moves_only_those_that_it_takes() -> None:
    for number in range(500):
        before, after = rank_of_text(f"camera {number}", 4), rank_of_text(f"camera {number}", 5)
        assert after in (before, 4)


@given(st.dictionaries(st.integers(0, 2**63 - 1), st.sampled_from("ABCDEF"), max_size=40), st.integers(1, 5))
def test_sessions_are_dealt_out_evenly_and_those_of_a_key_stay_together(owners: dict[int, str], world: int) -> None:
    alone = dict.fromkeys(owners, "")
    names = {number: f"camera {number}" for number in owners}
    counts = Counter(deal_out(names, world, alone, "load").values())
    assert max(counts.values(), default=0) - min((counts[rank] for rank in range(world)), default=0) <= 1
    together = deal_out(names, world, owners, "load")
    for key in set(owners.values()):
        assert len({together[number] for number in owners if owners[number] == key}) == 1
    named = deal_out(names, world, alone, "name")
    assert named == {number: rank_of_text(f"camera {number}", world) for number in owners}
    shuffled = dict(reversed(list(names.items())))
    assert deal_out(shuffled, world, owners, "load") == together


@given(st.sets(st.integers(0, 2**63 - 1), max_size=40), st.integers(1, 5), st.data())
def test_only_unfinished_sessions_are_dealt_out_evenly(numbers: set[int], world: int, data: st.DataObject) -> None:
    finished = {number for number in sorted(numbers) if data.draw(st.booleans())}
    names = {number: f"camera {number}" for number in numbers}
    alone = dict.fromkeys(numbers, "")
    ranks = deal_out(names, world, alone, "load", finished)
    counts = Counter(ranks[number] for number in numbers - finished)
    assert max(counts.values(), default=0) - min(counts[rank] for rank in range(world)) <= 1
    over = {number: ranks[number] for number in finished}  # these depend on no other session
    assert deal_out(dict.fromkeys(finished, ""), world, alone, "load", finished) == over


def test_a_finished_session_stays_with_the_one_of_its_key_that_goes_on() -> None:
    for last in range(8):
        groups = {1: "A", 2: "", 3: "", 9: "A", 10: "B", last + 20: "B"}
        ranks = deal_out(dict.fromkeys(groups, ""), 3, groups, "load", finished={1, 10})
        assert ranks[1] == ranks[9]
        assert ranks[10] == ranks[last + 20]
        assert {ranks[2], ranks[3], ranks[9]} == {0, 1, 2}
