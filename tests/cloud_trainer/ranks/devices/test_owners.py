"""One rank for each session, and what devices are told about it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from adc_edge.cloud_trainer.ranks.devices.owners import MOST_UNOPENED, UNOPENED_S, Wish
from adc_edge.cloud_trainer.ranks.devices.placing import rank_of_text
from adc_edge.cloud_trainer.served_session import SessionRecord
from adc_edge.errors import ProtocolError, SettingError
from adc_edge.wire.messages import Moved
from tests.cloud_trainer.ranks.devices.doors import endpoint_of, hello_of, one_round, world_of


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_new_session_waits_for_a_round_and_is_then_opened_or_moved(logs: Path) -> None:
    ranks = world_of(2, logs)
    one_round(ranks)
    first, found = ranks[1].ask(hello_of(7))
    assert found == "wait"
    second, found = ranks[1].ask(hello_of(8))
    assert found == "wait"
    assert not ranks[1].door.decided()
    one_round(ranks)
    decided = ranks[1].door.decided()
    assert decided == [first, second]
    assert {ranks[0].owners.owner(n): ranks[1].answer(one) for n, one in zip((7, 8), decided, strict=True)} == {
        0: Moved(7, endpoint_of(0)),
        1: "here",
    }


def test_a_known_session_is_answered_at_once_at_every_door(logs: Path) -> None:
    ranks = world_of(3, logs)
    one_round(ranks)
    ranks[0].ask(hello_of(7))
    one_round(ranks)
    owner = ranks[0].owners.owner(7)
    for rank in ranks:
        found = rank.ask(hello_of(7))[1]
        assert found == ("here" if rank.owners.rank == owner else Moved(7, endpoint_of(owner or 0)))


def test_nobody_is_moved_before_the_ranks_have_told_where_they_are(logs: Path) -> None:
    ranks = world_of(2, logs)
    records = {n: SessionRecord("camera", "", 5) for n in (1, 2)}
    for rank in ranks:
        rank.owners.restore(None, records)
        rank.registry.restore({n: one for n, one in records.items() if rank.owners.owner(n) == rank.owners.rank})
    there = next(n for n in records if ranks[0].owners.owner(n) == 1)
    asked, found = ranks[0].ask(hello_of(there))
    assert found == "wait"
    one_round(ranks)
    assert ranks[0].door.decided() == [asked]
    assert ranks[0].answer(asked) == Moved(there, endpoint_of(1))


def test_the_lowest_ranks_wish_comes_first(logs: Path) -> None:
    ranks = world_of(3, logs)
    one_round(ranks)
    for rank in reversed(ranks):
        assert rank.ask(hello_of(7, moves=False))[1] == "wait"
    one_round(ranks)
    assert [rank.owners.owner(7) for rank in ranks] == [0, 0, 0]


def test_an_older_device_stays_where_it_is_new_and_is_told_in_words_where_it_is_not(logs: Path) -> None:
    ranks = world_of(2, logs)
    one_round(ranks)
    asked, _ = ranks[1].ask(hello_of(7, moves=False))
    one_round(ranks)
    assert ranks[1].door.decided() == [asked]
    assert ranks[1].answer(asked) == "here"
    with pytest.raises(ProtocolError, match=endpoint_of(1)) as caught:
        ranks[0].ask(hello_of(7, moves=False))
    assert caught.value.code == "version"
    assert f"--trainer {endpoint_of(1)}" in caught.value.remedy


def test_sessions_of_one_key_go_to_one_rank(logs: Path) -> None:
    ranks = world_of(3, logs)
    one_round(ranks)
    for number in range(12):
        ranks[number % 3].ask(hello_of(number), key="A" * 40 if number % 2 else "")
    one_round(ranks)
    (of_key,) = {ranks[0].owners.owner(number) for number in range(1, 12, 2)}
    others = {ranks[0].owners.owner(number) for number in range(0, 12, 2)}
    assert others - {of_key} == {0, 1, 2} - {of_key}  # which have fewer sessions


def test_a_session_is_placed_by_name_or_by_key(logs: Path) -> None:
    ranks = world_of(4, logs, "name")
    one_round(ranks)
    ranks[0].ask(hello_of(7, device="bridge north"))
    one_round(ranks)
    assert ranks[2].owners.owner(7) == rank_of_text("bridge north", 4)
    keyed = world_of(4, logs, "key")
    one_round(keyed)
    keyed[0].ask(hello_of(7, device="x"), key="C" * 40)
    keyed[1].ask(hello_of(8, device="y"), key="C" * 40)
    one_round(keyed)
    again = world_of(4, logs, "key")
    one_round(again)
    again[3].ask(hello_of(9, device="z"), key="C" * 40)
    one_round(again)
    assert {keyed[0].owners.owner(7), keyed[0].owners.owner(8)} == {again[0].owners.owner(9)}


def test_new_sessions_go_where_less_is_computed(logs: Path) -> None:
    ranks = world_of(2, logs)
    one_round(ranks)
    for rank in ranks:
        for _ in range(60):
            rank.owners.worked([900, 100], 1000)
    ranks[0].ask(hello_of(7))
    one_round(ranks)
    assert ranks[0].owners.owner(7) == 1


def test_a_session_whose_device_does_not_come_is_given_up(logs: Path) -> None:
    now = [0.0]
    ranks = world_of(2, logs, clock=lambda: now[0])
    one_round(ranks)
    for number in range(2 * MOST_UNOPENED + 8):
        ranks[0].ask(hello_of(number))
    one_round(ranks)
    one_round(ranks)  # each rank keeps so many, and gives up those that were first
    counts = [sum(ranks[0].owners.owner(n) == rank for n in range(2 * MOST_UNOPENED + 8)) for rank in (0, 1)]
    assert counts == [MOST_UNOPENED] * 2
    assert ranks[0].owners.owner(2 * MOST_UNOPENED + 7) is not None
    now[0] += UNOPENED_S + 1
    one_round(ranks)
    assert ranks[0].owners.kept() == ranks[1].owners.kept() == {"world": 2, "ranks": {}}


def test_a_hello_that_comes_while_its_session_is_given_up_is_not_opened(logs: Path) -> None:
    now = [0.0]
    ranks = world_of(2, logs, clock=lambda: now[0])
    one_round(ranks)
    first, _ = ranks[0].ask(hello_of(7))
    one_round(ranks)
    assert ranks[0].door.decided() == [first]  # and its device does not come
    owner = ranks[0].owners.owner(7) or 0
    one_round(ranks)
    now[0] += UNOPENED_S + 1
    told = [rank.owners.tell() for rank in ranks]
    late, found = ranks[owner].ask(hello_of(7))
    assert found == "wait"
    for rank in ranks:
        rank.owners.hear(told)
    assert ranks[owner].owners.owner(7) is None
    assert not ranks[owner].door.decided()
    one_round(ranks)
    assert ranks[owner].door.decided() == [late]
    assert ranks[owner].answer(late) == "here" or isinstance(ranks[owner].answer(late), Moved)


def test_a_session_that_gives_way_may_come_back_to_any_rank(logs: Path) -> None:
    ranks = world_of(2, logs)
    one_round(ranks)
    asked, _ = ranks[0].ask(hello_of(7, moves=False))
    one_round(ranks)
    ranks[0].answer(asked)
    one_round(ranks)
    ranks[0].registry._evict(next(iter(ranks[0].registry)))
    one_round(ranks)
    assert ranks[1].owners.owner(7) is None
    ranks[1].ask(hello_of(7, moves=False))
    one_round(ranks)
    assert ranks[0].owners.owner(7) == 1


def test_a_connection_that_has_ended_is_not_waited_for(logs: Path) -> None:
    ranks = world_of(1, logs)
    one_round(ranks)
    gone, _ = ranks[0].ask(hello_of(7))
    here, _ = ranks[0].ask(hello_of(8))
    assert gone.peer.connection is not None
    gone.peer.connection.ended = True
    one_round(ranks)
    assert ranks[0].door.decided() == [here]


def test_the_table_of_a_checkpoint_is_taken_or_dealt_out_anew(logs: Path) -> None:
    ranks = world_of(2, logs)
    one_round(ranks)
    for number in range(6):
        ranks[0].ask(hello_of(number))
    one_round(ranks)
    kept = msgspec.json.decode(msgspec.json.encode(ranks[0].owners.kept()))  # as a checkpoint's file gives it back
    records = {number: SessionRecord("camera", "", 3, finished=number < 2) for number in range(6)}
    again = world_of(2, logs)
    for rank in again:
        rank.owners.restore(kept, records)
        assert [rank.owners.owner(n) for n in range(6)] == [ranks[0].owners.owner(n) for n in range(6)]
    more = world_of(3, logs)
    for rank in more:
        rank.owners.restore(kept, records)
    assert more[0].owners.kept() == more[1].owners.kept() == more[2].owners.kept()
    assert {more[0].owners.owner(n) for n in range(6)} == {0, 1, 2}
    alone = world_of(1, logs)[0]  # of a trainer without ranks, or nonsense
    for nothing in (None, {}, {"world": 1, "ranks": {"x": 0}}, {"world": 1, "ranks": {"0": 4}}):
        alone.owners.restore(nothing, records)
        assert {alone.owners.owner(n) for n in range(6)} == {0}


def test_two_ranks_at_one_address_are_refused_by_name(logs: Path) -> None:
    ranks = world_of(2, logs)
    ranks[1].owners.announce(endpoint_of(0))
    told = [rank.owners.tell() for rank in ranks]
    for rank in ranks:
        with pytest.raises(SettingError, match="two ranks") as caught:
            rank.owners.hear(told)
        assert "--advertise" in caught.value.remedy


def test_a_rank_without_news_tells_nothing(logs: Path) -> None:
    ranks = world_of(2, logs)
    one_round(ranks)
    ranks[0].ask(hello_of(7))
    one_round(ranks)
    for rank in ranks:
        assert rank.owners.tell() == b""


def test_wishes_travel_as_they_are() -> None:
    wish = Wish(2**63 - 1, "A" * 40, "camera", False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(wish), type=Wish) == wish


def test_finished_sessions_take_no_place_where_a_checkpoint_is_dealt_out(logs: Path) -> None:
    records = {n: SessionRecord("camera", "", 5, finished=n % 3 > 0) for n in range(12)}
    (rank, _) = world_of(2, logs)
    rank.owners.restore(None, records)
    assert sorted(str(rank.owners.owner(n)) for n in range(0, 12, 3)) == ["0", "0", "1", "1"]
