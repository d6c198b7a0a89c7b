"""A real trainer and devices over real sockets: rounds, turns, held answers, restarts and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import UNSET
from safetensors.numpy import load_file

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.fleet.rounds import KEPT_ROUNDS, Rounds
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.scheduling.control import SessionControl, change_control
from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.trunk_changes import added, encode_changes
from adc_edge.errors import CheckpointError, RefusedError
from adc_edge.storage.bundle import TRUNK, Bundle
from adc_edge.storage.fleet_trunk import ROUNDS, newest_fleet_trunk
from adc_edge.wire.connection import LinkLost
from adc_edge.wire.fleet_messages import TrunkDelta
from adc_edge.wire.link_messages import Ping, Pong
from tests.cloud_trainer.fleet.fleet_device import FleetDevice, equal, trainer
from tests.serving import logged
from tests.stub_device import Device

Start = Callable[..., Server]
Join = Callable[..., FleetDevice]
Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(bundle: Bundle, training: HeadTraining, run: Path, stack: ExitStack) -> Start:
    """Start a trainer; a further one takes the place of the first."""
    inner = stack.enter_context(ExitStack())

    def begin(**terms: Any) -> Server:
        inner.close()
        return inner.enter_context(trainer(bundle, training, run, **terms))

    return begin


@pytest.fixture
def join(bundle: Bundle, stack: ExitStack) -> Join:
    def device(server: Server, session: int, **hello: Any) -> FleetDevice:
        return stack.enter_context(closing(FleetDevice(bundle, server, session, **hello)))

    return device


def silent(device: FleetDevice) -> bool:
    """Whether the trainer has a device's question, has gone through its loop since, and holds the answer."""
    trunk = device.server._fleet._trunk
    assert trunk is not None
    while device.session not in trunk._asked:
        if device.channel.arrived(10):
            return False
    for nonce in (1, 2):  # a whole loop lies between their answers
        device.channel.send(Ping(nonce, 0))
        if not isinstance(device.channel.receive(30_000)[0], Pong):
            return False
    return device.session in trunk._asked


def moved(device: FleetDevice, *values: float) -> dict[str, Float32]:
    """The bundle's trunk after constant changes, in the order of the rounds."""
    trunk = load_file(device.bundle.path / TRUNK)
    for value in values:
        trunk = added(trunk, device.constant(value))
    return trunk


def test_the_trunks_become_their_mean_weighted_by_images(start: Start, join: Join, run: Path) -> None:
    server = start()
    one, two = join(server, 1), join(server, 2)
    assert one.welcome.fleet is not UNSET
    assert (one.welcome.fleet.mode, one.welcome.fleet.every, one.welcome.fleet.round) == ("averaged", 10, 0)
    one.ask()
    assert (one.receive().round, equal(one.trunk, load_file(one.bundle.path / TRUNK))) == (0, True)
    one.contribute(10, one.constant(1.0), images=30)
    assert silent(one)  # the other one is present and has not contributed
    two.contribute(10, two.constant(5.0), images=10)
    answers = one.receive(), two.receive()
    assert [(answer.round, answer.devices, answer.left_out) for answer in answers] == [(1, 2, ""), (1, 2, "")]
    assert equal(one.trunk, two.trunk)
    assert equal(one.trunk, moved(one, 2.0))
    kept = newest_fleet_trunk(run)
    assert kept is not None
    assert (kept.round, kept.learned, equal(kept.weights, one.trunk)) == (1, {1: 10, 2: 10}, True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if line["kind"] == "average")
    assert {name: line[name] for name in ("kind", "round", "devices", "images", "left_out")} == {
        "kind": "average",
        "round": 1,
        "devices": 2,
        "images": 40,
        "left_out": [],
    }
    told = [line for line in lines if line["kind"] == "trunk"]  # the first one has asked for the trunk before
    assert [(one["device"], one["step"], one["round"]) for one in told] == [
        ("orin-1", 0, 0),
        ("orin-1", 10, 1),
        ("orin-2", 10, 1),
    ]
    assert [one["body_bytes_up"] for one in told] == [0, line["bytes_up"] // 2, line["bytes_up"] // 2]
    assert [one["body_bytes_down"] for one in told] == [0, line["bytes_down"], line["bytes_down"]]


def test_a_device_that_is_away_holds_up_nobody_and_a_silent_one_no_longer_than_the_wait(
    start: Start, join: Join
) -> None:
    server = start(wait_s=0.5)
    one, two = join(server, 1), join(server, 2)
    with logged() as lines:
        one.contribute(10, one.constant(1.0))
        assert one.receive().devices == 1
    assert lines == ["round 1: the changes of 1 device; not waited for: 'orin-2'"]
    two.close()
    server = start(wait_s=1e6)
    one.close()
    one.connect(server)
    one.contribute(20, one.constant(1.0))
    assert one.receive().round == 2
    two.connect(server)  # it comes back: its change is of the trunk of round 0, and counts all the same
    two.contribute(10, two.constant(4.0))
    one.contribute(30, one.constant(2.0))
    assert (one.receive().round, two.receive().round) == (3, 3)
    assert equal(one.trunk, two.trunk)


def test_the_bytes_of_an_answer_count_once_it_goes_to_a_device_that_is_there(
    start: Start, join: Join, run: Path, eventually: Eventually
) -> None:
    server = start(wait_s=1e6)
    one, two = join(server, 1), join(server, 2)
    two.contribute(10, two.constant(1.0))
    assert silent(two)
    two.close()
    eventually(lambda: not server._record.presence.connected(2))
    one.contribute(10, one.constant(3.0))
    assert one.receive().devices == 2  # the answer to the other one is due too
    two.connect(server)
    two.contribute(10, two.constant(1.0))  # again: the trainer does not know that it has gone without its answer
    assert two.receive().round == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    size = len(encode_changes(one.constant(1.0), "fp32"))
    assert [
        (line["device"], line["body_bytes_up"], line["body_bytes_down"]) for line in lines if line["kind"] == "trunk"
    ] == [("orin-1", size, size), ("orin-2", 2 * size, size)]


def test_a_joiner_and_one_that_was_away_catch_up_with_the_same_bits(start: Start, join: Join) -> None:
    server = start(precision="int8")
    rng = np.random.default_rng(0)
    one = join(server, 1)
    for number in range(1, KEPT_ROUNDS + 2):
        change = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in one.trunk.items()}
        one.contribute(10 * number, change)
        answer = one.receive()
        assert (answer.round, answer.precision, answer.whole) == (number, "int8", False)
    joiner, older = join(server, 2), join(server, 3)
    joiner.ask()
    assert joiner.receive().whole  # its changes are not all kept, and would be larger
    older.base, older.trunk = 0, joiner.trunk
    older.contribute(10, older.constant(1.0))
    answer = older.receive()
    assert answer.round == KEPT_ROUNDS + 1
    assert answer.left_out == "it changes the trunk of round 0, 9 rounds ago; at most 8 are allowed"
    assert equal(one.trunk, joiner.trunk)
    assert equal(one.trunk, older.trunk)


def test_a_trainer_that_dies_at_any_instant_of_a_round_counts_each_change_once(
    start: Start, join: Join, run: Path
) -> None:
    server = start()
    one, two = join(server, 1), join(server, 2)
    for device in (one, two):
        device.contribute(10, device.constant(1.0))
    assert (one.receive().round, two.receive().round) == (1, 1)
    one.contribute(20, one.constant(1.0))
    assert silent(one)
    server = start()  # with a change in an open round, and another one that was never sent
    for device in (one, two):
        device.close()
        device.connect(server)
        device.contribute(20, device.constant(1.0))
        assert device is two or silent(one)  # the first one that is back waits for the other
    for device in (one, two):  # the answers get lost: the round is on disk
        device.channel.receive(30_000)
        device.close()
    server = start()
    for device in (one, two):
        device.connect(server)
        assert device.welcome.fleet is not UNSET
        assert device.welcome.fleet.round == 2
        device.contribute(20, device.constant(1.0))
        assert device.receive().round == 2
        assert equal(device.trunk, moved(device, 1.0, 1.0))
    kept = newest_fleet_trunk(run)
    assert kept is not None
    assert equal(kept.weights, one.trunk)


def test_a_change_sent_twice_into_an_open_round_counts_once(start: Start, join: Join) -> None:
    server = start()
    one, two = join(server, 1), join(server, 2)
    for _ in range(3):
        one.contribute(10, one.constant(1.0), images=10)
        assert silent(one)
        one.close()
        one.connect(server)
    one.contribute(10, one.constant(1.0), images=10)
    two.contribute(10, two.constant(3.0), images=10)
    assert (one.receive().devices, two.receive().devices) == (2, 2)
    assert equal(one.trunk, moved(one, 2.0))


def test_nobody_is_told_of_a_round_that_is_not_on_disk(
    start: Start, join: Join, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    one = join(server, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk, logged() as lines:
        disk.setattr("adc_edge.cloud_trainer.fleet.rounds.write_atomic", full)
        one.contribute(10, one.constant(1.0))
        assert silent(one)
        assert newest_fleet_trunk(run) is None
    assert lines == ["the fleet's trunk cannot be written: [Errno 28] No space left on device; its devices wait"]
    assert one.receive().round == 1


def test_all_devices_end_with_the_same_trunk(start: Start, join: Join) -> None:
    server = start(devices=2)
    one, two = join(server, 1), join(server, 2)
    one.contribute(10, one.constant(1.0), last=True)
    two.contribute(10, two.constant(3.0))
    assert two.receive().round == 1
    assert silent(one)  # the other one has steps to do
    one.close()
    one.connect(server)  # and the connection was lost meanwhile
    one.contribute(10, one.constant(1.0), last=True)
    two.contribute(20, two.constant(1.0), last=True)
    assert (one.receive().round, two.receive().round) == (2, 2)
    assert equal(one.trunk, two.trunk)
    one.bye()
    two.bye()


@pytest.mark.parametrize(("mode", "last"), [("averaged", False), ("averaged", True), ("sequential", False)])
def test_a_process_that_waits_for_the_fleet_is_told_when_a_newer_one_takes_its_session_over(
    start: Start, join: Join, mode: str, last: bool, eventually: Eventually
) -> None:
    server = start(mode=mode, devices=2)
    other, one = join(server, 2), join(server, 1)
    other.ask()
    assert other.receive().round == 0  # it has the turn, or is waited for
    one.contribute(10, one.constant(1.0), last=last)
    trunk = server._fleet._trunk
    assert trunk is not None
    eventually(lambda: 1 in trunk._asked)
    newer = join(server, 1, incarnation=99, step=10)
    with pytest.raises(LinkLost, match="unknown-device: a connection whose session was taken over"):
        one.receive()
    one.close()
    with pytest.raises(RefusedError) as refused:
        one.connect(server)
    assert refused.value.code == "superseded"
    newer.contribute(10, newer.constant(1.0), last=last)
    eventually(lambda: 1 in trunk._asked)  # else the other one may have the turn once more
    other.contribute(10, other.constant(1.0), last=last)
    assert newer.receive().round >= 1


def test_a_paused_device_that_reconnects_sends_the_header_of_its_change_alone(
    start: Start, join: Join, run: Path, eventually: Eventually
) -> None:
    server = start()
    one = join(server, 1)
    change_control(run, f"{1:016x}", lambda old: SessionControl(paused=True))
    eventually(lambda: server.sessions.waiting.fair.is_paused(1))
    one.ask()
    one.contribute(10, one.constant(1.0))
    eventually(lambda: server.sessions.waiting.held_bytes() > 0)
    one.close()
    one.connect(server)
    body = encode_changes(one.constant(1.0), "fp32")
    assert (one.welcome.transfer, one.welcome.received_bytes) == (10, len(body))
    change_control(run, f"{1:016x}", lambda old: SessionControl())
    one.channel.send(TrunkDelta(1, 10, 0, 10, len(body), 10, "fp32", offset=len(body)), body)
    assert one.receive().round == 1
    assert equal(one.trunk, moved(one, 1.0))


def test_the_guard_names_the_device_that_it_leaves_out(start: Start, join: Join, run: Path) -> None:
    server = start()
    devices = [join(server, session) for session in (1, 2, 3)]
    with logged() as lines:
        for device, value in zip(devices, (1.0, 2.0, 100.0), strict=True):
            device.contribute(10, device.constant(value))
        answers = [device.receive() for device in devices]
    why = "its norm is 66.7 times the others' median, above 4"
    assert [answer.left_out for answer in answers] == ["", "", why]
    assert lines[0] == f"round 1 leaves out the change of device 'orin-3': {why}"
    assert equal(devices[2].trunk, moved(devices[0], 1.5))
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    told = next(event for event in events if event["kind"] == "averaged")
    assert (told["round"], told["devices"], told["left_out"]) == (1, 2, [f"orin-3: {why}"])


def test_the_median_of_the_changes_can_be_asked_for(start: Start, join: Join) -> None:
    server = start(robust="median", guard=False)
    devices = [join(server, session) for session in (1, 2, 3)]
    for device, value in zip(devices, (1.0, 2.0, 100.0), strict=True):
        device.contribute(10, device.constant(value))
    for device in devices:
        device.receive()
        assert equal(device.trunk, moved(device, 2.0))


def test_one_trunk_goes_from_device_to_device(start: Start, join: Join) -> None:
    server = start(mode="sequential")
    one, two = join(server, 1), join(server, 2)
    one.ask()
    assert one.receive().round == 0
    two.ask()
    assert silent(two)
    one.contribute(10, one.constant(1.0))
    assert two.receive().round == 1  # the turn is the other one's, with what the first has changed
    assert silent(one)
    server = start(mode="sequential")  # a new process knows whose turn it is
    for device in (one, two):
        device.close()
        device.connect(server)
    one.contribute(10, one.constant(1.0))  # its answer is still missing
    assert silent(one)
    two.contribute(10, two.constant(1.0), last=True)
    assert (two.receive().round, one.receive().round) == (2, 2)
    one.contribute(20, one.constant(1.0))
    assert one.receive().round == 3  # nobody else waits
    assert equal(one.trunk, added(two.trunk, two.constant(1.0)))


def test_a_device_that_is_away_loses_its_turn_and_its_change_is_added_when_it_comes_back(
    start: Start, join: Join
) -> None:
    server = start(mode="sequential", wait_s=0.5)
    one, two = join(server, 1), join(server, 2)
    one.ask()
    one.receive()
    two.ask()
    one.close()
    assert two.receive().round == 0
    one.connect(server)
    one.contribute(10, one.constant(1.0))
    assert silent(one)  # the change is a round; the turn is the other one's
    two.contribute(10, two.constant(1.0))
    assert one.receive().round == 2
    assert equal(one.trunk, moved(one, 1.0, 1.0))


@pytest.mark.parametrize(
    ("mode", "said", "code", "text"),
    [
        ("averaged", {"fleet": UNSET}, "version", "a device of an older version"),
        ("sequential", {"fleet": False}, "shape", "a device whose trunk is frozen"),
        ("frozen", {"fleet": True}, "shape", "a device that trains its trunk"),
    ],
)
def test_a_device_that_does_not_fit_the_mode_is_refused(
    start: Start, join: Join, mode: str, said: dict[str, Any], code: str, text: str
) -> None:
    with pytest.raises(RefusedError, match=text) as refused:
        join(start(mode=mode), 1, **said)
    assert refused.value.code == code


def test_a_step_that_asks_for_a_gradient_is_refused_where_trunks_are_frozen(start: Start, bundle: Bundle) -> None:
    device = Device(bundle, start(mode="frozen").endpoint)  # of 0.10: its Hello tells nothing about a fleet
    device.session.open(30)
    with closing(device.session.channel), pytest.raises(RefusedError, match="a step that asks for a gradient"):
        device.step(0)


def test_a_change_that_is_not_one_is_refused_and_the_round_goes_on(start: Start, join: Join) -> None:
    server = start()
    one = join(server, 1)
    body = encode_changes(one.constant(1.0), "fp32")
    nan = np.full(len(body) // 4, np.nan, "<f4").tobytes()
    huge = np.full(len(body) // 4, 3e38, "<f4").tobytes()
    one.learn(10)
    cases = [
        (TrunkDelta(1, 10, 0, 1, len(body), 5, "fp32"), nan, "nan"),
        (TrunkDelta(1, 10, 0, 2, len(body), 5, "fp32"), huge, "nan"),
        (TrunkDelta(1, 10, 0, 3, len(body) - 4, 5, "fp32"), body[:-4], "size"),
        (TrunkDelta(1, 10, 0, 4, 4, 0, "fp32"), body[:4], "size"),
        (TrunkDelta(1, 10, 7, 5, len(body), 5, "fp32"), body, "history"),
        (TrunkDelta(1, 2**31 - 1, 0, 6, len(body), 5, "fp32"), body, "order"),  # steps that the head has not learned
        (TrunkDelta(1, 11, 0, 7, 0, 0, "fp32", True), b"", "order"),
        (TrunkDelta(1, 10, 0, 8, len(body), 2**31 - 1, "fp32"), body, "order"),  # so many images
    ]
    for message, sent, code in cases:
        one.channel.send(message, sent)
        with pytest.raises(RefusedError) as refused:
            one.channel.receive(30_000)
        assert refused.value.code == code
        one.close()  # or the pieces that followed are refused too
        one.connect(server)
    one.contribute(10, one.constant(1.0))
    assert one.receive().round == 1
    one.learn(20)
    one.channel.send(TrunkDelta(1, 20, 1, 9, len(body), 10_001, "fp32"), body)  # those of 10 steps are counted already
    with pytest.raises(RefusedError, match="a change by 10001 images"):
        one.channel.receive(30_000)


def test_a_device_of_another_fleet_is_refused_though_its_round_is_known(start: Start, join: Join, run: Path) -> None:
    one = join(start(), 1)
    one.contribute(10, one.constant(1.0))
    assert one.receive().round == 1
    shutil.rmtree(run / ROUNDS)  # of the run before, as by --fresh
    two = join(start(), 2)
    two.contribute(10, two.constant(2.0))
    assert two.receive().round == 1
    server = start()
    for device in (one, two):
        device.close()
        device.connect(server)
    one.contribute(20, one.constant(1.0))
    with pytest.raises(RefusedError, match="a trunk of round 1 of another fleet") as refused:
        one.channel.receive(30_000)
    assert refused.value.code == "history"
    one.close()
    two.contribute(20, two.constant(2.0))  # of this fleet, also over the restart
    assert two.receive().round == 2


def test_a_run_that_is_extended_takes_the_newest_trunk_and_its_turn(start: Start, join: Join) -> None:
    server = start(mode="sequential")
    one, two = join(server, 1), join(server, 2)
    one.contribute(10, one.constant(1.0), last=True)
    assert one.receive().round == 1
    one.bye()
    one.close()
    two.ask()
    assert two.receive().round == 1
    one.said["steps"] = 20
    one.connect(server)
    one.ask()
    assert silent(one)  # the turn is the other one's
    two.contribute(10, two.constant(1.0))
    assert one.receive().round == 2
    assert silent(two)  # and now it is the first one's, though it has done no step since its end
    one.contribute(20, one.constant(1.0))
    assert two.receive().round == 3


@pytest.mark.parametrize("bye", [False, True])
def test_a_device_that_was_to_go_on_and_ends_before_a_step_holds_nobody_up(start: Start, join: Join, bye: bool) -> None:
    server = start(devices=2)
    one, two = join(server, 1), join(server, 2)
    for device in (one, two):
        device.contribute(10, device.constant(1.0), last=True)
    assert (one.receive().round, two.channel.receive(30_000)[0].round) == (1, 1)  # type: ignore[union-attr]
    two.close()  # its answer got lost
    one.bye()
    one.close()
    one.said["steps"] = 20
    one.connect(server)
    one.ask()
    assert one.receive().round == 1
    two.connect(server)
    two.contribute(10, two.constant(1.0), last=True)
    assert silent(two)  # the other one goes on
    if bye:  # as if started with the old --steps
        one.bye()
    one.close()
    assert two.receive().round == 1


@pytest.mark.parametrize("done", [0, 3])  # steps since its first end
@pytest.mark.parametrize("comes_first", [False, True])
def test_a_run_that_was_extended_keeps_its_turn_over_the_trainers_kill(
    start: Start, join: Join, done: int, comes_first: bool
) -> None:
    server = start(mode="sequential")
    one, two = join(server, 1), join(server, 2)
    one.contribute(10, one.constant(1.0), last=True)
    assert one.receive().round == 1
    one.bye()  # the last checkpoint
    one.close()
    one.said["steps"] = 20
    one.connect(server)
    one.ask()
    assert one.receive().round == 1
    one.learn(10 + done)
    server = start(mode="sequential")
    two.close()
    one.close()
    for device in (one, two) if comes_first else (two, one):
        device.connect(server)
        if device is two:
            two.ask()
            assert silent(two)
    assert silent(two)
    one.contribute(20, one.constant(1.0), last=True)
    assert (one.receive().round, two.receive().round) == (2, 2)


def test_nobody_waits_after_a_restart_for_a_device_that_ended_in_its_turn(start: Start, join: Join) -> None:
    server = start(mode="sequential")
    one = join(server, 1)
    one.contribute(10, one.constant(1.0), last=True)
    assert one.receive().round == 1
    one.bye()
    two = join(start(mode="sequential", wait_s=1e9), 2)
    two.ask()
    assert two.receive().round == 1


def test_a_change_of_a_trunk_is_refused_where_each_device_keeps_its_own(start: Start, join: Join) -> None:
    one = join(start(mode="parallel"), 1)
    assert one.welcome.fleet is UNSET
    one.ask()
    with pytest.raises(RefusedError, match="a change of the fleet's trunk"):
        one.channel.receive(30_000)


def test_a_damaged_newest_round_is_refused_clearly(start: Start, join: Join, run: Path, bundle: Bundle) -> None:
    server = start(precision="int8")
    one = join(server, 1)
    for number in (1, 2):
        one.contribute(10 * number, one.constant(float(number)))
        one.receive()
    trunk, change = load_file(bundle.path / TRUNK), run / ROUNDS / "change-00000002"
    another = (run / ROUNDS / "change-00000001").read_bytes()  # as by a round that failed, with other contributions
    for written in (change.read_bytes()[:-1], another):
        change.write_bytes(written)
        with logged() as lines:
            assert Rounds(trunk, "int8", run).since(0)[0] is True  # the whole trunk serves as well
        damaged = f"{change} is damaged, or not that of the round; devices behind that round get the whole trunk"
        assert lines == [damaged]
    newest = run / ROUNDS / "checkpoint-00000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"checkpoint-00000002\.safetensors cannot be used") as refused:
        Rounds(trunk, "int8", run)
    assert "no older one can take its place" in refused.value.expected


def test_devices_of_the_same_name_are_both_named(start: Start, join: Join, run: Path) -> None:
    server = start()
    devices = [join(server, session, name="orin") for session in range(5)]
    for device, value in zip(devices, (1.0, 2.0, 2.0, 100.0, 200.0), strict=True):
        device.contribute(10, device.constant(value))
    for device in devices:
        device.receive()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (left_out,) = [line["left_out"] for line in lines if line["kind"] == "average"]
    assert left_out == ["orin", "orin"]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (told,) = [event["left_out"] for event in events if event["kind"] == "averaged"]
    assert [text[:22] for text in told] == ["orin: its norm is 50 t", "orin: its norm is 100 "]


def test_the_whole_trunk_is_encoded_once_for_all_that_join(bundle: Bundle) -> None:
    rounds = Rounds(load_file(bundle.path / TRUNK), "fp32")
    for number in range(KEPT_ROUNDS + 1):
        rounds.close({name: np.ones(shape, np.float32) for name, shape in rounds.shapes.items()}, {})
        whole, body = rounds.since(0)
        assert whole is True
        assert rounds.since(0)[1] is body, number
        assert body == encode_changes(rounds.trunk, "fp32")
    rounds.close({name: np.ones(shape, np.float32) for name, shape in rounds.shapes.items()}, {})
    assert max(len(value) for value in vars(rounds).values() if isinstance(value, bytes)) == 0  # no copy stays for ever


def test_a_round_stands_though_an_older_file_cannot_be_removed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = load_file(bundle.path / TRUNK)
    rounds = Rounds(trunk, "fp32", tmp_path)

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", locked)
    for number in range(1, KEPT_ROUNDS + 3):
        rounds.close({name: np.ones(shape, np.float32) for name, shape in rounds.shapes.items()}, {})
        assert Rounds(trunk, "fp32", tmp_path).newest == rounds.newest == number


def test_what_rounding_has_left_goes_into_the_next_round(bundle: Bundle) -> None:
    trunk = load_file(bundle.path / TRUNK)
    rounds = Rounds(trunk, "int8")
    rng = np.random.default_rng(1)
    change = {name: 1e-3 * rng.standard_normal(value.shape).astype(np.float32) for name, value in trunk.items()}
    for _ in range(50):
        rounds.close(change, {})
    for name, value in trunk.items():  # one rounding's error in all, not fifty
        step = np.abs(change[name]).max() / 127
        assert np.abs(rounds.trunk[name] - value - 50 * change[name].astype(np.float64)).max() < 2 * step + 1e-5
