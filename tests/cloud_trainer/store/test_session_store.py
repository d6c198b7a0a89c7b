"""The store of a session: what a restart finds, what is cut off, and what it holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from adc_edge.cloud_trainer.store.seal import StoreSeal
from adc_edge.cloud_trainer.store.session_store import SessionStore, WholeStore
from adc_edge.errors import CheckpointError, ProtocolError
from adc_edge.storage.bundle import Bundle
from tests.cloud_trainer.store.messages import evaluation, step

WHOLE = WholeStore("orin", "", 3, 9, 2)


def filled(bundle: Bundle, path: Path, seal: StoreSeal | None = None, steps: int = 3) -> SessionStore:
    store = SessionStore(path, 1, seal or StoreSeal())
    for number in range(steps):
        for micro_batch in range(2):
            store.keep_step(*step(bundle, number, micro_batch))
    return store


@pytest.mark.parametrize("secret", [None, b"key"])
def test_a_restart_finds_the_same_messages(bundle: Bundle, tmp_path: Path, secret: bytes | None) -> None:
    filled(bundle, tmp_path / "s", StoreSeal(secret)).keep_evaluation(*evaluation(bundle, 3))
    again = SessionStore(tmp_path / "s", 1, StoreSeal(secret))
    message, body = again.step(2, 1)
    sent, sent_body = step(bundle, 2, 1)
    assert message == msgspec.structs.replace(sent, transfer=0, durable=None, replay=False)
    assert bytes(body) == sent_body
    assert bytes(again.evaluation(3, 0)[1]) == evaluation(bundle, 3)[1]
    assert (again.micro_batches(2), again.micro_batches(3), again.parts(3)) == (2, 0, 1)
    sizes = 6 * len(sent_body) + len(evaluation(bundle, 3)[1])
    assert sizes < again.held_bytes < sizes + 7 * 400


def test_a_torn_record_is_absent_and_a_damaged_one_is_named(bundle: Bundle, tmp_path: Path) -> None:
    store = filled(bundle, tmp_path / "s")
    path = tmp_path / "s" / "steps" / "00000001-1"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="00000001-1: missing or damaged"):
        store.step(1, 1)
    assert SessionStore(tmp_path / "s", 1, StoreSeal()).micro_batches(1) == 1


def test_steps_after_the_checkpoint_are_dropped_until_the_store_is_whole(bundle: Bundle, tmp_path: Path) -> None:
    store = filled(bundle, tmp_path / "s", steps=4)
    store.forget(3)
    assert [store.micro_batches(number) for number in range(4)] == [2, 2, 2, 0]
    assert store.held_bytes == SessionStore(tmp_path / "s", 1, StoreSeal()).held_bytes
    store.complete(WHOLE, lambda step: 2)
    again = SessionStore(tmp_path / "s", 1, StoreSeal())
    again.forget(1)
    assert again.whole == msgspec.structs.replace(WHOLE, micro_batches=((0, 2),))
    assert again.micro_batches(2) == 2
    again.delete()
    assert not (tmp_path / "s").exists()


def test_a_store_with_a_gap_is_not_whole(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="step 2 is not in the activation store"):
        filled(bundle, tmp_path / "s", steps=2).complete(WHOLE, lambda step: 2)
    assert not (tmp_path / "s" / "whole.json").exists()


def test_a_store_without_a_part_of_a_step_is_not_whole(bundle: Bundle, tmp_path: Path) -> None:
    filled(bundle, tmp_path / "s")
    (tmp_path / "s" / "steps" / "00000001-1").unlink()
    with pytest.raises(ProtocolError, match="step 1 is not in the activation store"):
        SessionStore(tmp_path / "s", 1, StoreSeal()).complete(WHOLE, lambda step: 2)


def test_a_step_of_another_number_of_micro_batches_tells_it_itself(bundle: Bundle, tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "s", 1, StoreSeal())
    counts = [2, 1, 1]
    for number, count in enumerate(counts):
        for micro_batch in range(count):
            message, body = step(bundle, number, micro_batch)
            store.keep_step(msgspec.structs.replace(message, micro_batches=count), body)
    store.complete(WHOLE, lambda step: 1)
    assert store.whole is not None
    assert store.whole.micro_batches == ((0, 2), (1, 1))
    assert [store.micro_batches(number) for number in range(3)] == counts


def test_a_store_that_begins_late_is_whole_without_the_steps_before(bundle: Bundle, tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "s", 1, StoreSeal())
    for number, count in ((2, 2), (3, 1), (4, 1)):
        for micro_batch in range(count):
            message, body = step(bundle, number, micro_batch)
            store.keep_step(msgspec.structs.replace(message, micro_batches=count), body)
    late = msgspec.structs.replace(WHOLE, sent=5, first=2)
    with pytest.raises(ProtocolError, match="step 1 is not in the activation store"):
        store.complete(msgspec.structs.replace(late, first=1), lambda step: 2)
    store.complete(late, lambda step: 2)
    again = SessionStore(tmp_path / "s", 1, StoreSeal())
    assert again.whole == msgspec.structs.replace(late, micro_batches=((2, 2), (3, 1)))
    assert [again.micro_batches(number) for number in range(2, 5)] == [2, 1, 1]
    again.check_reached(2)
    with pytest.raises(CheckpointError, match=r"the steps from 2 on, and the newest whole checkpoint is of step 1"):
        again.check_reached(1)


def test_what_was_written_about_other_stores_stays_as_it_was(bundle: Bundle, tmp_path: Path) -> None:
    filled(bundle, tmp_path / "s").complete(WHOLE, lambda step: 2)
    text = (tmp_path / "s" / "whole.json").read_text()
    assert "first" not in text
    assert WHOLE.kept == range(3)


@pytest.mark.parametrize("name", ["steps/00000001-0", "steps/00000002-1", "evaluation/00000003.0"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_damaged_file_of_a_whole_store_is_named_by_every_restart_and_stays(
    bundle: Bundle, tmp_path: Path, name: str, lost: bool
) -> None:
    store, path = filled(bundle, tmp_path / "s"), tmp_path / "s" / name
    store.keep_evaluation(*evaluation(bundle, 3))
    store.complete(WHOLE, lambda step: 2)
    whole, damaged = path.read_bytes(), path.read_bytes()[:-1]
    if lost:
        path.unlink()
    else:
        path.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{name}: missing or damaged"):
            SessionStore(tmp_path / "s", 1, StoreSeal())
        assert lost or path.read_bytes() == damaged
    path.write_bytes(whole)
    assert SessionStore(tmp_path / "s", 1, StoreSeal()).parts(3) == 1


def test_another_key_is_found_when_the_store_is_opened(bundle: Bundle, tmp_path: Path) -> None:
    filled(bundle, tmp_path / "s", StoreSeal(b"key"))
    for other in (StoreSeal(b"other"), StoreSeal()):
        with pytest.raises(CheckpointError, match=r"s: the activation store is encrypted, and this trainer has"):
            SessionStore(tmp_path / "s", 1, other)
    filled(bundle, tmp_path / "clear")
    assert SessionStore(tmp_path / "clear", 1, StoreSeal(b"key")).step(1, 0)[0].step == 1


def test_a_record_in_the_clear_or_of_another_place_or_session_is_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    store = filled(bundle, tmp_path / "s", StoreSeal(b"key"))
    filled(bundle, tmp_path / "clear")
    other = SessionStore(tmp_path / "other", 2, StoreSeal(b"key"))
    message, body = step(bundle, 1)
    other.keep_step(msgspec.structs.replace(message, session=2), body)
    for source in ("s/steps/00000001-1", "s/steps/00000002-0", "other/steps/00000001-0", "clear/steps/00000001-0"):
        shutil.copy(tmp_path / source, tmp_path / "s" / "steps" / "00000001-0")
        with pytest.raises(CheckpointError, match=r"00000001-0: (another message|a record in the clear)"):
            store.step(1, 0)


def test_a_message_that_comes_again_replaces_the_first(bundle: Bundle, tmp_path: Path) -> None:
    store = filled(bundle, tmp_path / "s")
    held = store.held_bytes
    store.keep_step(*step(bundle, 1, 1))
    assert store.held_bytes == held
    for part in range(3):
        store.keep_evaluation(*evaluation(bundle, 3, part))
    store.keep_evaluation(*evaluation(bundle, 3, 0, images=5))
    assert store.parts(3) == 1
    assert store.evaluation(3, 0)[0].images == 5


def test_no_other_user_reads_what_is_kept(bundle: Bundle, tmp_path: Path) -> None:
    filled(bundle, tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_the_bytes_are_those_of_the_files(bundle: Bundle, tmp_path: Path) -> None:
    store = filled(bundle, tmp_path / "s")
    store.keep_evaluation(*evaluation(bundle, 3))
    files = [path for path in (tmp_path / "s").glob("*/0*") if path.is_file()]
    assert store.held_bytes == sum(path.stat().st_size for path in files)
    store.delete()
    assert store.held_bytes == 0


def test_a_message_for_which_there_is_no_room_is_not_kept(bundle: Bundle, tmp_path: Path) -> None:
    def refuse(size: int) -> None:
        raise ProtocolError(f"{size} bytes", "none", "", "size")

    store = SessionStore(tmp_path / "s", 1, StoreSeal(), refuse)
    with pytest.raises(ProtocolError):
        store.keep_step(*step(bundle, 0))
    assert (store.micro_batches(0), store.held_bytes) == (0, 0)
