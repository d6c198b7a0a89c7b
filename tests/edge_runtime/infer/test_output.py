"""Answers as JSON lines, CSV and words; a file is continued, and holds each image once."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from adc_edge.edge_runtime.infer.answers import JudgedBatch, answers_of, broken
from adc_edge.edge_runtime.infer.images import FileVersion
from adc_edge.edge_runtime.infer.output import FileWriter, in_words, make_writer
from adc_edge.edge_runtime.infer.settings import STDOUT
from adc_edge.edge_runtime.infer.summary import InferSummary, summary_text
from adc_edge.errors import SettingError

NAMES = ["cat", "dog, small"]
LOGITS = np.array([[0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
(ANSWER,) = answers_of(
    [FileVersion(Path("a\n\udcff.png"), 5)], JudgedBatch(LOGITS, "split", "", 0.0125, 800, 90), NAMES
)
BROKEN = broken(FileVersion(Path("b.png"), 6), "truncated")


def test_an_answer_has_the_five_largest_classes_with_their_names_and_probabilities() -> None:
    values = np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum()
    assert (ANSWER.name, ANSWER.index, ANSWER.where, ANSWER.milliseconds) == ("dog, small", 1, "split", 12.5)
    assert [(top.name, top.index) for top in ANSWER.top5] == [
        ("dog, small", 1), ("2", 2), ("cat", 0), ("3", 3), ("4", 4),
    ]  # fmt: skip
    assert [top.probability for top in ANSWER.top5] == pytest.approx(np.sort(values)[::-1][:5])
    assert (ANSWER.bytes_up, ANSWER.bytes_down) == (800, 90)


def test_json_lines_have_one_object_for_each_image(tmp_path: Path) -> None:
    writer = FileWriter(tmp_path / "deep" / "out.jsonl")
    writer.begin()
    writer.write(ANSWER)
    writer.write(BROKEN)
    writer.close()
    first, second = map(json.loads, (tmp_path / "deep" / "out.jsonl").read_text().splitlines())
    assert (first["class"], first["file"], first["where"]) == ("dog, small", "a\\x0a\\xff.png", "split")
    assert second == {"file": "b.png", "modified_ns": 6, "error": "truncated"}


def test_csv_has_a_row_for_each_image(tmp_path: Path) -> None:
    writer = FileWriter(tmp_path / "out.csv")
    writer.begin()
    writer.write(ANSWER)
    writer.write(BROKEN)
    writer.close()
    first, second = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert (first["class"], first["index"], first["milliseconds"]) == ("dog, small", "1", "12.5")
    assert json.loads(first["top5"])[0]["class"] == "dog, small"
    assert (second["file"], second["class"], second["error"]) == ("b.png", "", "truncated")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_file_is_continued_without_the_line_that_a_kill_has_torn(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    writer = FileWriter(path)
    writer.begin()
    writer.write(ANSWER)
    writer.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:-9])
    writer = FileWriter(path)
    writer.begin()
    assert path.read_bytes() == whole
    assert writer.answered(ANSWER.key)
    assert not writer.answered(BROKEN.key)
    assert not writer.answered((ANSWER.file, 99))  # the file was written again
    writer.write(BROKEN)
    writer.close()
    again = FileWriter(path)
    assert again.answered(BROKEN.key)
    again.close()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_torn_first_line_is_dropped(name: str, tmp_path: Path) -> None:
    writer = FileWriter(tmp_path / name)
    writer.begin()
    writer.write(ANSWER)
    writer.close()
    whole = (tmp_path / name).read_bytes()
    for end in (4, 20):
        (tmp_path / name).write_bytes(whole[:end])
        again = FileWriter(tmp_path / name)
        again.begin()
        again.write(ANSWER)
        again.close()
        assert (tmp_path / name).read_bytes() == whole


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_answers_that_are_to_be_dropped_stay_until_others_can_come(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    writer = FileWriter(path)
    writer.begin()
    writer.write(ANSWER)
    writer.close()
    before = path.read_bytes()
    fresh = FileWriter(path, fresh=True)
    assert not fresh.answered(ANSWER.key)
    assert path.read_bytes() == before
    fresh.begin()
    fresh.write(BROKEN)
    fresh.close()
    again = FileWriter(path)
    assert (again.answered(ANSWER.key), again.answered(BROKEN.key)) == (False, True)
    again.close()


@pytest.mark.parametrize("path", [Path("out.jsonl"), Path("out.csv"), STDOUT, None])
def test_a_writer_that_goes_on_for_months_needs_no_memory_for_its_answers(path: Path | None, tmp_path: Path) -> None:
    writer = make_writer(tmp_path / path if path not in (None, STDOUT) else path, False, lambda line: None)
    writer.begin()
    sizes = []
    for _ in range(2):
        sizes.append(len(pickle.dumps({name: value for name, value in vars(writer).items() if name != "_say"})))
        writer.write(ANSWER)
    assert sizes[0] == sizes[1]
    writer.close()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_second_process_is_kept_from_the_file_of_the_first(fresh: bool, tmp_path: Path) -> None:
    writer = FileWriter(tmp_path / "out.jsonl")
    writer.begin()
    writer.write(ANSWER)
    with pytest.raises(SettingError, match="is in use by another process"):
        FileWriter(tmp_path / "out.jsonl", fresh)
    writer.write(BROKEN)
    writer.close()
    again = FileWriter(tmp_path / "out.jsonl")
    assert again.known == {ANSWER.key, BROKEN.key}
    again.close()


@pytest.mark.parametrize("text", ["my notes\n", "my notes without an end", '{"mine": 1}'])
@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_file_of_something_else_is_refused_and_stays(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError, match="holds no answers of `adc-edge infer`"):
        FileWriter(tmp_path / name)
    assert (tmp_path / name).read_text() == text


def test_standard_output_takes_json_or_words() -> None:
    lines: list[str] = []
    make_writer(STDOUT, False, lines.append).write(ANSWER)
    make_writer(None, False, lines.append).write(ANSWER)
    assert json.loads(lines[0])["index"] == 1
    assert lines[1] == "a\\x0a\\xff.png  dog, small 48.9 %  split 12 ms"
    assert in_words(BROKEN) == "b.png  unreadable: truncated"


def test_the_summary_leaves_out_what_was_not_measured() -> None:
    summary = InferSummary()
    summary.add(BROKEN)
    assert summary.values((0, 0)).keys().isdisjoint({"p50_ms", "mj_image"})
    for milliseconds in range(1, 101):
        summary.add(
            answers_of([FileVersion(Path("x"), 1)], JudgedBatch(LOGITS, "local", "", milliseconds / 1e3, 0, 0), ())[0]
        )
    figures = summary.values((5000, 1000))
    assert (figures["images"], figures["unreadable"], figures["local"], figures["bytes_image"]) == (101, 1, 100, 60)
    assert (figures["p50_ms"], figures["p95_ms"]) == pytest.approx((50.5, 95.05))
    assert summary_text(figures) == (
        "101 images: 0 split, 100 local, 1 unreadable; latency p50 50.5 ms, p95 95.0 ms; 60 bytes an image"
    )
