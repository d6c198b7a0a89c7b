"""Sessions of a trainer: each step is due once and answered again on request; connections and sessions are bounded."""

from __future__ import annotations

import itertools
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from adc_edge.cloud_trainer import registry as module
from adc_edge.cloud_trainer.record.presence import GuardedConnection
from adc_edge.cloud_trainer.registry import Peer, SessionRegistry
from adc_edge.cloud_trainer.scheduling.messages import QueuedMessage
from adc_edge.cloud_trainer.served_session import ServedSession, SessionRecord
from adc_edge.errors import ProtocolError
from adc_edge.storage.journal import JournalKey
from adc_edge.wire.framing import Assembler, to_frames
from adc_edge.wire.headers import unpack_from_device
from adc_edge.wire.message import CHUNK_BYTES
from adc_edge.wire.messages import VERSION, Evaluate, Evaluated, FromDevice, Gradient, Hello

NUMBERS = itertools.count()
JUDGED = Evaluated(1, 3, 0, 10, 9, 0.5, 0.1)


def hello(session: int = 1, next_step: int = 0, incarnation: int = 1, durable: int = 0, steps: int = 0) -> Hello:
    return Hello(VERSION, "digest", session, incarnation, "orin", next_step, durable, 0, steps)


def inbox() -> Assembler[FromDevice]:
    return Assembler(unpack_from_device, lambda message: getattr(message, "body_bytes", 0))


def route() -> bytes:
    return b"route %d" % next(NUMBERS)


def connect(
    sessions: SessionRegistry, said: Hello, owner: str = "", way: bytes | None = None
) -> tuple[ServedSession, Peer]:
    """A Hello over a connection, a new one unless told, as the trainer handles it."""
    way = way or route()
    peer = sessions.peer(way, 5, owner, inbox)
    peer.connection = GuardedConnection()
    session = sessions.find(said, owner)
    session.resume(said)
    sessions.open(session, way)
    return session, peer


def refused(sessions: SessionRegistry, said: Hello, owner: str = "") -> str:
    with pytest.raises(ProtocolError) as caught:
        connect(sessions, said, owner)
    return caught.value.code


def reply(step: int, session: int = 1) -> tuple[Gradient, bytes]:
    body = f"gradient of step {step} ".encode() * 50
    return Gradient(session, step, 0, step + 1, len(body), "fp32", 0.5, 0.25, 0.1), body


def answer(session: ServedSession, step: int, part: int | None = None) -> tuple[Gradient | Evaluated, bytes] | None:
    kept = session.answer(JournalKey(step, part=part))
    return None if kept is None else (kept[0], bytes(kept[1]))


def train(session: ServedSession, *steps: int) -> None:
    for step in steps:
        assert session.due(JournalKey(step))
        session.record_answer(*reply(step, session.id))
        session.write()


def restarted(sessions: SessionRegistry, directory: Path, **applied: int) -> SessionRegistry:
    """A new process on the same directory, with the sessions of a checkpoint: of now, or with fewer steps applied."""
    kept = msgspec.json.decode(msgspec.json.encode(sessions.records()), type=dict[int, SessionRecord])
    for number, steps in applied.items():
        kept[int(number[1:])].applied = steps
    again = SessionRegistry(directory)
    again.restore(kept)
    return again


@contextmanager
def full_disk() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def sessions(tmp_path: Path) -> SessionRegistry:
    return SessionRegistry(tmp_path)


def test_each_step_is_due_once_and_every_one_before_it_is_answered_again_alike(sessions: SessionRegistry) -> None:
    session, _ = connect(sessions, hello())
    for step in range(4):
        train(session, step)
        assert [session.due(JournalKey(before)) for before in range(step + 1)] == [False] * (step + 1)
        assert [answer(session, before) for before in range(step + 1)] == [reply(before) for before in range(step + 1)]
    for wrong in (5, 7, 10**6):
        with pytest.raises(ProtocolError, match=f"step {wrong}") as caught:
            session.due(JournalKey(wrong))
        assert caught.value.code == "order"
    assert session.due(JournalKey(4))


def test_answers_and_steps_applied_survive_the_trainer(sessions: SessionRegistry, tmp_path: Path) -> None:
    session, _ = connect(sessions, hello())
    train(session, 0, 1, 2)
    session.keep(JournalKey(3, part=0), JUDGED)
    session.write()
    connect(sessions, hello(2))
    sessions.sync()
    again = restarted(sessions, tmp_path)
    assert {number: s.applied for number, s in again.records().items()} == {1: 3, 2: 0}
    session, _ = connect(again, hello(next_step=1))
    assert [answer(session, step) for step in range(3)] == [reply(step) for step in range(3)]
    assert answer(session, 3, part=0) == (JUDGED, b"")
    assert session.due(JournalKey(3))
    assert session.oldest() == 0


def test_a_trainer_back_from_a_checkpoint_forgets_answers_to_steps_that_it_has_not_applied(
    sessions: SessionRegistry, tmp_path: Path
) -> None:
    session, _ = connect(sessions, hello())
    train(session, *range(5))
    again = restarted(sessions, tmp_path, s1=3)
    session, _ = connect(again, hello(next_step=5))
    assert session.applied == 3
    assert [answer(session, step) for step in (2, 3, 4)] == [reply(2), None, None]
    train(session, 3, 4)
    assert session.oldest() == 0


def test_going_back_to_a_checkpoint_makes_every_device_say_hello_again(sessions: SessionRegistry) -> None:
    session, peer = connect(sessions, hello())
    train(session, 0, 1)
    stood = {1: SessionRecord("orin", "", 1)}
    sessions.restore(stood)
    assert peer.session is None
    session, _ = connect(sessions, hello(next_step=1))
    assert session.applied == 1
    assert answer(session, 1) is None
    assert not session.due(JournalKey(0))


def test_answers_that_the_device_has_made_durable_are_dropped(sessions: SessionRegistry, tmp_path: Path) -> None:
    session, _ = connect(sessions, hello())
    train(session, *range(6))
    session.prune(2)
    assert (session.oldest(), answer(session, 1), answer(session, 2)) == (2, None, reply(2))
    connect(sessions, hello(next_step=6, durable=4))
    assert session.oldest() == 4
    with pytest.raises(ProtocolError):
        session.due(JournalKey(3))
    session.keep(JournalKey(6, part=0), JUDGED)
    session.write()
    session.prune(100)  # more than was applied: a device cannot have had what was not
    assert [path.name for path in tmp_path.rglob("0*") if path.is_file()] == ["00000006.0"]


def test_a_device_older_than_the_log_reaches_back_is_refused_and_one_within_it_is_not(
    sessions: SessionRegistry, tmp_path: Path
) -> None:
    session, _ = connect(sessions, hello())
    train(session, *range(6))
    session.prune(3)
    for stood in (0, 2):
        assert refused(sessions, hello(next_step=stood)) == "history"
    for stood in (3, 5, 6, 9):  # 9: a device that is ahead feeds this trainer from its journal
        assert connect(sessions, hello(next_step=stood))[0] is session
    again = restarted(sessions, tmp_path)
    assert refused(again, hello(next_step=2)) == "history"
    connect(again, hello(next_step=3))


def test_a_device_older_than_a_gap_in_the_log_is_refused(sessions: SessionRegistry, tmp_path: Path) -> None:
    session, _ = connect(sessions, hello())
    train(session, *range(4))
    (damaged,) = tmp_path.rglob("00000001-0")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = restarted(sessions, tmp_path)
    assert refused(again, hello(next_step=1)) == "history"
    assert connect(again, hello(next_step=2))[0].oldest() == 2


def test_a_full_disk_loses_no_answer_that_the_device_still_waits_for(sessions: SessionRegistry) -> None:
    session, _ = connect(sessions, hello())
    train(session, 0, 1)
    with full_disk():
        for step in (2, 3):
            session.record_answer(*reply(step))
            with pytest.raises(OSError, match=f"{step:08d}"):
                session.write()
            assert not session.due(JournalKey(step))
            assert answer(session, step) == reply(step)
            assert connect(sessions, hello(next_step=step))[0] is session
    assert session.applied == 4
    assert answer(session, 2) is None
    assert session.oldest() == 3
    assert refused(sessions, hello(next_step=2)) == "history"


def test_an_answer_is_there_as_soon_as_it_is_given_and_on_disk_once_written(
    sessions: SessionRegistry, tmp_path: Path
) -> None:
    session, _ = connect(sessions, hello())
    train(session, 0, 1)
    session.record_answer(*reply(2))
    assert session.oldest() == 0  # what is in memory and what is on disk are one log
    assert [answer(session, step) for step in range(3)] == [reply(step) for step in range(3)]
    assert connect(sessions, hello(next_step=0))[0] is session
    for written, kept in ((False, None), (True, reply(2))):
        if written:
            session.write()
        again, _ = connect(restarted(sessions, tmp_path), hello(next_step=3))
        assert answer(again, 2) == kept


def test_a_log_found_in_the_directory_of_an_unknown_session_is_ignored(
    sessions: SessionRegistry, tmp_path: Path
) -> None:
    session, _ = connect(sessions, hello())
    train(session, 0, 1)
    session.keep(JournalKey(2, part=0), JUDGED)
    session.write()
    session, _ = connect(SessionRegistry(tmp_path), hello())
    assert session.applied == 0
    assert [answer(session, 0), answer(session, 2, part=0)] == [None, None]
    train(session, 0)


def test_the_newest_process_speaks_for_the_session_and_an_older_one_is_told_so(sessions: SessionRegistry) -> None:
    session, old = connect(sessions, hello(incarnation=1))
    same, new = connect(sessions, hello(incarnation=2), way=b"new")
    assert same is session
    assert (old.session, new.session) == (None, session)
    assert refused(sessions, hello(incarnation=1)) == "superseded"
    assert new.session is session
    assert connect(sessions, hello(incarnation=2))[0] is session  # its own reconnects are welcome
    assert connect(sessions, hello(incarnation=3))[0] is session
    assert refused(sessions, hello(incarnation=2)) == "superseded"


def test_a_session_belongs_to_the_key_that_began_it(sessions: SessionRegistry, tmp_path: Path) -> None:
    connect(sessions, hello(), "key of orin")
    for other in ("key of nano", ""):
        assert refused(sessions, hello(incarnation=2), other) == "identity"
    again = restarted(sessions, tmp_path)
    assert refused(again, hello(incarnation=2), "key of nano") == "identity"
    connect(again, hello(incarnation=2), "key of orin")


def test_a_key_speaks_for_one_session_at_a_time(sessions: SessionRegistry) -> None:
    first, old = connect(sessions, hello(1, incarnation=1), "key")
    _, other = connect(sessions, hello(9, incarnation=9), "another")
    second, new = connect(sessions, hello(2, incarnation=2), "key")
    assert (old.session, new.session) == (None, second)
    assert other.session is not None
    assert (
        refused(sessions, hello(1, incarnation=1), "key") == "superseded"
    )  # two processes would supersede each other for ever
    assert connect(sessions, hello(1, incarnation=3), "key")[0] is first  # a process started anew is meant
    assert new.session is None
    peers = [connect(sessions, hello(number, incarnation=number))[1] for number in (4, 5, 6)]  # no keys: no such rule
    assert [peer.session.id for peer in peers if peer.session] == [4, 5, 6]


def test_a_connection_whose_session_is_taken_away_is_to_be_told_once_and_no_other(sessions: SessionRegistry) -> None:
    def told() -> list[bytes]:
        return [way for way, _ in sessions.dismissed()]

    connect(sessions, hello(1, incarnation=1), "key", way=b"first")
    connect(sessions, hello(9, incarnation=9), "another", way=b"other")
    assert told() == []
    connect(sessions, hello(2, incarnation=2), "key", way=b"second")  # the same key, another session
    assert (told(), told()) == ([b"first"], [])
    connect(sessions, hello(2, incarnation=3), "key", way=b"third")  # the same session, a newer process
    assert told() == [b"second"]
    sessions.restore(sessions.records())
    connect(sessions, hello(2, incarnation=3), "key", way=b"third")  # it says Hello again before it is told
    assert told() == [b"other"]
    sessions.leave(b"third")
    connect(sessions, hello(2, incarnation=3), "key", way=b"fourth")
    assert told() == []


def test_a_session_that_gives_way_has_its_connection_told(
    sessions: SessionRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 1)
    session, peer = connect(sessions, hello(1), way=b"first")
    wait(sessions, session, peer, b"first")
    connect(sessions, hello(2))
    assert (sessions.dismissed(), sessions.waiting.held_bytes()) == ([(b"first", peer)], 0)


def wait(sessions: SessionRegistry, session: ServedSession, peer: Peer, way: bytes, size: int = 100) -> None:
    """Have a message wait that nobody answers: the session is paused."""
    sessions.waiting.fair.control({}, {session.id})
    message = Evaluate(session.id, 0, 0, 7, size, 1, "fp32")
    sessions.waiting.push(QueuedMessage(way, peer, message, memoryview(bytes(size))))


@pytest.mark.parametrize("how", ["same key", "same connection", "cut off", "gone", "restored"])
def test_the_waiting_messages_of_a_paused_session_that_nobody_speaks_for_are_dropped(
    sessions: SessionRegistry, how: str
) -> None:
    session, peer = connect(sessions, hello(1), "key", way=b"first")
    wait(sessions, session, peer, b"first")
    assert sessions.waiting.held_bytes() == 100
    if how.startswith("same"):
        connect(sessions, hello(2, incarnation=2), "key", way=b"second" if how == "same key" else b"first")
    elif how == "cut off":
        sessions.cut_off(b"first")
    elif how == "gone":
        sessions.leave(b"first")
    else:
        sessions.restore(sessions.records())
    assert sessions.waiting.held_bytes() == 0
    _, again = connect(sessions, hello(1, incarnation=3), "key")  # it need not send all of it again
    assert again.inbox.unfinished == ((0, 0) if how == "restored" else (7, 100))


def test_a_session_may_use_its_part_of_the_memory_and_a_paused_one_a_quarter(sessions: SessionRegistry) -> None:
    session, peer = connect(sessions, hello(1), way=b"1")
    sessions.waiting.push(QueuedMessage(b"1", peer, Evaluate(1, 0, 0, 7, 30, 1, "fp32"), memoryview(bytes(30))))

    def room() -> int:
        return max((size for size in range(1, 100) if sessions.make_room(size, 100, session)), default=0)

    assert room() == 70  # alone
    others = list[Peer]()
    for number, left in ((2, 20), (3, 3), (4, 0), (5, 0)):
        others.append(connect(sessions, hello(number))[1])
        assert room() == left
    for other, left in zip(others, (0, 3, 20, 70), strict=True):  # they end without a word
        assert other.connection is not None
        other.connection.ended = True
        assert room() == left
    sessions.waiting.fair.control({}, {1})
    assert room() == 0


def test_connections_are_bounded_and_those_without_a_session_go_first(
    sessions: SessionRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 3)
    connect(sessions, hello(), way=b"device")
    for number in range(10):
        sessions.peer(b"%d" % number, 5, "", inbox)
        assert len(sessions.peers) <= 3
    assert set(sessions.peers) == {b"device", b"8", b"9"}
    sessions.peer(b"8", 5, "", inbox)  # it speaks again: 9 is silent for longer
    sessions.peer(b"10", 5, "", inbox)
    assert set(sessions.peers) == {b"device", b"8", b"10"}


def test_when_every_connection_has_a_session_the_longest_silent_one_makes_room(
    sessions: SessionRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 3)
    for number in range(5):
        connect(sessions, hello(number), way=b"%d" % number)
    assert set(sessions.peers) == {b"2", b"3", b"4"}


def test_sessions_are_bounded_and_those_that_have_learned_something_are_kept(
    sessions: SessionRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 3)
    learned, _ = connect(sessions, hello(1))
    train(learned, 0)
    fresh = [connect(sessions, hello(number)) for number in (2, 3)]
    connect(sessions, hello(4))
    assert set(sessions.records()) == {1, 3, 4}
    assert fresh[0][1].session is None
    for number in (3, 4):
        train(connect(sessions, hello(number, incarnation=2))[0], 0)
    assert refused(sessions, hello(5)) == "busy"
    assert set(sessions.records()) == {1, 3, 4}
    learned.record.finished = True
    connect(sessions, hello(5))
    assert set(sessions.records()) == {3, 4, 5}
    assert not (tmp_path / f"{1:016x}").exists()


def test_one_key_may_begin_so_many_sessions_and_no_more(
    sessions: SessionRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS_OF_A_KEY", 2)
    connect(sessions, hello(1), "other")
    for number in (2, 3, 4):
        connect(sessions, hello(number, incarnation=number), "key")
    assert set(sessions.records()) == {1, 3, 4}


def test_a_device_that_is_done_is_counted_and_its_log_goes(sessions: SessionRegistry, tmp_path: Path) -> None:
    session, _ = connect(sessions, hello())
    train(session, 0, 1)
    connect(sessions, hello(2, incarnation=2))
    session.record.finished = True
    session.forget()
    session.forget()  # its Bye may come twice
    assert sessions.finished() == 1
    assert not (tmp_path / f"{1:016x}").exists()
    again = restarted(sessions, tmp_path)
    assert again.finished() == 1
    session, _ = connect(again, hello(next_step=2))  # the acknowledgement was lost, and it sends Bye again
    assert session.applied == 2
    assert again.finished() == 1
    train(session, 2)  # it goes on after all
    assert again.finished() == 0


def long_step(session: int = 1, transfer: int = 7) -> list[tuple[bytes, memoryview]]:
    return list(to_frames(Evaluate(session, 0, 0, transfer, 3 * CHUNK_BYTES, 1, "fp32"), bytes(3 * CHUNK_BYTES)))


def test_a_message_in_progress_stays_with_the_session_when_its_connection_changes(
    sessions: SessionRegistry,
) -> None:
    frames = long_step()
    _, old = connect(sessions, hello())
    old.inbox.feed(*frames[0])
    _, new = connect(sessions, hello())
    assert new.inbox.unfinished == (7, CHUNK_BYTES)
    assert old.inbox is not new.inbox
    with pytest.raises(ProtocolError):
        old.inbox.feed(*frames[1])  # a late piece of the old connection must not get in between
    assert new.inbox.feed(*frames[1]) is None
    assert new.inbox.feed(*frames[2]) is not None


def test_a_message_in_progress_stays_while_the_device_is_not_connected(sessions: SessionRegistry) -> None:
    _, old = connect(sessions, hello(), way=b"old")
    old.inbox.feed(*long_step()[0])
    sessions.leave(b"old")
    sessions.leave(b"old")
    assert sessions.held_bytes() == 3 * CHUNK_BYTES
    assert connect(sessions, hello())[1].inbox.unfinished == (7, CHUNK_BYTES)


def test_two_sessions_over_one_connection_do_not_share_a_message_in_progress(sessions: SessionRegistry) -> None:
    way = route()
    first, peer = connect(sessions, hello(1), way=way)
    peer.inbox.feed(*long_step(1)[0])
    second, _ = connect(sessions, hello(2), way=way)
    assert peer.session is second
    assert peer.inbox.unfinished == (0, 0)
    assert connect(sessions, hello(1))[1].inbox.unfinished == (7, CHUNK_BYTES)
    assert first.inbox is not second.inbox


def test_a_connection_that_was_cut_off_stays_known_speaks_for_no_session_and_holds_nothing(
    sessions: SessionRegistry,
) -> None:
    session, peer = connect(sessions, hello(), way=b"cut")
    other = sessions.peer(b"other", 6, "", inbox)
    other.inbox.feed(*long_step(3)[0])
    for way in (b"cut", b"other", b"never seen"):
        sessions.cut_off(way)
    assert sessions.held_bytes() == 0
    assert peer.session is other.session is None
    assert sessions.peer(b"cut", 5, "", inbox) is peer
    assert peer.cut_off
    _, again = connect(sessions, hello(incarnation=2), way=b"again")
    assert again.session is session
    assert not again.cut_off


def test_held_bytes_are_of_every_body_in_progress_and_each_counts_once(sessions: SessionRegistry) -> None:
    assert sessions.held_bytes() == 0
    _, device = connect(sessions, hello())
    other = sessions.peer(b"other", 6, "", inbox)
    device.inbox.feed(*long_step()[0])
    assert sessions.held_bytes() == 3 * CHUNK_BYTES
    other.inbox.feed(*long_step(3)[0])
    assert sessions.held_bytes() == 6 * CHUNK_BYTES
    sessions.leave(b"other")
    for frame in long_step()[1:]:
        device.inbox.feed(*frame)
    assert sessions.held_bytes() == 0


def test_a_body_that_stopped_growing_gives_way_to_others_and_a_growing_one_does_not(
    sessions: SessionRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stalled = connect(sessions, hello(1))
    stalled.inbox.feed(*long_step(1)[0])
    assert not sessions.make_room(3 * CHUNK_BYTES, most=5 * CHUNK_BYTES)
    assert sessions.make_room(3 * CHUNK_BYTES, most=6 * CHUNK_BYTES)
    assert stalled.inbox.unfinished == (7, CHUNK_BYTES)
    monkeypatch.setattr(module, "STALE_S", 0.0)
    assert sessions.make_room(3 * CHUNK_BYTES, most=5 * CHUNK_BYTES)
    assert stalled.inbox.unfinished == (0, 0)
    assert not sessions.make_room(6 * CHUNK_BYTES, most=5 * CHUNK_BYTES)


def test_the_number_of_micro_batches_changes_with_a_step_that_is_learned_and_not_with_one_that_is_refused(
    sessions: SessionRegistry,
) -> None:
    session, _ = connect(sessions, hello())
    for count in (2, 3, 2, 3):  # each is refused after this, say for its labels
        assert session.due(JournalKey(0), count)
    assert session.due(JournalKey(0))
    for part in range(3):
        assert session.due(JournalKey(0, part), 3)
        session.begin_step(3).learned += 1
        given, body = reply(0)
        session.record_answer(msgspec.structs.replace(given, micro_batch=part), body)
        session.write()
    assert session.applied == 1
    with pytest.raises(ProtocolError):
        session.due(JournalKey(1, 1), 3)
    assert session.due(JournalKey(1), 1)
    session.begin_step(1).learned += 1
    session.record_answer(*reply(1))
    session.write()
    assert (session.applied, session.oldest()) == (2, 0)


def test_a_device_that_keeps_nothing_is_answered_from_memory_and_costs_no_log(
    sessions: SessionRegistry, tmp_path: Path
) -> None:
    nothing = msgspec.structs.replace(hello(), durable=None, micro_batches=2)
    session, _ = connect(sessions, nothing)
    for step in range(3):
        for part in range(2):
            given, body = reply(step)
            given = msgspec.structs.replace(given, micro_batch=part)
            session.begin_step().learned += 1
            session.record_answer(given, body)
            session.write()
            session.prune(None)
    assert session.applied == 3
    for part in range(2):  # in flight, it may ask again over another connection
        assert session.answer(JournalKey(2, part)) is not None
    assert session.answer(JournalKey(1, 1)) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
