"""A change of the trunk and its answer over a real socket: checked, and continued after a cut."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from adc_edge.codec.trunk_changes import added, decode_changes, encode_changes, shapes_of
from adc_edge.edge_runtime.fleet.exchange import TrunkExchange, brought_forward, check_fleet
from adc_edge.edge_runtime.fleet.state import FleetState
from adc_edge.errors import CheckpointError, ProtocolError
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.fleet_messages import FleetTerms, TrunkAverage, TrunkDelta
from adc_edge.wire.framing import FAST_CHUNK_BYTES
from tests.conftest import Proxy
from tests.edge_runtime.fleet.conftest import StartsTrainer
from tests.edge_runtime.fleet.stub_trainer import StubTrainer
from tests.stub_device import Device

Spoils = Callable[[TrunkAverage, bytes], tuple[TrunkAverage, bytes]]


def change(server: StubTrainer, base: int = 0, images: int = 8) -> tuple[TrunkDelta, bytes]:
    """The first change of session 1."""
    rng = np.random.default_rng(0)
    body = encode_changes(
        {name: rng.standard_normal(shape, np.float32) for name, shape in server.shapes.items()}, server.precision
    )
    return TrunkDelta(1, 0, base, 0, len(body), images, server.precision), body


def ask(bundle: Bundle, server: StubTrainer, endpoint: str = "", base: int = 0) -> tuple[TrunkAverage, bytes]:
    device = Device(bundle, endpoint or server.endpoint)
    try:
        device.session.open(30)
        answer, body = TrunkExchange(device.session, server.shapes).ask(*change(server, base), outage_s=30)
        return answer, bytes(body)
    finally:
        device.session.close()


def changed(**values: int) -> Spoils:
    return lambda answer, body: (msgspec.structs.replace(answer, **values), body)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda a, b: (msgspec.structs.replace(a, body_bytes=len(b) - 1), b[:-1]), ProtocolError, "for rounds 0 to 1"),
        (changed(round=2), ProtocolError, "for rounds 0 to 2"),
        (changed(step=4), ProtocolError, "a TrunkAverage"),
        (lambda a, b: (msgspec.structs.replace(a, base=3, round=2, body_bytes=0), b""), CheckpointError, "round 2"),
    ],
    ids=["size", "rounds", "step", "lost rounds"],
)
def test_an_answer_that_does_not_fit_is_refused(
    bundle: Bundle, fleet_trainer: StartsTrainer, spoil: Spoils, error: type[Exception], words: str
) -> None:
    with fleet_trainer() as server:
        server.answer_as = spoil
        with pytest.raises(error, match=words):
            ask(bundle, server, base=3 if error is CheckpointError else 0)


def test_a_round_of_another_fleet_is_refused_and_the_bundles_trunk_is_not() -> None:
    terms = FleetTerms("averaged", 4, "int8", 3, fleet=8)
    with pytest.raises(CheckpointError, match="round 2 of another one"):
        check_fleet(FleetState(10, 2, fleet=7), terms)
    for ours in (FleetState(10, 2, fleet=8), FleetState(10, 2), FleetState(0, 0, fleet=7), FleetState()):
        check_fleet(ours, terms)
    check_fleet(FleetState(10, 2, fleet=7), FleetTerms("averaged", 4, "int8", 3))


def test_an_answer_with_a_number_that_is_not_finite_is_refused(bundle: Bundle, fleet_trainer: StartsTrainer) -> None:
    with fleet_trainer(precision="fp32") as server:
        trunk = server.trunk
        answer, body = ask(bundle, server)
    spoilt = memoryview(body[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(ProtocolError) as refusal:
        brought_forward(trunk, answer, spoilt)
    assert refusal.value.code == "nan"


def test_changes_of_several_rounds_and_the_whole_trunk_give_the_same_bits(
    bundle: Bundle, fleet_trainer: StartsTrainer
) -> None:
    with fleet_trainer() as server:
        first = server.trunk
        server.rounds = [change(server)[1]] * 2
        for body in server.rounds:
            server.trunk = added(server.trunk, decode_changes(body, server.shapes, "int8"))
        server.counted = {1: 0}
        answer, body = ask(bundle, server)
        assert not answer.whole
        by_rounds = brought_forward(first, answer, memoryview(body))
        whole = encode_changes(server.trunk, "fp32")
        answer = msgspec.structs.replace(answer, whole=True, body_bytes=len(whole))
        at_once = brought_forward(first, answer, memoryview(whole))
        for name, value in server.trunk.items():
            assert value.tobytes() == by_rounds[name].tobytes() == at_once[name].tobytes()


def test_a_change_goes_on_where_a_cut_broke_it_off(bundle: Bundle, fleet_trainer: StartsTrainer) -> None:
    with fleet_trainer(precision="fp32") as server, Proxy(server.endpoint) as proxy:
        server.trunk = {"weight": np.zeros((300, 1000), np.float32)}
        server.shapes = shapes_of(server.trunk)
        size = change(server)[0].body_bytes
        assert size > 3 * FAST_CHUNK_BYTES
        proxy.cut_after(size - FAST_CHUNK_BYTES // 2)
        answer, _ = ask(bundle, server, proxy.endpoint)
        assert (answer.round, proxy.cuts) == (1, 1)
        assert len(server.deltas) == 1
        assert proxy.up < 1.5 * size
