"""The journal: an entry reads back bit for bit or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.storage import journal as journal_module
from adc_edge.storage.journal import Journal, JournalKey

SIZES = st.integers(0, 300) | st.sampled_from([4096, 65536, 200_000])
NUMBERS = st.integers(0, 2**31 - 1)
KEYS = st.builds(JournalKey, NUMBERS, NUMBERS, st.none()) | st.builds(JournalKey, NUMBERS, st.just(0), NUMBERS)


def content(key: JournalKey, size: int = 40) -> tuple[bytes, bytes]:
    """A header and a body that contain their key."""
    seed = f"{key.step} {key.micro_batch} {key.part} ".encode()
    return seed, (seed * (size // len(seed) + 1))[:size]


def whole(journal: Journal, key: JournalKey, size: int = 40) -> bool:
    """Whether the entry reads back as it was written; fails if it reads back as anything else."""
    kept = journal.read(key)
    assert kept is None or (kept[0], bytes(kept[1])) == content(key, size)
    return kept is not None


def filled(directory: Path, *keys: JournalKey) -> Journal:
    journal = Journal(directory)
    for key in keys:
        journal.append(key, *content(key))
    return journal


def names(directory: Path) -> set[str]:
    """File names of the entries, without files that are kept to be overwritten."""
    return {path.name for path in directory.iterdir() if not path.name.startswith("spare-")}


@given(st.dictionaries(KEYS, st.tuples(SIZES, SIZES, st.integers(0, 255)), max_size=5))
@settings(deadline=None, max_examples=60)
def test_an_entry_reads_back_bit_for_bit_now_and_after_a_restart(
    entries: dict[JournalKey, tuple[int, int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory) / "made" / "if absent")
        written = {k: (bytes([b]) * h, os.urandom(s)) for k, (h, s, b) in entries.items()}
        for key, (header, body) in written.items():
            journal.append(key, header, memoryview(body))
        journal.sync()
        for seen in (journal, Journal(journal.directory)):
            read = {key: seen.read(key) for key in written}
            assert {key: (kept[0], bytes(kept[1])) for key, kept in read.items() if kept} == written


def test_an_entry_that_was_never_appended_is_absent(tmp_path: Path) -> None:
    journal = filled(tmp_path, JournalKey(3), JournalKey(4, part=0))
    assert [
        journal.read(key) for key in (JournalKey(2), JournalKey(4), JournalKey(3, part=0), JournalKey(4, part=1))
    ] == [None] * 4


def test_an_entry_appended_again_replaces_the_first(tmp_path: Path) -> None:
    journal = filled(tmp_path, JournalKey(1))
    journal.append(JournalKey(1), b"second", b"body")
    kept = Journal(tmp_path).read(JournalKey(1))
    assert kept is not None
    assert (kept[0], bytes(kept[1])) == (b"second", b"body")


def test_oldest_is_the_start_of_the_unbroken_sequence_of_steps(tmp_path: Path) -> None:
    journal = filled(tmp_path, JournalKey(2), JournalKey(4), JournalKey(5), JournalKey(6), JournalKey(3, part=0))
    assert [journal.oldest(until) for until in range(9)] == [0, 1, 2, 2, 4, 4, 4, 4, 8]


def test_a_step_that_lacks_a_micro_batch_breaks_the_sequence(tmp_path: Path) -> None:
    journal = filled(
        tmp_path, *(JournalKey(step, part) for step in range(4) for part in range(3) if (step, part) != (1, 2))
    )
    assert [journal.oldest(until, lambda _: 3) for until in range(6)] == [0, 0, 2, 2, 2, 5]
    assert [journal.oldest(until, lambda _: 4) for until in range(5)] == [0, 1, 2, 3, 4]
    journal.forget(3)
    assert {key for key in (JournalKey(2, 1), JournalKey(3, 0), JournalKey(3, 2)) if journal.has(key)} == {
        JournalKey(2, 1)
    }


def test_pruning_removes_older_steps_and_their_evaluations_from_the_disk(tmp_path: Path) -> None:
    journal = filled(
        tmp_path,
        *(JournalKey(step) for step in range(5)),
        JournalKey(2, part=0),
        JournalKey(3, part=0),
        JournalKey(3, part=1),
    )
    journal.prune(3)
    assert names(tmp_path) == {"00000003-0", "00000004-0", "00000003.0", "00000003.1"}
    assert journal.read(JournalKey(2)) is None
    assert journal.oldest(5) == 3
    journal.prune(100)
    assert names(tmp_path) == set()


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=12))
@settings(deadline=None, max_examples=40)
def test_overwritten_files_hold_the_last_content(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory))
        for step, size in enumerate(sizes):
            journal.append(JournalKey(step), *content(JournalKey(step), size))
            journal.prune(step)  # all but this one
            assert len(list(Path(directory).iterdir())) <= 2
            assert whole(journal, JournalKey(step), size)
            assert whole(Journal(Path(directory)), JournalKey(step), size)


def test_spare_files_are_bounded_and_are_removed_on_request_or_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_SPARE_BYTES", 350)
    journal = filled(tmp_path, *(JournalKey(step) for step in range(8)))
    journal.prune(8)
    assert 1 <= len(list(tmp_path.iterdir())) <= 4
    journal.drop_spares()
    assert not list(tmp_path.iterdir())
    filled(tmp_path, JournalKey(1), JournalKey(2)).prune(3)
    assert len(list(tmp_path.iterdir())) == 2
    Journal(tmp_path)  # a new process does not know what is in them
    assert not list(tmp_path.iterdir())


def test_forgetting_removes_later_steps_but_no_answers_to_evaluations(tmp_path: Path) -> None:
    journal = filled(
        tmp_path,
        *(JournalKey(step) for step in range(5)),
        JournalKey(2, part=0),
        JournalKey(4, part=0),
        JournalKey(4, part=1),
    )
    journal.forget(3)
    assert names(tmp_path) == {"00000000-0", "00000001-0", "00000002-0", "00000002.0", "00000004.0", "00000004.1"}
    assert journal.read(JournalKey(3)) is None
    assert whole(journal, JournalKey(4, part=1))
    journal.append(JournalKey(3), *content(JournalKey(3)))
    assert whole(journal, JournalKey(3))


def test_a_new_journal_on_the_same_directory_finds_all_and_goes_on(tmp_path: Path) -> None:
    keys = [
        JournalKey(7),
        JournalKey(8),
        JournalKey(8, part=0),
        JournalKey(100_000_000),
        JournalKey(2**31 - 1, part=12),
    ]
    filled(tmp_path, *keys)
    journal = Journal(tmp_path)
    assert all(whole(journal, key) for key in keys)
    assert journal.oldest(9) == 7
    journal.prune(9)
    journal.sync()
    assert names(tmp_path) == {"100000000-0", "2147483647.12"}


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_an_entry_cut_short_or_changed_in_any_byte_counts_as_absent_and_the_others_stay(
    tmp_path: Path, damage: str
) -> None:
    filled(tmp_path, JournalKey(1), JournalKey(2), JournalKey(3))
    path = tmp_path / "00000002-0"
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(good[:place] if damage == "cut" else bad)
        journal = Journal(tmp_path)
        assert journal.read(JournalKey(2)) is None, place
        assert names(tmp_path) == {"00000001-0", "00000003-0"}
        assert whole(journal, JournalKey(1))
        assert whole(journal, JournalKey(3))
        assert journal.oldest(4) == 3


def test_an_entry_with_something_after_its_end_counts_as_absent(tmp_path: Path) -> None:
    filled(tmp_path, JournalKey(2))
    with (tmp_path / "00000002-0").open("ab") as file:
        file.write(b"\0")
    assert Journal(tmp_path).read(JournalKey(2)) is None


def test_damage_to_an_open_journal_is_noticed_when_the_entry_is_read(tmp_path: Path) -> None:
    journal = filled(tmp_path, JournalKey(1), JournalKey(2), JournalKey(3))
    (tmp_path / "00000002-0").write_bytes(b"overwritten by somebody")
    (tmp_path / "00000003-0").unlink()
    assert [whole(journal, JournalKey(step)) for step in (1, 2, 3)] == [True, False, False]
    journal.prune(9)
    assert names(tmp_path) == set()


def test_files_that_are_no_entries_are_removed(tmp_path: Path) -> None:
    filled(tmp_path, JournalKey(2))
    entry = (tmp_path / "00000002-0").read_bytes()
    for foreign in (
        "notes.txt",
        "2",
        "000000002",
        "00000002",
        "2-0",
        "00000002-00",
        "00000002-x",
        "00000003.",
        "00000003.x",
        ".4",
        "00000003.01",
        "٠٠٠٠٠٠٠٣",
        "-1",
    ):
        (tmp_path / foreign).write_bytes(entry)
    journal = Journal(tmp_path)
    assert names(tmp_path) == {"00000002-0"}
    journal.sync()
    assert journal.oldest(3) == 2


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Journal(tmp_path / "file")


APPEND_FOREVER = """
import itertools, pathlib, sys
from adc_edge.storage import journal as journal_module
from adc_edge.storage.journal import Journal, JournalKey
journal = Journal(pathlib.Path(sys.argv[1]))
for step in itertools.count():
    seed = f"{step} 0 None ".encode()
    journal.append(JournalKey(step), seed, (seed * 300_000)[:300_000])
    journal.prune(step - 20)
    print(step, flush=True)
"""


def test_a_process_killed_while_it_appends_loses_no_entry_and_leaves_no_part_of_one(
    tmp_path: Path,
) -> None:
    for attempt in range(5):
        directory = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", APPEND_FOREVER, str(directory)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            for _ in range(25 + attempt):
                said = process.stdout.readline()
            time.sleep(attempt * 0.0007)
            process.send_signal(signal.SIGKILL)
            said = [said, *process.stdout.readlines()][-1]
        assert process.wait() == -signal.SIGKILL
        last = int(said)
        journal = Journal(directory)
        assert all(whole(journal, JournalKey(step), 300_000) for step in range(last - 19, last + 1))
        assert len(names(directory)) <= 23
        assert all(whole(journal, JournalKey(step), 300_000) for step in (int(name[:8]) for name in names(directory)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "adc-edge-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def check_full(journal: Journal, size: int) -> None:
    """Append ``size`` bytes, for which there is no room."""
    with pytest.raises(OSError, match="00000002-0") as caught:
        journal.append(JournalKey(2), *content(JournalKey(2), size))
    assert caught.value.filename == str(journal.directory / "00000002-0")
    assert "00000002-0" not in names(journal.directory)
    assert journal.read(JournalKey(2)) is None
    assert whole(journal, JournalKey(1))
    assert journal.oldest(2) == 1


def test_a_full_disk_costs_the_entry_that_does_not_fit_and_nothing_else(small_disk: Path) -> None:
    journal = filled(small_disk / "journal", JournalKey(1))
    check_full(journal, 100_000)
    journal.sync()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(50_000))
    check_full(journal, 12_000)
    ballast.unlink()
    journal.append(JournalKey(2), *content(JournalKey(2), 12_000))
    for seen in (journal, Journal(journal.directory)):
        assert whole(seen, JournalKey(1))
        assert whole(seen, JournalKey(2), 12_000)


def test_an_entry_that_could_not_be_replaced_is_removed(small_disk: Path) -> None:
    journal = filled(small_disk, JournalKey(1), JournalKey(2))
    check_full(journal, 100_000)
    assert Journal(small_disk).read(JournalKey(2)) is None


def test_a_file_over_the_limit_of_its_user_is_like_a_full_disk(tmp_path: Path) -> None:
    journal = filled(tmp_path, JournalKey(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        check_full(journal, 50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.append(JournalKey(2), *content(JournalKey(2), 50_000))
    assert whole(Journal(tmp_path), JournalKey(2), 50_000)
