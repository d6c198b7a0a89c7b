"""The JSON lines of a run are read without those that a kill or a full disk has torn."""

from __future__ import annotations

from pathlib import Path

from adc_edge.storage.json_lines import read_json_lines


def test_the_objects_of_a_file_are_read_and_torn_lines_and_other_values_are_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(read_json_lines(path)) == []
    path.write_bytes(b'{"step": 1}\n\n{"st\n[1]\n7\n{"step": 2}\n\xff\xfe\n' + 50_000 * b"[" + b'\n{"step": 3}\n{"step')
    assert list(read_json_lines(path)) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert list(read_json_lines(path, 20)) == [{"step": 3}]
    assert list(read_json_lines(tmp_path)) == []
