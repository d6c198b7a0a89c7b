"""A file that is deleted and made again is another one, though the file system may give it the same number."""

from __future__ import annotations

import os
from pathlib import Path

from adc_edge.watch.reading.tail import Tail


def test_a_file_that_was_made_again_is_read_from_its_beginning_even_with_the_number_of_the_deleted_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0}\n{"step": 1}\n')
    tail = Tail(file)
    assert tail.read() == ([{"step": 0}, {"step": 1}], True)
    number = file.stat().st_ino
    with file.open("r+") as same:  # the same number for sure
        same.write('{"step": 5}\n{"step": 6}\n{"step": 7}\n')
    assert file.stat().st_ino == number
    assert tail.read() == ([{"step": 5}, {"step": 6}, {"step": 7}], True)
    with file.open("a") as more:
        more.write('{"step": 8}\n')
    assert tail.read() == ([{"step": 8}], False)
    os.unlink(file)
    assert tail.read() == ([], False)


def test_a_line_without_end_takes_no_memory_and_no_line_stops_the_reading(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("[" * 200_000 + '\n{"step": 0}\n')
    tail = Tail(file)
    assert tail.read() == ([{"step": 0}], True)
    with file.open("a") as more:
        more.write("x" * 5 * 2**20)
    while tail.read()[0] or tail.behind:
        pass
    assert (len(tail._rest), tail.torn) == (0, 2)
    with file.open("a") as more:
        more.write('x"}\n{"step": 1}\n')
    assert tail.read() == ([{"step": 1}], False)
    assert tail.torn == 2
