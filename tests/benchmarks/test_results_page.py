"""The tables of the results pages are those of the committed records; rows on one seed or of version 0.5 are marked."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measured_frontier
import msgspec
import pytest
import results_page
import results_tables
from results_records import (
    RESULTS,
    BudgetsTable,
    Pictures,
    Records,
    Source,
    StepsRow,
    StepsTable,
    TotalsTable,
    read_records,
)
from results_taking import as_text, take_study, version_of
from results_totals import add_totals, take_totals

from adc_edge.errors import SettingError

FILES = (
    "ablations",
    "cifar10-224px",
    "cifar10-64px",
    "comparison",
    "equal-bytes",
    "evaluation-precision",
    "food101-224px",
    "food101-64px",
    "privacy",
    "rivals",
    "ten-epochs",
)
ROOT = RESULTS.parents[1]


def test_every_page_is_what_the_script_writes_from_the_records() -> None:
    pages = results_page.pages()
    assert len(pages) >= 9
    for path, text in pages.items():
        assert path.read_text() == text, f"{path.name}: run `python benchmarks/results_page.py`"


def test_every_table_of_the_records_stands_on_a_page() -> None:
    text = "".join(path.read_text() for path in results_page.pages())
    for file in FILES:
        for name in read_records(file).tables:
            assert f"<!-- results_page.py: {file}/{name} -->" in text


def test_every_measured_table_of_the_pages_is_written_by_the_script() -> None:
    """A table outside of a block has no number with a spread."""
    for path in [ROOT / "docs" / "results.md", *(ROOT / "docs" / "results").glob("*.md")]:
        text = re.sub(r"<!-- results_page\.py: .*?<!-- end -->", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"^\|.*\d ± \d", text, re.MULTILINE), path.name


def test_the_first_page_fits_a_screen() -> None:
    text = re.sub(r"<!--.*?-->\n", "", (ROOT / "docs" / "results.md").read_text())
    shown = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    paragraphs = re.sub(r"(?<=[^\n|])\n(?=[^\n|#-])", " ", shown).splitlines()
    lines = sum(max(1, -(-len(line) // 100)) for line in paragraphs)
    assert lines <= 45
    assert text.count("](") - text.count("![") > 8, "links to the other pages"


def test_a_row_of_one_seed_and_a_row_of_version_0_5_are_marked() -> None:
    found = 0
    for file in FILES:
        records = read_records(file)
        for name, table in records.tables.items():
            text = results_page.rendered(f"{file}/{name}")
            lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
            for row, line in zip(table.rows, lines, strict=False):
                old = records.sources[row.source].version.startswith("0.5.")
                assert (row.seeds == 1) <= ("†" in line), line
                assert old == ("‡" in line), line
                found += old
            if any(row.seeds == 1 for row in table.rows):
                assert "†: one seed" in text
    assert found > 0


def test_each_record_tells_version_machine_and_command() -> None:
    for file in FILES:
        for source in read_records(file).sources.values():
            assert re.fullmatch(r"\d+\.\d+\.\d+", source.version)
            assert source.machine
            assert source.command.split()[0] in ("adc-edge", "python")


def test_the_files_are_written_as_they_are_read() -> None:
    """So that a new study changes its own rows alone."""
    for file in FILES:
        assert (RESULTS / f"{file}.json").read_bytes() == as_text(read_records(file)), file


def records(*rows: StepsRow, version: str = "0.5.0") -> Records:
    table = StepsTable(list(rows), 100, 2.0, 1000.0)
    return Records(1, {"old": Source(version, "a machine", "adc-edge evaluate")}, {"steps": table})


def steps_row(setting: str, seeds: int = 3, accuracy: float = 50.0) -> StepsRow:
    return StepsRow(
        source="old", seeds=seeds, group="adc-edge", setting=setting, share=2.0, accuracy=accuracy, deviation=1.0,
        sem=0.58, best=51.0, mb_up=1.0, mb_down=1.0,
    )  # fmt: skip


STUDY = {
    "steps": [
        {"setting": "none/pca1:pca0.25", "group": "adc-edge", "seeds": 5, "share": 0.020187, "accuracy": 0.55512,
         "std": 0.0201, "sem": 0.009, "best": 0.5612, "bytes_up": 6_712_345.0, "bytes_down": 1_674_321.0},
    ],
    "bytes": [
        {"setting": "none/pca1:pca0.25", "budget": 0.01, "accuracy": 0.5, "std": None, "ended": False},
        {"setting": "none/pca1:pca0.25", "budget": 0.05, "accuracy": 0.555, "std": 0.02, "ended": True},
    ],
}  # fmt: skip
NEW = Source("0.12.0", "another machine", "adc-edge evaluate -o study/")


def write(directory: Path, content: Records) -> None:
    (directory / "some.json").write_bytes(as_text(content))


def test_a_study_takes_the_places_of_its_settings_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(STUDY))
    old = steps_row("none/pca1:pca0.25"), steps_row("int4", seeds=1)
    write(tmp_path, records(*old))
    take_study(tmp_path, "some", "again", NEW, tmp_path)
    found = read_records("some", tmp_path)
    table = found.tables["steps"]
    assert isinstance(table, StepsTable)
    assert [row.source for row in table.rows] == ["again", "old"]
    assert table.rows[1] == old[1]
    fresh = table.rows[0]
    assert (fresh.seeds, fresh.share, fresh.accuracy, fresh.sem, fresh.mb_up) == (5, 2.02, 55.5, 0.9, 6.71)
    assert found.sources["again"] == NEW
    assert list(found.tables["steps-before"].rows) == [old[0]]
    text = results_page.rendered("some/steps", tmp_path)
    assert "| none/pca1:pca0.25 | 5 |" in text
    assert "| int4 † ‡ | 1 |" in text


def test_a_second_study_keeps_all_rows_that_were_replaced(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(STUDY))
    old = steps_row("none/pca1:pca0.25")
    write(tmp_path, records(old))
    for name in ("again", "once more"):
        take_study(tmp_path, "some", name, NEW, tmp_path)
    found = read_records("some", tmp_path)
    assert [row.source for row in found.tables["steps"].rows] == ["once more"]
    before = found.tables["steps-before"].rows
    assert before[0] == old
    assert [row.source for row in before] == ["old", "again"], "no row that was measured is lost"


def test_the_version_is_that_of_the_runs(tmp_path: Path) -> None:
    def study(*versions: str) -> Path:
        content = STUDY | {"machines": [{"adc-edge": one, "cores": cores} for cores, one in enumerate(versions)]}
        (tmp_path / "results.json").write_text(json.dumps(content))
        return tmp_path

    assert version_of(study("0.7.1", "0.7.1")) == "0.7.1"
    with pytest.raises(SettingError, match=r"versions 0\.7\.1, 0\.8\.0"):
        version_of(study("0.8.0", "0.7.1"))
    with pytest.raises(SettingError, match="no known version"):
        version_of(study())


def test_levels_at_equal_bytes_are_taken_by_budget(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(STUDY))
    budgets = read_records("cifar10-64px").tables["budgets"]
    assert isinstance(budgets, BudgetsTable)
    mine = next(row for row in budgets.rows if row.setting == "none/pca1:pca0.25")
    write(tmp_path, Records(1, read_records("cifar10-64px").sources, {"b": BudgetsTable([1, 2, 5], [mine])}))
    take_study(tmp_path, "some", "again", NEW, tmp_path)
    assert "| none/pca1:pca0.25 | 50.0 | – | \\*55.5 ± 2.0 |" in results_page.rendered("some/b", tmp_path)


def whole_training(
    study: Path,
    accuracies: Mapping[tuple[str, int], float],
    passes: Mapping[str, float | None],
    images: int = 100,
    **task: Any,
) -> None:
    """The files of a study of settings ``none`` and ``small`` that a table of totals is made of."""
    runs = study / "runs"
    runs.mkdir(parents=True)
    for number, ((setting, seed), accuracy) in enumerate(accuracies.items()):
        run = {"setting": setting, "seed": seed, "curve": [{"accuracy": 0.0}, {"accuracy": accuracy}]}
        (runs / f"{number}.json").write_text(json.dumps(run))
    passed = {"passes_files": None, "passes_q90": 0.06, "passes_q75": 0.04}
    totals = []
    for setting, size, more in (("none", 50_000_000, passed), ("small", 500_000, passes)):
        mine = [accuracy for (one, _), accuracy in accuracies.items() if one == setting]
        if mine:
            judged = {
                "seeds": len(mine),
                "accuracy": statistics.mean(mine),
                "std": statistics.stdev(mine) if len(mine) > 1 else None,
            }
            totals.append({"setting": setting, "bytes_training": size, **judged, **more})
    results = {
        "study": {"epochs": 10.0},
        "totals": totals,
        "pictures": {"size": [112, 112], "train": {"images": images, "bytes_q90": 300_000, "bytes_q75": 200_000}},
        "evaluation": {"images": 50, "up": 20_000, "down": 100},
        "bytes_weights": 6_000_000,
    }
    (study / "results.json").write_text(json.dumps(results))
    (study / "study.json").write_text(json.dumps({"study": {"epochs": 10.0, "split": 3} | task}))


def test_runs_of_another_length_join_a_table_and_are_compared_with_its_uncompressed_ones(tmp_path: Path) -> None:
    own, longer = tmp_path / "own", tmp_path / "longer"
    passes = {"passes_files": None, "passes_q90": None, "passes_q75": 4.0}
    whole_training(own, {("none", 0): 0.8, ("none", 1): 0.7, ("small", 0): 0.6}, passes)
    whole_training(
        longer, {("none", 0): 0.85, ("small", 0): 0.79, ("small", 1): 0.72}, passes, epochs=40.0, store_mix=1.0
    )
    take_totals(own, "some", "first", "study", NEW, tmp_path)
    for _ in range(2):  # the second time it takes the place of the first
        add_totals(longer, "some", "first", "longer", NEW, own, "40 epochs", tmp_path)
    table = read_records("some", tmp_path).tables["first"]
    assert isinstance(table, TotalsTable)
    assert [(row.setting, row.difference, row.source) for row in table.rows] == [
        ("small", -20.0, "study"),
        ("small, 40 epochs", 0.5, "longer"),
        ("none", None, "study"),
        ("none, 40 epochs", 5.0, "longer"),
    ]
    whole_training(tmp_path / "other", {("small", 0): 0.7}, passes, images=50)
    whole_training(tmp_path / "deeper", {("none", 0): 0.7, ("none", 1): 0.6}, passes, split=6)
    for study, name, received in (
        ("other", "first", "50 training and 50 test images"),
        ("longer", "second", "no table"),
    ):
        with pytest.raises(SettingError, match=received):
            add_totals(tmp_path / study, "some", name, "longer", NEW, own, "40 epochs", tmp_path)
    for name, against, received in (
        ("longer", tmp_path / "other", "no uncompressed run"),
        ("study", own, "--name study, which other rows have"),
        ("longer", tmp_path / "deeper", "split 3"),
    ):
        source = msgspec.structs.replace(NEW, command="another")
        with pytest.raises(SettingError, match=received):
            add_totals(longer, "some", "first", name, source, against, "40 epochs", tmp_path)
    whole_training(tmp_path / "cut", {("none", 0): 0.7}, passes)
    (tmp_path / "cut" / "study.json").unlink()
    with pytest.raises(SettingError, match=r"cut: .*study\.json"):
        add_totals(longer, "some", "first", "longer", NEW, tmp_path / "cut", "40 epochs", tmp_path)
    whole_training(tmp_path / "lonely", {("small", 7): 0.7}, passes)
    with pytest.raises(SettingError, match="seed 7 of small, which"):
        add_totals(tmp_path / "lonely", "some", "first", "lonely", NEW, own, "40 epochs", tmp_path)


def test_a_setting_that_is_as_accurate_as_uncompressed_training_differs_by_nothing(tmp_path: Path) -> None:
    passes = {"passes_files": None, "passes_q90": None, "passes_q75": 4.0}
    whole_training(tmp_path / "study", {("none", 0): 0.8, ("small", 0): 0.8}, passes)
    take_totals(tmp_path / "study", "some", "first", "study", NEW, tmp_path)
    table = read_records("some", tmp_path).tables["first"]
    assert isinstance(table, TotalsTable)
    assert [row.difference for row in table.rows] == [0.0, None]


def test_whole_trainings_are_compared_by_seed_and_stand_above_the_pictures(tmp_path: Path) -> None:
    """A setting's seeds are compared with the uncompressed runs of the same seeds alone."""
    accuracies = {("none", 0): 0.8, ("none", 1): 0.7, ("none", 2): 0.1, ("small", 0): 0.78, ("small", 1): 0.7}
    never = [("passes_files", None), ("passes_q90", None), ("passes_q75", 4.0)]
    whole_training(tmp_path / "study", accuracies, dict(never))
    take_totals(tmp_path / "study", "some", "first", "study", NEW, tmp_path)
    photos = Pictures("photos", [4_000.0], "by hand")
    mine = read_records("some", tmp_path)
    first = mine.tables["first"]
    assert isinstance(first, TotalsTable)
    kept = msgspec.structs.replace(first, pictures=[*first.pictures, photos])
    write(tmp_path, msgspec.structs.replace(mine, tables={"first": kept}))
    take_totals(tmp_path / "study", "some", "first", "study", NEW, tmp_path)  # photos stay
    take_totals(tmp_path / "study", "some", "second", "study", NEW, tmp_path)
    assert [*read_records("some", tmp_path).tables] == ["first", "second"]
    lines = results_page.rendered("some/first", tmp_path).splitlines()
    assert lines[0].endswith(" as dear as the JPEGs (q90 / q75) after epochs |")
    assert [line.split(" | ")[1:] for line in lines[2:6]] == [
        ["2", "74.0 ± 5.7", "-1.0 ± 1.0", "5", "– / 4 |"],
        ["3", "53.3 ± 37.9", "–", "500", "0.06 / 0.04 |"],
        ["", "", "", "3 / 2", " |"],
        ["", "", "", "4", " |"],
    ]
    (tmp_path / "study" / "runs" / "9.json").write_text(
        json.dumps({"setting": "small", "seed": 2, "curve": [{"accuracy": 0.5}]})
    )
    with pytest.raises(SettingError, match="3 runs of small, of which"):
        take_totals(tmp_path / "study", "some", "third", "study", NEW, tmp_path)


def test_whole_trainings_need_an_uncompressed_run(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(
        '{"study": {}, "totals": [], "pictures": {"train": {"images": 1}}, "evaluation": {}, "bytes_weights": 0}'
    )
    with pytest.raises(SettingError, match="without uncompressed runs"):
        take_totals(tmp_path, "some", "first", "study", NEW, tmp_path)


def test_a_study_of_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(STUDY))
    write(tmp_path, records(steps_row("int4")))
    with pytest.raises(SettingError, match="settings that the table has"):
        take_study(tmp_path, "some", "again", NEW, tmp_path)
    with pytest.raises(SettingError, match="No such file"):
        take_study(tmp_path / "absent", "some", "again", NEW, tmp_path)


def test_a_row_without_a_source_is_refused(tmp_path: Path) -> None:
    content = json.loads(as_text(records(steps_row("int4"))))
    content["sources"] = {}
    (tmp_path / "some.json").write_text(json.dumps(content))
    with pytest.raises(SettingError, match=r"sources \{'old'\}"):
        read_records("some", tmp_path)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(SettingError, match="one of steps, steps-before"):
        results_page.rendered("cifar10-64px/absent")


def test_the_pictures_have_a_row_and_the_epochs_after_which_they_are_cheaper() -> None:
    table = StepsTable(
        [steps_row("none/pca1:pca0.25")],
        images=100,
        epochs=4.0,
        uncompressed_bytes=300_000,
        pictures=[Pictures("the images as JPEG, once (q90 / q75)", [18_000, 9_000], "measured")],
    )
    text = results_tables.steps(table, [""])
    assert "| pictures | the images as JPEG, once (q90 / q75) |  | 1.5 / 0.75 |  |  |  | 1.8 / 0.9 | 0 |" in text
    assert "default, `none/pca1:pca0.25` (6 kB an image and epoch), after so many epochs:" in text
    assert "once (q90 / q75): 3 / 1.5 (18 / 9 kB an image; measured)" in text


def test_the_planner_compares_a_row_with_the_uncompressed_run_of_its_time() -> None:
    task = next(one for one in measured_frontier.TASKS if one.file == "cifar10-64px")
    study = measured_frontier.accuracy_study(task)
    values = {point.setting: point.value for point in study.points}
    tables = read_records("cifar10-64px").tables
    now, before = tables["steps"], tables["steps-before"]
    assert isinstance(now, StepsTable)
    assert isinstance(before, StepsTable)
    accuracies = {row.setting: row.accuracy for row in now.rows}
    then = next(row.accuracy for row in before.rows if row.setting == "none")
    assert values["none/pca1:pca0.25"] == pytest.approx(accuracies["none/pca1:pca0.25"] - accuracies["none"])
    assert values["int3"] == pytest.approx(accuracies["int3"] - then), "a row of version 0.5"


def test_the_readme_has_the_pictures_of_the_records() -> None:
    lines = results_page.picture_lines(read_records("cifar10-224px"))
    text = (ROOT / "README.md").read_text()
    shown = [line.partition(":")[0] for line in lines if "224 px" in line]
    assert len(shown) == 2
    assert all(f"| {share} |" in text for share in shown), shown
