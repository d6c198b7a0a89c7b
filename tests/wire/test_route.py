"""Which address a device tries: the door, and what it was told, as long as that answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adc_edge.errors import LinkError, ProtocolError, RefusedError, SettingError
from adc_edge.wire.addresses import Address, NameUnknown
from adc_edge.wire.connection import LinkLost, TrainerBusy
from adc_edge.wire.route import MOST_MOVES, TOLD_TRIES, Route

DOOR, ONE, TWO = "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556", "tcp://127.0.0.1:5557"
REFUSAL = RefusedError("bundle", "bundle 1", "bundle 2", "copy it")


def known(address: Address) -> list[Address]:
    """Addresses of names, without a name server."""
    names = {"trainer.example": "192.0.2.7", "localhost": "127.0.0.1"}
    if address.host == "gone.example":
        raise NameUnknown("name unknown: gone.example")
    return [Address(names.get(address.host, address.host), address.port)]


def fail(route: Route, times: int = 1) -> None:
    for _ in range(times):
        route.failed(LinkLost("connection refused"))


def test_a_device_begins_at_the_door() -> None:
    route = Route(DOOR)
    assert route.endpoint == DOOR
    assert route.targets() == [Address("127.0.0.1", 5555)]


def test_a_told_address_is_used_until_it_fails_twice_and_then_the_door() -> None:
    route = Route(DOOR)
    route.move(ONE)
    assert route.endpoint == ONE
    route.reached()
    for _ in range(TOLD_TRIES):
        assert route.endpoint == ONE
        fail(route)
    assert route.endpoint == DOOR


def test_a_door_that_is_gone_does_not_keep_a_device_from_its_rank() -> None:
    route, tried = Route(DOOR), list[str]()
    route.move(ONE)
    for _ in range(12):
        tried.append(route.endpoint)
        fail(route)
    assert tried[:TOLD_TRIES] == [ONE, ONE]
    assert tried[TOLD_TRIES:].count(ONE) >= 2
    assert tried.count(DOOR) > tried.count(ONE)


def test_a_told_address_that_answers_again_is_kept() -> None:
    route = Route(DOOR)
    route.move(ONE)
    for _ in range(10):
        fail(route)
        route.reached()
        assert route.endpoint == ONE


def test_a_busy_trainer_is_no_reason_to_go_elsewhere() -> None:
    route = Route(DOOR)
    route.move(ONE)
    for _ in range(10):
        route.failed(TrainerBusy("busy: no room"))
        assert route.endpoint == ONE


def test_the_door_may_serve_the_session_itself_later() -> None:
    route = Route(DOOR)
    route.move(ONE)
    route.reached()
    fail(route, TOLD_TRIES)
    route.reached()  # the door has answered with a Welcome
    fail(route)
    assert route.endpoint == DOOR
    route.move(ONE)
    route.move(DOOR)
    fail(route, TOLD_TRIES + 3)
    assert route.endpoint == DOOR


def test_moves_without_an_end_are_a_lost_link_and_the_door_is_next() -> None:
    route = Route(DOOR)
    for number in range(MOST_MOVES):
        route.move((ONE, TWO)[number % 2])
    with pytest.raises(LinkLost, match=f"{MOST_MOVES} times in a row.*{ONE}"):
        route.move(ONE)
    assert route.endpoint == DOOR
    route.move(ONE)  # it may go on
    assert route.endpoint == ONE


def test_moves_after_a_welcome_are_counted_anew() -> None:
    route = Route(DOOR)
    for number in range(3 * MOST_MOVES):
        route.move((ONE, TWO)[number % 2])
        route.reached()
    assert route.endpoint in (ONE, TWO)


@pytest.mark.parametrize("told", ["tcp://*:5556", "tcp://127.0.0.1:*", "ipc:///tmp/x", "", "tcp://[::1:5", "\0"])
def test_what_is_no_address_is_refused_by_name(told: str) -> None:
    route = Route(DOOR)
    with pytest.raises(ProtocolError, match="moves this device") as caught:
        route.move(told)
    assert "--advertise" in caught.value.remedy
    assert route.endpoint == DOOR


def test_an_address_that_needs_keys_is_refused_without_them() -> None:
    route = Route(DOOR, loopback_alone=True, look_up=known)
    route.move("tcp://trainer.example:5556")
    with pytest.raises(ProtocolError, match="not loopback, and there are no keys") as caught:
        route.targets()
    assert "keys new" in caught.value.remedy
    open_route = Route(DOOR, look_up=known)
    open_route.move("tcp://trainer.example:5556")
    assert open_route.targets() == [Address("192.0.2.7", 5556)]


def test_a_name_of_loopback_needs_no_keys() -> None:
    route = Route(DOOR, loopback_alone=True, look_up=known)
    route.move("tcp://localhost:5556")
    assert route.targets() == [Address("127.0.0.1", 5556)]


def test_a_door_that_means_another_machine_now_is_waited_for() -> None:
    with pytest.raises(LinkLost, match="not loopback"):
        Route("tcp://trainer.example:1", loopback_alone=True, look_up=known).targets()


def test_a_told_name_that_is_unknown_is_left_for_the_door() -> None:
    route = Route(DOOR, look_up=known)
    route.move("tcp://gone.example:5556")
    for _ in range(TOLD_TRIES):
        with pytest.raises(LinkLost, match="name unknown") as caught:
            route.targets()
        route.failed(caught.value)
    assert route.targets() == [Address("127.0.0.1", 5555)]


def test_a_refusal_where_the_device_was_before_is_checked_at_the_door() -> None:
    route = Route(DOOR)
    route.move(ONE)
    route.reached()
    with pytest.raises(LinkLost, match="bundle 1"):  # another trainer has the port now
        route.refused(REFUSAL)
    assert route.endpoint == DOOR
    route.move(ONE)
    with pytest.raises(RefusedError, match="bundle 1"):  # the door has said the same again
        route.refused(REFUSAL)


def test_a_refusal_of_the_door_counts() -> None:
    with pytest.raises(RefusedError):
        Route(DOOR).refused(REFUSAL)


def test_something_else_at_the_door_ends_the_wait_unless_a_trainer_has_moved_the_device() -> None:
    route = Route(DOOR)
    route.give_up_on_others(True, "an HTTP server")
    route.give_up_on_others(True, "an HTTP server")
    with pytest.raises(LinkError, match="an HTTP server"):
        route.give_up_on_others(True, "an HTTP server")
    moved = Route(DOOR)
    moved.move(ONE)
    for _ in range(10):
        moved.give_up_on_others(True, "an HTTP server")


def test_a_malformed_door_is_refused_at_once() -> None:
    with pytest.raises(SettingError):
        Route("tcp://trainer")


@given(st.lists(st.sampled_from(["move 1", "move 2", "fail", "reach"]), max_size=60))
def test_the_address_is_always_the_door_or_the_last_one_told(happenings: list[str]) -> None:
    route, told = Route(DOOR), DOOR
    for happening in happenings:
        if happening == "fail":
            fail(route)
        elif happening == "reach":
            route.reached()
        else:
            told = ONE if happening == "move 1" else TWO
            try:
                route.move(told)
            except LinkLost:
                assert route.endpoint == DOOR
            else:
                assert route.endpoint == told
        assert route.endpoint in (DOOR, told)
    for _ in range(TOLD_TRIES + 1):  # whatever has happened, the door is tried soon
        if route.endpoint == DOOR:
            break
        fail(route)
    assert route.endpoint == DOOR
